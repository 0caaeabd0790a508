"""The composition root: settings in, one running agent out. Every dependency is chosen here and nowhere else."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING

import structlog

from csi_driver.agent.metrics import NodeFigures, PoolFigures, Telemetry, Unwell
from csi_driver.agent.probes import Health, serve
from csi_driver.agent.settings import NEW_IMAGE, PoolImage, PoolSpec, Settings
from csi_driver.agent.tls_listener import TlsListener
from csi_driver.backends.base import Backend
from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.backends.reflink.pool_image_setup import prepare, remove
from csi_driver.backends.registry import BACKENDS, PoolOptions
from csi_driver.domain.capacity import CapacityPolicy, human
from csi_driver.domain.errors import DriverError, Precondition, Unavailable
from csi_driver.domain.ids import owner_of_node
from csi_driver.host.block import lvm
from csi_driver.host.block.device_users import TENANTS_DATA
from csi_driver.host.commands import missing_tools
from csi_driver.host.helper.client import HelperPool
from csi_driver.logging import configure_logging
from csi_driver.service.conditions import claim_of
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.fullness import Fullness, has_run_full
from csi_driver.service.group_snapshots import Groups
from csi_driver.service.health import HealthWalk
from csi_driver.service.lineage import Lineage
from csi_driver.service.node_volumes import NodeVolumes
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.rollbacks import Rollbacks
from csi_driver.service.snapshots import Snapshots
from csi_driver.service.usage_scanner import UsageScanner
from csi_driver.service.volumes import Volumes

if TYPE_CHECKING:
    from csi_driver.rpc.kubelet_registration import Registrar

DRAIN_SECONDS = 13.0
"""For work in progress at SIGTERM: above the longest freeze. A kubelet waits 30 s, and letting the pools and the children go
may take 15 s more in the worst case."""
REOPEN_SECONDS = 15.0
"""Between two looks at a pool whose disk was away at start."""
UNDO_SECONDS = 20.0
"""For what a start that is broken off takes away again: a pool image half made."""

log = structlog.get_logger()


async def run_agent(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 1 where the agent could not start."""
    configure_logging(settings.log_format)
    agent = Agent(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        starting = asyncio.create_task(agent.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        else:
            starting.cancel()
            await asyncio.wait({starting}, timeout=UNDO_SECONDS)
            if starting.done() and not starting.cancelled():
                starting.exception()  # it failed as well, and was to end anyway
        await stopping
    except DriverError as error:
        log.error("the agent does not start", why=str(error))
        stopping.cancel()
        await agent.stop()
        return 1
    left = await agent.stop()
    if left:
        # Threads that hang in the kernel would keep an orderly exit waiting for ever; all that was acknowledged is durable.
        log.warning("ending with work unfinished", calls=left)
        os._exit(0)
    return 0


class Agent:
    """One agent: its pools, services, server and figures."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = owner_of_node(settings.node_name)
        self._children = HelperPool()
        self._telemetry = Telemetry()
        policy = CapacityPolicy(settings.overcommit, settings.reserve, settings.max_snapshots)
        self._pools = Pools(self._owner, [Pool(self._backend(spec), policy) for spec in settings.pools])
        self._context = ServiceDependencies(self._pools, observer=self._telemetry)
        self._walk = UsageScanner(self._context)
        self._fullness = Fullness(self._pools, self._walk)
        self._health_walk = HealthWalk(self._context)
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._health = Health()
        self._remote: TlsListener | None = None
        self._registrar: Registrar | None = None

    async def start(self) -> None:
        """Children first, gRPC after them, pools last: nothing that can hang inherits a pool's lock or gRPC's threads."""
        self._begin_health()
        self._check_host()
        await self._children.start()
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        from csi_driver.rpc.agent.controller import Controller
        from csi_driver.rpc.agent.group_controller import GroupController
        from csi_driver.rpc.agent.identity import Identity
        from csi_driver.rpc.agent.node import Node
        from csi_driver.rpc.agent.tidemark import Tidemark
        from csi_driver.rpc.interceptors import Calls
        from csi_driver.rpc.kubelet_registration import Registrar
        from csi_driver.rpc.server import Server

        if self._settings.register:
            self._registrar = Registrar(
                self._settings.register,
                self._settings.driver_name,
                self._settings.kubelet_socket,
                partial(self._health.note, "registered"),
            )
            self._registrar.check()
        snapshots = Snapshots(self._context)
        self._calls = Calls(self._telemetry)
        servicers = [
            Identity(self._settings.driver_name, lambda: self._ready, self._manifest),
            Controller(Volumes(self._context), snapshots),
            GroupController(Groups(self._context)),
            Node(NodeVolumes(self._context), self._owner, self._settings.volume_health),
            Tidemark(Rollbacks(self._context, snapshots), Lineage(self._context), self._fullness),
        ]
        self._server = Server(self._settings.endpoint, servicers, [self._calls])
        await self._server.start()
        if (address := self._settings.listen) is not None:
            self._remote = TlsListener(address, self._settings.certificates, servicers, [self._calls], self._health)
            self._tasks.append(asyncio.create_task(self._remote.run()))
        made: PoolImage | None = None
        if (image := self._settings.image) is not None:
            self._health.lack("start", f"the pool image {image.path} is being made, grown or mounted")
            made = image if await self._prepare(image) else None
        self._health.lack("start", "the pools are being opened")
        try:
            await self._open_pools()
        except BaseException:  # refused, or broken off by SIGTERM
            if made is not None:
                await asyncio.gather(*(pool.backend.close() for pool in self._pools))  # it cannot be unmounted before
                await remove(self._children, made.path, made.mount)
            raise
        self._telemetry.watch(self._pool_figures, self._node_figures, self._unwell)
        self._tasks.append(asyncio.create_task(self._walk.run()))
        self._tasks.append(asyncio.create_task(self._fullness.run()))
        self._tasks.append(asyncio.create_task(self._health_walk.run()))
        self._ready = True
        self._health.have("start")
        log.info("ready", endpoint=self._settings.endpoint, node=self._owner, pools=[pool.name for pool in self._pools])
        if self._registrar is not None:
            self._tasks.append(asyncio.create_task(self._registrar.run()))

    async def stop(self) -> list[str]:
        """Take no more calls, let work end, let the pools go; volumes in use stay in use. Returns what did not end."""
        self._ready = False
        self._health.lack("stop", "the agent is stopping")
        for task in self._tasks:
            task.cancel()
        if self._registrar is not None:
            await self._registrar.stop()
        left: list[str] = []
        if hasattr(self, "_server"):
            # Callers are answered while their work ends; whoever waits longer is told to come again.
            remote = [self._remote.stop(DRAIN_SECONDS)] if self._remote else []
            await asyncio.gather(self._server.stop(DRAIN_SECONDS), *remote)
            left = await self._calls.drain(1.0)
        await asyncio.gather(*(pool.backend.close() for pool in self._pools))
        await self._children.stop()
        if hasattr(self, "_beat"):
            self._beat.cancel()
        log.info("stopped")
        return left

    def _manifest(self) -> Mapping[str, str]:
        """Which certificates are in use: a controller waits for that before it gives up older ones."""
        from csi_driver.rpc import tls
        from csi_driver.rpc.clients import certificate_report

        return (
            certificate_report.plugin_manifest(tls.TlsDirectory(Path(self._settings.certificates)))
            if self._settings.certificates
            else {}
        )

    def _begin_health(self) -> None:
        """First of all: making a pool image takes minutes, and whoever waits for it should see why."""
        self._health.lack("start", "the agent is starting")
        self._beat = asyncio.create_task(self._health.run())  # to the very end: a drain is no reason to be killed
        if self._settings.metrics_address is None:
            return
        host, port = self._settings.metrics_address
        try:
            serve((host, port), self._telemetry.registry, self._health)
        except OSError as error:
            raise Precondition(
                f"--metrics-address {host}:{port} cannot be served ({error.strerror}): choose another, or leave it out"
            ) from error

    async def _prepare(self, image: PoolImage) -> bool:
        """Have the pool image mounted; returns whether it was made now."""
        size, keep = image.size or NEW_IMAGE, image.size is None
        in_container = bool(self._settings.register)
        done = await prepare(self._children, image.path, size, image.sparse, image.mount, in_container, keep)
        if done.kept:
            log.error("the pool image keeps its size", image=image.path, why=done.kept)
            self._health.note("pool image", f"keeps its size: {done.kept}")
        return done.made

    async def _open_pools(self) -> None:
        away: list[Pool] = []
        for pool in self._pools:
            try:
                await pool.open()
            except Unavailable as error:
                log.error("pool is away", pool=pool.name, why=str(error))
                away.append(pool)
            else:
                await _warn_of_no_room(pool)
        if len(away) == len(self._settings.pools):
            if not self._settings.register:
                raise Precondition(str(away[0].refusal))
            # A node's pods must be able to end without their disk, and a kubelet restarts what does not start for ever.
            self._health.lack("pools", str(away[0].refusal))
        if away:
            self._tasks.append(asyncio.create_task(self._reopen(away)))

    async def _reopen(self, away: list[Pool]) -> None:
        """Serve a pool as soon as its disk is back; until then every call on it answers that it is away."""
        while away:
            await asyncio.sleep(REOPEN_SECONDS)
            for pool in list(away):
                with suppress(DriverError):
                    await pool.open()
                    away.remove(pool)
                    self._health.have("pools")
                    log.info("pool is back", pool=pool.name)
                    await _warn_of_no_room(pool)

    def _backend(self, spec: PoolSpec) -> Backend:
        image = self._settings.image
        in_image = image is not None and spec.path == image.mount
        options = PoolOptions(
            spec.name,
            self._owner,
            spec.path,
            init=self._settings.pool_init,
            freeze_deadline=self._settings.freeze_deadline,
            backing=image.path if image is not None and in_image and image.sparse else "",
            in_container=bool(self._settings.register),
            runtime_directory=self._settings.runtime_directory,
        )
        return BACKENDS[spec.backend].make(options, self._children)

    def _check_host(self) -> None:
        """What every volume will need is looked for now, so that no volume is the first to miss it."""
        kinds = [BACKENDS[name] for name in dict.fromkeys(spec.backend for spec in self._settings.pools)]
        for kind in kinds:
            if missing := missing_tools(kind.tools):
                raise Precondition(f"{', '.join(missing)} not found: install Debian's {kind.packages}")
            for node in kind.device_nodes:
                if not os.access(node, os.R_OK | os.W_OK):
                    raise Precondition(f"{node} cannot be opened: run as root, on a kernel that has that device")
        if any(kind.block for kind in kinds) and (why := lvm.why_looks_into_volumes(IMAGE)):
            log.warning("LVM of this node looks into disks of its tenants", why=why, what_to_do=TENANTS_DATA)

    def _pool_figures(self) -> list[PoolFigures]:
        figures = []
        for pool in self._pools:
            try:
                account = pool.serving().last_account()
            except Unavailable:  # its gauges are left out; the others' are not
                continue
            if account is None:
                continue
            walked = self._walk.totals(pool.name)
            figures.append(
                PoolFigures(
                    pool=pool.name,
                    total=account.space.total,
                    used=account.space.total - account.space.free,
                    committed=account.committed,
                    available=account.available,
                    full=has_run_full(pool, account),
                    volumes=len(pool.volumes),
                    snapshots=len(pool.snapshots),
                    exclusive=walked.exclusive if walked.at else None,
                    extents=walked.extents if walked.at else None,
                    walked=(time_ns() - walked.at) / 1e9 if walked.at else None,
                )
            )
        return figures

    def _node_figures(self) -> NodeFigures:
        devices = sum(pool.backend.attached_devices for pool in self._pools)
        return NodeFigures(devices, self._children.stuck)

    def _unwell(self) -> list[Unwell]:
        found = []
        for volume, trouble in self._context.conditions.all():
            namespace, _, claim = claim_of(volume).partition("/")
            found.append(Unwell(volume.id.pool, str(volume.id), namespace, claim, trouble.kind))
        return found


async def _warn_of_no_room(pool: Pool) -> None:
    """Say at once what the first claim would find: that nothing fits."""
    try:
        account = await pool.account()
    except DriverError:  # it has gone again
        return
    if not account.available:
        log.warning(
            "the pool makes nothing new",
            pool=pool.name,
            total=human(account.space.total),
            free=human(account.space.free),
            reserve=human(account.reserve),
            promised=f"{human(account.committed)} of {human(account.ceiling)}",
            way_out=pool.way_out,
        )

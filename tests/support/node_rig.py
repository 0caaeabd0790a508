"""What the node and crash suites run on: a pool on an XFS of its own, all services above it, and a cleaner that forgets nothing."""

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import ReflinkBackend
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import Busy
from csi_driver.domain.model import (
    AccessMode,
    Capability,
    GroupSnapshot,
    SizeRange,
    Snapshot,
    Source,
    Volume,
    VolumeRequest,
)
from csi_driver.host.block import loop
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.helper.client import HelperPool
from csi_driver.service.build import build_services
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.rollbacks import RollbackRequest
from csi_driver.service.snapshots import SnapshotRequest
from support.clocks import Clock
from support.fork_servers import helper_pool
from support.machine import skip_unless_root
from support.pool_disk import Disk, clean, devices_below, make_disk, mounts_below, share
from support.sizes import GIB, MIB

OWNER = "node-1"
POOL = "default"
BLOCK = 4096
PATIENCE = 60.0
"""Seconds after which a call that was awaited is a failure: nothing may hang."""

SMALL = {"ext4": 64 * MIB, "xfs": 300 * MIB, "block": 16 * MIB}
"""Sizes that are quickly made."""


def mounted(fs_type: str = "ext4", *flags: str, mode: AccessMode = AccessMode.MULTI_WRITER) -> Capability:
    return Capability("mount", mode, fs_type, tuple(flags))


def block(mode: AccessMode = AccessMode.MULTI_WRITER) -> Capability:
    return Capability("block", mode)


def capability_of(kind: str) -> Capability:
    """`ext4`, `xfs` or `block`."""
    return block() if kind == "block" else mounted(kind)


async def stage_at_last(rig: "Rig", volume: Volume, how: Capability | None = None) -> str:
    """Stage as a kubelet does: as often as it takes until a check has ended."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await rig.stage(volume, how)
            except Busy:
                await asyncio.sleep(0.02)


# ---- an agent without gRPC ---------------------------------------------------------------------------------------------


class Bounded:
    """A service whose every call must come back within PATIENCE."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            async with asyncio.timeout(PATIENCE):
                return await found(*args, **kwargs)

        return call


@dataclass
class Rig:
    """One agent's services on one pool, and short words for what tests do with them."""

    place: Path
    disk: Disk
    children: HelperPool
    policy: CapacityPolicy = field(default_factory=lambda: CapacityPolicy(reserve=16 * MIB))
    options: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    leftovers_expected: bool = False
    """The test kills the pool, so that nothing can be put away in good order."""

    async def open(self) -> None:
        """A new agent on the pool; the one before was closed, or is taken for dead."""
        options = {"runtime_directory": str(self.place / "run")} | self.options
        self.backend = self.make_backend(options)
        self.pool = Pool(self.backend, self.policy)
        self.pools = Pools(OWNER, [self.pool])
        services = build_services(self.pools, now=self.clock)
        self.context = services.dependencies
        self.volumes = Bounded(services.volumes)
        self.snapshots = Bounded(services.snapshots)
        self.groups = Bounded(services.group_snapshots)
        self.nodes = Bounded(services.node_volumes)
        self.rollbacks = Bounded(services.rollbacks)
        self.trees = Bounded(services.lineage)
        async with asyncio.timeout(PATIENCE):
            await self.pool.open()

    def make_backend(self, options: dict[str, Any]) -> Any:
        """A backend on the rig's pool, not open. `options`: of PoolOptions."""
        return ReflinkBackend(PoolOptions(POOL, OWNER, str(self.disk.point), **options), self.children)

    async def close(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.backend.close()

    async def reopen(self) -> None:
        """A restart of the agent; what is staged and published stays."""
        await self.close()
        await self.open()

    @property
    def layout(self) -> Any:
        return self.backend.layout

    @property
    def access(self) -> Any:
        return Bounded(self.backend.access)

    # ---- objects

    async def volume(
        self,
        name: str,
        kind: str = "ext4",
        size: int = 0,
        source: Volume | Snapshot | None = None,
        thick: bool = False,
        capabilities: Sequence[Capability] = (),
        limit: int = 0,
    ) -> Volume:
        wanted = size or (0 if source else SMALL[kind])
        return await self.volumes.create(request(name, kind, wanted, source, thick, capabilities, limit))

    async def snapshot(self, name: str, volume: Volume) -> Snapshot:
        return await self.snapshots.create(SnapshotRequest(name, str(volume.id)))

    async def group(self, name: str, *volumes: Volume) -> GroupSnapshot:
        return await self.groups.create(name, [str(v.id) for v in volumes], {})

    async def expand(self, volume: Volume, size: int) -> Volume:
        return await self.volumes.expand(str(volume.id), SizeRange(size))

    async def roll_back(self, volume: Volume, snapshot: Snapshot, name: str, safety: bool = False) -> Any:
        return await self.rollbacks.roll_back(
            RollbackRequest(str(volume.id), str(snapshot.id), name, skip_safety=not safety)
        )

    async def delete(self, item: Volume | Snapshot | GroupSnapshot) -> None:
        if isinstance(item, Volume):
            await self.volumes.delete(str(item.id))
        elif isinstance(item, Snapshot):
            await self.snapshots.delete(str(item.id))
        else:
            await self.groups.delete(str(item.id), [])

    def now(self, volume: Volume) -> Volume:
        """The volume as it is recorded now."""
        return self.volumes.get(str(volume.id))

    def image(self, item: Volume | Snapshot) -> Path:
        return self.backend.image(item)

    @contextmanager
    def blocks(self, *items: Volume | Snapshot) -> Iterator[list[Path]]:
        """Files or devices that hold what these objects hold, to be read and written behind the driver's back."""
        yield [self.image(item) for item in items]

    def mode(self, snapshot: Snapshot) -> int:
        """Who may write to what holds a snapshot."""
        return os.stat(self.image(snapshot)).st_mode & 0o777

    def is_allocated(self, volume: Volume) -> bool:
        """Whether a thick volume has all its space."""
        return os.stat(self.image(volume)).st_blocks * 512 >= volume.size

    # ---- showing

    def staging(self, volume: Volume, where: str = "") -> str:
        path = self.place / "staging" / (volume.id.hash[:8] + where)
        with suppress(
            FileExistsError
        ):  # not exist_ok: what is mounted there may have shut itself down, and be no directory
            path.mkdir(parents=True)
        return str(path)

    def target(self, volume: Volume, where: str = "a") -> str:
        path = self.place / "pods" / where / volume.id.hash[:8]
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    async def stage(self, volume: Volume, how: Capability | None = None, path: str = "") -> str:
        path = path or self.staging(volume)
        await self.nodes.stage(str(volume.id), path, how or capability_of(kind_of(volume)))
        return path

    async def publish(
        self,
        volume: Volume,
        where: str = "a",
        how: Capability | None = None,
        read_only: bool = False,
        staging: str = "",
    ) -> str:
        target = self.target(volume, where)
        how = how or capability_of(kind_of(volume))
        await self.nodes.publish(str(volume.id), staging or self.staging(volume), target, how, read_only)
        return target

    async def show(self, volume: Volume, where: str = "a") -> str:
        """Stage and publish; returns the target."""
        await self.stage(volume)
        return await self.publish(volume, where)

    async def unpublish(self, volume: Volume, where: str = "a") -> None:
        await self.nodes.unpublish(str(volume.id), self.target(volume, where))

    async def unstage(self, volume: Volume, path: str = "") -> None:
        await self.nodes.unstage(str(volume.id), path or self.staging(volume))

    async def hide(self, volume: Volume, where: str = "a") -> None:
        await self.unpublish(volume, where)
        await self.unstage(volume)

    @asynccontextmanager
    async def shown(self, volume: Volume) -> AsyncIterator[str]:
        """The path of a volume, staged and published for as long as the block runs."""
        target = await self.show(volume, "shown")
        try:
            yield target
        finally:
            await self.hide(volume, "shown")

    async def read(self, source: Snapshot | Volume, path: str = "data") -> bytes:
        """A file of a snapshot's or idle volume's file system, by way of a volume made from it."""
        name = f"probe-{time.monotonic_ns()}"
        probe = await self.volume(name, source=source, capabilities=(mounted(""),))
        try:
            async with self.shown(probe) as root:
                return Path(root, path).read_bytes()
        finally:
            await self.delete(probe)

    def device(self, volume: Volume) -> LoopDevice | None:
        return loop.find(self.image(volume))

    def devices(self) -> list[LoopDevice]:
        """Loop devices of images in this pool."""
        pool = os.makedev(self.disk.device.major, self.disk.device.minor)
        return [d for d in devices_below(self.place) if d.backing[0] in {pool, 0}]

    def left_inside(self) -> list[str]:
        """What lies where nothing may be left after an operation."""
        hidden = [".new", ".freeze"]
        inside = [f"{name}/{entry}" for name in hidden for entry in os.listdir(self.disk.point / name)]
        return inside + [f"{path.parent.name}/{path.name}" for path in self.node_local.glob("*")]

    @property
    def node_local(self) -> Path:
        """Where the journal of freezes lies on the node."""
        return self.place / "run" / "freezes" / self.backend.identity.uuid

    async def put_away(self) -> None:
        """Unpublish and unstage everything, through the driver."""
        for volume in list(self.pool.volumes.values()):
            use = await self.access.use(volume)
            stages = [p for p in use.paths if p.startswith(str(self.place / "staging"))]
            for path in [p for p in use.paths if p not in stages]:
                await self.nodes.unpublish(str(volume.id), path)
            for path in stages:
                await self.nodes.unstage(str(volume.id), path.removesuffix("/device"))
            await self.access.detach(volume)


def kind_of(volume: Volume) -> str:
    first = volume.request.capabilities[0]
    if first.access == "block":
        return "block"
    return first.fs_type or (volume.format if volume.format in SMALL else "ext4")


def request(
    name: str,
    kind: str,
    size: int,
    source: Volume | Snapshot | None = None,
    thick: bool = False,
    capabilities: Sequence[Capability] = (),
    limit: int = 0,
) -> VolumeRequest:
    origin = None
    if source is not None:
        origin = Source("volume" if isinstance(source, Volume) else "snapshot", str(source.id))
    parameters = {"provisioning": "thick"} if thick else {}
    hows = tuple(capabilities) or (capability_of(kind),)
    return VolumeRequest(name, SizeRange(size, limit), hows, parameters, {}, origin)


@asynccontextmanager
async def make_rig(place: Path, size: int = 2 * GIB, **options: Any) -> AsyncIterator[Rig]:
    """A rig on a disk of its own; at the end everything is put away in good order, and anything left is a failure."""
    skip_unless_root()
    failures: list[str] = []
    share(place)
    try:
        async with helper_pool() as agents:
            rig = Rig(place, make_disk(place, size), agents, options=options)
            await rig.open()
            orderly = False
            try:
                yield rig
                orderly = not rig.leftovers_expected
            finally:
                try:
                    if orderly:
                        await rig.put_away()
                        failures += [f"left in the pool: {name}" for name in rig.left_inside()]
                        failures += [f"left attached: {device}" for device in rig.devices()]
                finally:
                    with suppress(TimeoutError):
                        await rig.close()
    finally:
        clean(place)
    assert not failures, failures
    assert not mounts_below(place)
    assert not devices_below(place)

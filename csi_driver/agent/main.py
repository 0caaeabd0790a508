"""The composition root of the agent: builds one running agent from settings. Every dependency is chosen here."""

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from csi_driver.agent.host_check import check_host
from csi_driver.agent.metric_readers import MetricReaders
from csi_driver.agent.metrics import AgentMetrics
from csi_driver.agent.pools import PoolStartup, make_backend
from csi_driver.agent.settings import Settings
from csi_driver.agent.tls_listener import TlsListener
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.ids import owner_of_node
from csi_driver.host import systemd
from csi_driver.host.helper.client import HelperPool
from csi_driver.lifecycle import run_until_signal
from csi_driver.logging import configure_logging
from csi_driver.probes import AgentHealth, ProbeServer
from csi_driver.service.build import build_services
from csi_driver.service.pools import Pool, Pools

if TYPE_CHECKING:
    from csi_driver.rpc.kubelet_registration import Registrar

DRAIN_SECONDS = 13.0
"""For work in progress at SIGTERM: more than the longest freeze. A kubelet waits 30 s, and closing the pools and the helper
processes may take 15 s more in the worst case."""

log = structlog.get_logger()


async def run_agent(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status, 1 if the agent could not start."""
    configure_logging(settings.log_format)
    agent = Agent(settings)
    started = await run_until_signal(agent.start, "agent")
    unfinished = await agent.stop()
    if not started:
        return 1
    if unfinished:
        # Threads that hang in the kernel would block an orderly exit forever; all acknowledged work is durable.
        log.warning("exiting with unfinished calls", calls=unfinished)
        os._exit(0)
    return 0


class Agent:
    """One agent: its pools, services, servers and metrics."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = owner_of_node(settings.node_name)
        self._helpers = HelperPool()
        self._metrics = AgentMetrics(self._owner)
        policy = CapacityPolicy(settings.overcommit, settings.reserve, settings.max_snapshots)
        self._pools = Pools(
            self._owner,
            [Pool(make_backend(spec, settings, self._owner, self._helpers), policy) for spec in settings.pools],
        )
        self._services = build_services(self._pools, observer=self._metrics)
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._health = AgentHealth()
        self._remote: TlsListener | None = None
        self._registrar: Registrar | None = None

    async def start(self) -> None:
        """Start helper processes first, then gRPC, then pools: nothing that can hang inherits a pool's lock or gRPC's threads."""
        self._start_probes()
        check_host(self._settings)
        await self._helpers.start()
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        from csi_driver.rpc.agent.servicers import agent_servicers
        from csi_driver.rpc.interceptors import CallTracker
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
        services = self._services
        self._calls = CallTracker(self._metrics)
        servicers = agent_servicers(
            services,
            self._settings.driver_name,
            self._owner,
            lambda: self._ready,
            self._manifest,
            self._settings.volume_health,
        )
        self._server = Server(self._settings.endpoint, servicers, [self._calls])
        await self._server.start()
        if (address := self._settings.listen) is not None:
            self._remote = TlsListener(address, self._settings.certificates, servicers, [self._calls], self._health)
            self._tasks.append(asyncio.create_task(self._remote.run()))
        startup = PoolStartup(self._pools, self._settings, self._health, self._helpers)
        await startup.open()
        readers = MetricReaders(
            self._pools,
            services.usage_scanner,
            services.dependencies.conditions,
            self._helpers,
            self._settings.metrics_volumes,
        )
        self._metrics.watch(readers)
        self._tasks.append(asyncio.create_task(startup.reopen()))
        self._tasks.append(asyncio.create_task(services.usage_scanner.run()))
        self._tasks.append(asyncio.create_task(services.fullness.run()))
        self._tasks.append(asyncio.create_task(services.health_scanner.run()))
        self._ready = True
        self._health.set_ready("start")
        names = [pool.name for pool in self._pools]
        log.info("ready", endpoint=self._settings.endpoint, node=self._owner, pools=names)
        systemd.notify(f"READY=1\nSTATUS=Serving {', '.join(names)}")
        if self._registrar is not None:
            self._tasks.append(asyncio.create_task(self._registrar.run()))

    async def stop(self) -> list[str]:
        """Stop serving, drain calls and close the pools; volumes in use stay in use. Returns calls that did not end."""
        self._ready = False
        self._health.set_not_ready("stop", "the agent is stopping")
        systemd.notify("STOPPING=1")
        for task in self._tasks:
            task.cancel()
        if self._registrar is not None:
            await self._registrar.stop()
        unfinished: list[str] = []
        if hasattr(self, "_server"):
            # Clients get answers while their calls end; those that take longer are told to retry.
            remote = [self._remote.stop(DRAIN_SECONDS)] if self._remote else []
            await asyncio.gather(self._server.stop(DRAIN_SECONDS), *remote)
            unfinished = await self._calls.drain(1.0)
        await asyncio.gather(*(pool.backend.close() for pool in self._pools))
        await self._helpers.stop()
        if hasattr(self, "_heartbeat"):
            self._heartbeat.cancel()
        log.info("stopped")
        return unfinished

    def _manifest(self) -> Mapping[str, str]:
        """Return which certificates are loaded: a rotation waits for that before it removes older ones."""
        from csi_driver.rpc import tls
        from csi_driver.rpc.agent.identity import certificate_manifest

        return (
            certificate_manifest(tls.TlsDirectory(Path(self._settings.certificates)))
            if self._settings.certificates
            else {}
        )

    def _start_probes(self) -> None:
        """Serve the probes first: creating a pool image takes minutes, and /readyz says so meanwhile."""
        self._health.set_not_ready("start", "the agent is starting")
        self._heartbeat = asyncio.create_task(self._health.run())  # to the very end: a drain is no reason for a restart
        if self._settings.metrics_address is not None:
            ProbeServer(self._settings.metrics_address, self._metrics.registry, self._health).start()

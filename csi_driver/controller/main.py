"""The composition root of the controller: builds one running controller from settings."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from csi_driver.controller.component import ControllerContext
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.controller.settings import ControllerSettings
from csi_driver.domain.errors import DriverError, Unavailable
from csi_driver.lifecycle import run_until_signal
from csi_driver.logging import configure_logging
from csi_driver.operator.installation import Installation
from csi_driver.probes import ControllerHealth, ProbeServer

DRAIN_SECONDS = 20.0
"""For calls at SIGTERM: less than the 30 s that a kubelet waits. An interrupted call continues at its agent; a retry finds it."""

log = structlog.get_logger()


async def run_controller(settings: ControllerSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status, 1 if the controller could not start."""
    configure_logging(settings.log_format)
    controller = Controller(settings)
    try:
        started = await run_until_signal(controller.start, "controller")
    finally:
        await controller.stop()
    return 0 if started else 1


class Controller:
    """One controller: its informers, channels, socket, metrics and components. `start` may be called once."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self.metrics = ControllerMetrics()
        self._components: asyncio.Task[None] | None = None
        self._cleanups: list[Callable[[], object]] = []
        self._stopping = False

    async def start(self) -> None:
        """Serve at once; ready as soon as the list of agents and the certificates are read. Raises DriverError."""
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        from csi_driver.controller.supervisor import run_all
        from csi_driver.kube.client import Api
        from csi_driver.kube.events import Events
        from csi_driver.kube.informers import InformerFactory
        from csi_driver.operator.agents.discovery import ClusterDiscovery
        from csi_driver.operator.agents.pvc_placement import PvcPlacementStore
        from csi_driver.rpc import tls
        from csi_driver.rpc.agent.identity import Identity
        from csi_driver.rpc.clients.agent_api import AgentApi
        from csi_driver.rpc.clients.agent_channels import AgentChannels
        from csi_driver.rpc.forwarding.controller import ForwardingController
        from csi_driver.rpc.forwarding.group_controller import ForwardingGroupController
        from csi_driver.rpc.forwarding.tidemark import ForwardingTidemark
        from csi_driver.rpc.interceptors import CallTracker
        from csi_driver.rpc.server import Server
        from csi_driver.service.agent_routing import AgentRouter
        from csi_driver.service.placement import Placement

        settings = self._settings
        api = await Api.connect(settings.kubeconfig, settings.api_proxy)
        self._cleanups.append(api.close)
        if settings.metrics_address is not None:
            health = ControllerHealth(self.check)
            self.probes = ProbeServer(settings.metrics_address, self.metrics.registry, health)
            self.probes.start()
            self._cleanups.append(self.probes.stop)
            heartbeat = asyncio.create_task(health.run())
            self._cleanups.append(heartbeat.cancel)
        informers = InformerFactory(api)
        self._cleanups.append(informers.stop)
        self.metrics.watch_ages(informers.ages)
        installation = Installation(settings.namespace, settings.release, settings.driver_name)
        self._discovery = ClusterDiscovery(informers, installation)
        self._identity = tls.TlsDirectory(Path(settings.certificates))
        channels = AgentChannels(self._discovery, self._identity)
        self._cleanups.append(channels.close)
        agents = AgentApi(channels)
        router = AgentRouter(agents)
        server = Server(
            settings.endpoint,
            [
                Identity(settings.driver_name, self.ready),
                ForwardingController(channels, router, Placement(self._discovery, PvcPlacementStore(api))),
                ForwardingGroupController(channels, router),
                ForwardingTidemark(channels, router),
            ],
            [CallTracker(self.metrics, shielded=False)],
        )
        await server.start()
        self._cleanups.append(lambda: server.stop(DRAIN_SECONDS))
        events = Events(api, settings.release, settings.pod_name)
        context = self.context = ControllerContext(
            settings, installation, api, informers, events, self._discovery, agents, self.metrics
        )
        self._components = asyncio.create_task(run_all(context))
        log.info("serving", endpoint=settings.endpoint, namespace=settings.namespace, release=settings.release)

    async def stop(self) -> None:
        """Release the Lease, stop serving, drain running calls and close everything."""
        self._stopping = True
        if self._components is not None:
            self._components.cancel()
            await asyncio.gather(self._components, return_exceptions=True)
        while self._cleanups:
            cleanup = self._cleanups.pop()()
            if asyncio.iscoroutine(cleanup):
                await cleanup
        log.info("stopped")

    def check(self) -> None:
        """Raise a DriverError that says why this controller is not ready. Called from a thread, too."""
        if self._stopping:
            raise Unavailable("stopping")
        if unread := self._discovery.unread() if hasattr(self, "_discovery") else ["all objects"]:
            raise Unavailable(f"not read yet: {', '.join(unread)}; check that the API answers, and the RBAC rules")
        self._identity.read()

    def ready(self) -> bool:
        """Return whether calls can be served: the answer to Probe."""
        try:
            self.check()
        except DriverError as error:
            log.debug("not ready", why=str(error))
            return False
        return True

"""The controller's composition root: settings in, one running controller out."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from csi_driver.controller.component import ControllerContext
from csi_driver.controller.metrics import ControllerTelemetry
from csi_driver.controller.settings import ControllerSettings
from csi_driver.domain.errors import DriverError, Unavailable
from csi_driver.logging import configure_logging
from csi_driver.operator.installation import Installation

DRAIN_SECONDS = 20.0
"""For calls at SIGTERM: below the 30 s that a kubelet waits. What is cut off goes on at its agent, and is found again."""

log = structlog.get_logger()


async def run_controller(settings: ControllerSettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 1 where the controller could not start."""
    configure_logging(settings.log_format)
    controller = Controller(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await controller.start()
        await stop.wait()
    except DriverError as error:
        log.error("the controller does not start", why=str(error))
        return 1
    finally:
        await controller.stop()
    return 0


class Controller:
    """One controller: its copy of the cluster, channels, socket, figures and parts. `start` may be called once."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self.telemetry = ControllerTelemetry()
        self._parts: asyncio.Task[None] | None = None
        self._ends: list[Callable[[], object]] = []
        self._stopping = False

    async def start(self) -> None:
        """Serve at once; ready as soon as the agents' list and the certificates were read. Raises DriverError."""
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        from csi_driver.controller.probes import Health
        from csi_driver.controller.supervisor import run_all
        from csi_driver.kube.client import Api
        from csi_driver.kube.events import Events
        from csi_driver.kube.informers import Mirrors
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
        self._ends.append(api.close)
        if settings.metrics_address is not None:
            self.health = Health(settings.metrics_address, self.check, self.telemetry.text)
            await self.health.start()
            self._ends.append(self.health.stop)
        mirrors = Mirrors(api)
        self._ends.append(mirrors.stop)
        self.telemetry.watch_ages(mirrors.ages)
        ours = Installation(settings.namespace, settings.release, settings.driver_name)
        self._discovery = ClusterDiscovery(mirrors, ours)
        self._identity = tls.TlsDirectory(Path(settings.certificates))
        channels = AgentChannels(self._discovery, self._identity)
        self._ends.append(channels.close)
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
            [CallTracker(self.telemetry, shielded=False)],
        )
        await server.start()
        self._ends.append(lambda: server.stop(DRAIN_SECONDS))
        events = Events(api, settings.release, settings.pod_name)
        context = self.context = ControllerContext(
            settings, ours, api, mirrors, events, self._discovery, agents, self.telemetry
        )
        self._parts = asyncio.create_task(run_all(context))
        log.info("serving", endpoint=settings.endpoint, namespace=settings.namespace, release=settings.release)

    async def stop(self) -> None:
        """Hand the lease over, take no more calls, let those that run end, close everything."""
        self._stopping = True
        if self._parts is not None:
            self._parts.cancel()
            await asyncio.gather(self._parts, return_exceptions=True)
        while self._ends:
            ending = self._ends.pop()()
            if asyncio.iscoroutine(ending):
                await ending
        log.info("stopped")

    def check(self) -> None:
        """Raise a DriverError that says why this controller is not ready."""
        if self._stopping:
            raise Unavailable("stopping")
        if unread := self._discovery.unread() if hasattr(self, "_discovery") else ["anything"]:
            raise Unavailable(f"not read yet: {', '.join(unread)}; look whether the API answers, and at the rights")
        self._identity.read()

    def ready(self) -> bool:
        """Whether calls can be served: what Probe answers."""
        try:
            self.check()
        except DriverError as error:
            log.debug("not ready", why=str(error))
            return False
        return True

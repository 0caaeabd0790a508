"""What runs beside the routing of calls, and all that it may be made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from csi_driver.controller.metrics import ControllerTelemetry
from csi_driver.controller.settings import ControllerSettings
from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informers import Mirrors
from csi_driver.operator.installation import Installation
from csi_driver.service.agents import AgentApi
from csi_driver.service.discovery import Discovery


class Component(Protocol):
    """A reconciler, or anything of its kind, that the supervisor keeps running."""

    async def run(self) -> None:
        """Go on until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class ControllerContext:
    """All that a component may be made of."""

    settings: ControllerSettings
    ours: Installation
    api: Api
    mirrors: Mirrors
    events: Events
    discovery: Discovery
    agents: AgentApi
    telemetry: ControllerTelemetry


Factory = Callable[[ControllerContext], Component]

"""What runs beside the forwarding of calls, and what it is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.controller.settings import ControllerSettings
from csi_driver.kube.client import Api
from csi_driver.kube.events import Events
from csi_driver.kube.informers import InformerFactory
from csi_driver.operator.installation import Installation
from csi_driver.service.agents import AgentApi
from csi_driver.service.discovery import Discovery


class Component(Protocol):
    """A reconciler, or a similar task, that the supervisor keeps running."""

    async def run(self) -> None:
        """Run until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class ControllerContext:
    """Everything that a component may use."""

    settings: ControllerSettings
    installation: Installation
    api: Api
    informers: InformerFactory
    events: Events
    discovery: Discovery
    agents: AgentApi
    metrics: ControllerMetrics


Factory = Callable[[ControllerContext], Component]

"""The lists of what runs beside the routing of calls: the one place where a component is added."""

from csi_driver.controller import certificates, rollbacks, schedules, topology
from csi_driver.controller.component import Component, ControllerContext, Factory
from csi_driver.kube.resources import PVS
from csi_driver.operator.agents.discovery import keep_volume
from csi_driver.operator.agents.full_pools import FullPoolEvents
from csi_driver.operator.agents.health import AgentHealthProbe
from csi_driver.operator.orphaned_volumes import Orphans


def orphaned_volumes(context: ControllerContext) -> Component:
    """Reports volumes that no PersistentVolume names."""
    volumes = context.mirrors.of(PVS, keep=keep_volume)
    tell = context.telemetry.orphans.set
    return Orphans(context.agents, volumes, context.ours.driver, context.events, tell)


def full_pools(context: ControllerContext) -> Component:
    """Writes an event on the node whose pool has run full."""
    return FullPoolEvents(context.agents, context.events)


def agent_health(context: ControllerContext) -> Component:
    """Measures which agents answer."""
    return AgentHealthProbe(context.agents, context.telemetry.reached)


ON_EVERY_REPLICA: list[Factory] = [
    certificates.certificate_component,
    certificates.tls_files_component,
    topology.webhook,
    agent_health,
]
"""Begun with the controller, before it is ready: what each replica needs for itself."""

ON_THE_LEADER: list[Factory] = [
    topology.reconciler,
    orphaned_volumes,
    full_pools,
    rollbacks.reconciler,
    schedules.reconciler,
]
"""Begun by the replica that holds the Lease, and cancelled when it loses the Lease."""

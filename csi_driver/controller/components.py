"""The lists of components: the one place where a component is added."""

from csi_driver.controller import certificates, rollbacks, schedules, topology
from csi_driver.controller.component import Component, ControllerContext, Factory
from csi_driver.kube.resources import PODS, PVS
from csi_driver.operator.agents.discovery import trim_agent_pod, trim_pv
from csi_driver.operator.agents.full_pools import FullPoolEvents
from csi_driver.operator.agents.health import AgentHealthProbe
from csi_driver.operator.installation import AGENT_LABELS
from csi_driver.operator.orphaned_volumes import OrphanedVolumes


def orphaned_volumes(context: ControllerContext) -> Component:
    """Return what reports volumes without a PersistentVolume."""
    pvs = context.informers.for_kind(PVS, transform=trim_pv)
    set_count = context.metrics.orphans.set
    return OrphanedVolumes(context.agents, pvs, context.installation.driver, context.events, set_count)


def full_pools(context: ControllerContext) -> Component:
    """Writes an event on the node whose pool has run full."""
    namespace = context.installation.namespace
    pods = context.informers.for_kind(PODS, namespace, labels=AGENT_LABELS, transform=trim_agent_pod)
    return FullPoolEvents(context.agents, pods, context.events)


def agent_health(context: ControllerContext) -> Component:
    """Return what measures which agents answer."""
    return AgentHealthProbe(context.agents, context.metrics.reached)


ON_EVERY_REPLICA: list[Factory] = [
    certificates.certificate_component,
    certificates.tls_files_component,
    topology.webhook,
    agent_health,
]
"""Started with the controller, before it is ready: what each replica needs for itself."""

ON_THE_LEADER: list[Factory] = [
    topology.reconciler,
    orphaned_volumes,
    full_pools,
    rollbacks.reconciler,
    schedules.reconciler,
]
"""Started by the replica that holds the Lease, and cancelled when it loses the Lease."""

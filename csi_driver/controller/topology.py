"""The components that select nodes for PVCs with a data source: the webhook on every replica, the controller on the leader."""

import asyncio
from pathlib import Path

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.kube.admission import Webhook
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, STORAGE_CLASSES
from csi_driver.operator.agents.discovery import trim_node, trim_pv
from csi_driver.operator.agents.node_lookup import node_for_owner
from csi_driver.operator.topology.controller import TopologyController
from csi_driver.operator.topology.data_source import DataSourceResolver
from csi_driver.operator.topology.observe import Informers
from csi_driver.operator.topology.trim import trim_pvc, trim_unscheduled_pod
from csi_driver.operator.topology.webhook import SelectedNodeMutator


class DisabledComponent:
    """A component that is switched off."""

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()


def webhook(context: ControllerContext) -> Component:
    """Return the admission webhook for PVCs with a data source."""
    settings = context.settings
    if settings.webhook_address is None:
        return DisabledComponent()
    nodes = context.informers.for_kind(NODES, transform=trim_node)

    def node_of(owner: str) -> str | None:
        node = node_for_owner(nodes, owner)
        return str(node["metadata"]["name"]) if node is not None else None

    # Reads the API and no cache: a snapshot may be a moment older than the PVC that restores it.
    mutator = SelectedNodeMutator(DataSourceResolver(context.api.get, settings.driver_name), node_of)
    return Webhook(settings.webhook_address, Path(settings.certificates), mutator.mutate)


def reconciler(context: ControllerContext) -> Component:
    """Return the controller of PVCs that the webhook has missed, and of events for unschedulable pods."""
    for_kind = context.informers.for_kind
    informers = Informers(
        pvcs=for_kind(PVCS, transform=trim_pvc),
        pods=for_kind(PODS, fields="spec.nodeName=", transform=trim_unscheduled_pod),
        nodes=for_kind(NODES, transform=trim_node),
        pvs=for_kind(PVS, transform=trim_pv),
        storage_classes=for_kind(STORAGE_CLASSES),
    )
    return TopologyController(context.api, informers, context.agents, context.events, context.settings.driver_name)

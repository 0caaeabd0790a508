"""The parts that lead a new claim to the node of its source: the webhook on every replica, the reconciler on the leader."""

import asyncio
from pathlib import Path

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.kube.admission import Webhook
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, STORAGE_CLASSES
from csi_driver.operator.agents.discovery import keep_node, keep_volume
from csi_driver.operator.agents.node_lookup import node_for_owner
from csi_driver.operator.topology.controller import Informers, TopologyController, keep_claim, trim_unscheduled_pod
from csi_driver.operator.topology.data_source import DataSourceResolver
from csi_driver.operator.topology.webhook import PinAdmission


class DisabledComponent:
    """What is switched off."""

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()


def webhook(context: ControllerContext) -> Component:
    """Asked by the API server about each claim that has a source."""
    settings = context.settings
    if settings.webhook_address is None:
        return DisabledComponent()
    nodes = context.mirrors.of(NODES, keep=keep_node)

    def name_of(owner: str) -> str | None:
        node = node_for_owner(nodes, owner)
        return str(node["metadata"]["name"]) if node is not None else None

    # Read past all copies: a snapshot may be a moment older than the claim that is made of it.
    admission = PinAdmission(DataSourceResolver(context.api.get, settings.driver_name), name_of)
    return Webhook(settings.webhook_address, Path(settings.certificates), admission.annotate)


def reconciler(context: ControllerContext) -> Component:
    """Leads claims that the webhook missed, and tells why a pod cannot follow."""
    of = context.mirrors.of
    copies = Informers(
        claims=of(PVCS, keep=keep_claim),
        pods=of(PODS, fields="spec.nodeName=", keep=trim_unscheduled_pod),
        nodes=of(NODES, keep=keep_node),
        volumes=of(PVS, keep=keep_volume),
        classes=of(STORAGE_CLASSES),
    )
    return TopologyController(context.api, copies, context.agents, context.events, context.settings.driver_name)

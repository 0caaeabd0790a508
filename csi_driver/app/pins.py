"""The parts that lead a new claim to the node of its source: the webhook on every replica, the reconciler on the leader."""

import asyncio
from pathlib import Path

from csi_driver.app.parts import Part, Room
from csi_driver.kube.kinds import CLAIMS, NODES, PODS, STORAGE_CLASSES, VOLUMES
from csi_driver.kube.webhook import Webhook
from csi_driver.operator.discovery import keep_node, keep_volume
from csi_driver.operator.nodes import node_of
from csi_driver.operator.pin_admission import PinAdmission
from csi_driver.operator.pin_source import Sources
from csi_driver.operator.pins import Copies, Pins, keep_claim, keep_homeless
from csi_driver.rpc.rooms import AgentRooms


class Nothing:
    """What is switched off."""

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.Event().wait()


def webhook(room: Room) -> Part:
    """Asked by the API server about each claim that has a source."""
    settings = room.settings
    if settings.webhook_address is None:
        return Nothing()
    nodes = room.mirrors.of(NODES, keep=keep_node)

    def name_of(owner: str) -> str | None:
        node = node_of(nodes, owner)
        return str(node["metadata"]["name"]) if node is not None else None

    # Read past all copies: a snapshot may be a moment older than the claim that is made of it.
    admission = PinAdmission(Sources(room.api.get, settings.driver_name), name_of)
    return Webhook(settings.webhook_address, Path(settings.certificates), admission.annotate)


def reconciler(room: Room) -> Part:
    """Leads claims that the webhook missed, and tells why a pod cannot follow."""
    of = room.mirrors.of
    copies = Copies(
        claims=of(CLAIMS, keep=keep_claim),
        pods=of(PODS, fields="spec.nodeName=", keep=keep_homeless),
        nodes=of(NODES, keep=keep_node),
        volumes=of(VOLUMES, keep=keep_volume),
        classes=of(STORAGE_CLASSES),
    )
    return Pins(room.api, copies, AgentRooms(room.agents), room.events, room.settings.driver_name)

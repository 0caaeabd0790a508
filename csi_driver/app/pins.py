"""The parts that lead a new claim to the node of its source: the webhook on every replica, the reconciler on the leader."""

import asyncio
from pathlib import Path

from csi_driver.app.parts import Part, Room
from csi_driver.kube.kinds import NODES
from csi_driver.kube.webhook import Webhook
from csi_driver.operator.discovery import keep_node
from csi_driver.operator.nodes import node_of
from csi_driver.operator.pin_admission import PinAdmission
from csi_driver.operator.pin_source import Sources


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

"""The parts that certificates take, on every replica: the one that keeps them, and the one that loads its own."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from csi_driver.app.parts import Part, Room
from csi_driver.kube.api import Object
from csi_driver.kube.material import Material, pods_hold
from csi_driver.operator.certificates import Certificates, Wanted
from csi_driver.operator.given import Given
from csi_driver.operator.names import CONTROLLER_LABELS
from csi_driver.rpc import peers, tls


def keeper(room: Room) -> Part:
    """Makes, renews and rotates, or watches what the user gives."""
    settings = room.settings
    ours, namespace = room.ours, settings.namespace
    hook = ours.webhook if settings.webhook_address is not None else ""

    def expiry(role: str, ends: datetime) -> None:
        room.telemetry.certificate_expiry.labels(role).set(ends.timestamp())

    if settings.controller_secret:
        given = {"controller": settings.controller_secret, "agent": settings.agent_secret}
        return Given(room.api, namespace, given, hook, room.events, expiry)

    async def controllers(secret: Object) -> Mapping[str, str]:
        return await pods_hold(room.api, namespace, CONTROLLER_LABELS, f"{ours.release}-controller-", secret)

    async def agents(_: Object) -> Mapping[str, str]:
        return await peers.agents_hold(room.agents)

    # The API server calls the webhook by the second name.
    names = (tls.CONTROLLER, ours.webhook_host)
    wanted = [
        Wanted("controller", ours.certificate("controller"), names, controllers),
        Wanted("agent", ours.certificate("agent"), (tls.AGENT,), agents),
    ]
    return Certificates(room.api, namespace, ours.authority, wanted, hook, room.events, expiry)


def own_files(room: Room) -> Part:
    """Lays out this replica's own certificate where its channels and its webhook read it."""
    settings = room.settings
    secret = settings.controller_secret or room.ours.certificate("controller")
    # Nothing is written on a Secret of the user's.
    pod = "" if settings.controller_secret else settings.pod_name
    return Material(room.api, settings.namespace, secret, Path(settings.certificates), pod)

"""The parts that certificates take, on every replica: the one that keeps them, and the one that loads its own."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.kube.client import Object
from csi_driver.kube.tls_secret import TlsSecretFiles, loaded_by_pods
from csi_driver.operator.certificates.controller import Certificates, CertificateSpec
from csi_driver.operator.certificates.external import ExternalCertificates
from csi_driver.operator.installation import CONTROLLER_LABELS
from csi_driver.rpc import tls


def certificate_component(context: ControllerContext) -> Component:
    """Makes, renews and rotates, or watches what the user gives."""
    settings = context.settings
    ours, namespace = context.ours, settings.namespace
    hook = ours.webhook if settings.webhook_address is not None else ""

    def expiry(role: str, ends: datetime) -> None:
        context.telemetry.certificate_expiry.labels(role).set(ends.timestamp())

    if settings.controller_secret:
        given = {"controller": settings.controller_secret, "agent": settings.agent_secret}
        return ExternalCertificates(context.api, namespace, given, hook, context.events, expiry)

    async def controllers(secret: Object) -> Mapping[str, str]:
        return await loaded_by_pods(context.api, namespace, CONTROLLER_LABELS, f"{ours.release}-controller-", secret)

    async def agents(_: Object) -> Mapping[str, str]:
        return await context.agents.loaded_certificates()

    # The API server calls the webhook by the second name.
    names = (tls.CONTROLLER, ours.webhook_host)
    wanted = [
        CertificateSpec("controller", ours.certificate("controller"), names, controllers),
        CertificateSpec("agent", ours.certificate("agent"), (tls.AGENT,), agents),
    ]
    return Certificates(context.api, namespace, ours.authority, wanted, hook, context.events, expiry)


def tls_files_component(context: ControllerContext) -> Component:
    """Lays out this replica's own certificate where its channels and its webhook read it."""
    settings = context.settings
    secret = settings.controller_secret or context.ours.certificate("controller")
    # Nothing is written on a Secret of the user's.
    pod = "" if settings.controller_secret else settings.pod_name
    return TlsSecretFiles(context.api, settings.namespace, secret, Path(settings.certificates), pod)

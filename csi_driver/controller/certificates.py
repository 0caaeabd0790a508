"""The certificate components of every replica: one reconciles all certificates, one loads its own."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.kube.client import Object
from csi_driver.kube.tls_secret import TlsSecretFiles, loaded_by_pods
from csi_driver.operator.certificates import external, reconciler
from csi_driver.operator.certificates.controller import CertificateController
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.observe import CertificateSecrets, CertificateSpec
from csi_driver.operator.installation import CONTROLLER_LABELS
from csi_driver.rpc import tls


def certificate_component(context: ControllerContext) -> Component:
    """Return what creates, renews and rotates certificates, or watches those that the user supplies."""
    settings = context.settings
    installation, namespace = context.installation, settings.namespace
    webhook = installation.webhook_configuration if settings.webhook_address is not None else ""

    def set_expiry(role: str, ends: datetime) -> None:
        context.metrics.certificate_expiry.labels(role).set(ends.timestamp())

    dependencies = CertificateDependencies(context.api, namespace, webhook, context.events, set_expiry)
    if settings.controller_secret:
        supplied = {"controller": settings.controller_secret, "agent": settings.agent_secret}
        watching = external.ExternalCertificateReconciler(dependencies, supplied)
        return CertificateController(watching, external.PERIOD_SECONDS)

    async def controllers(secret: Object) -> Mapping[str, str]:
        prefix = f"{installation.release}-controller-"
        return await loaded_by_pods(context.api, namespace, CONTROLLER_LABELS, prefix, secret)

    async def agents(_: Object) -> Mapping[str, str]:
        return await context.agents.loaded_certificates()

    # The API server calls the webhook by the second name.
    names = (tls.CONTROLLER, installation.webhook_host)
    specs = [
        CertificateSpec("controller", installation.tls_secret("controller"), names, controllers),
        CertificateSpec("agent", installation.tls_secret("agent"), (tls.AGENT,), agents),
    ]
    keeping = reconciler.CertificateReconciler(dependencies, CertificateSecrets(installation.ca_secret, specs))
    return CertificateController(keeping, reconciler.WAITING_SECONDS)


def tls_files_component(context: ControllerContext) -> Component:
    """Return what writes this replica's own certificate to the files that its channels and its webhook read."""
    settings = context.settings
    secret = settings.controller_secret or context.installation.tls_secret("controller")
    # A user's Secret is never changed.
    pod = "" if settings.controller_secret else settings.pod_name
    return TlsSecretFiles(context.api, settings.namespace, secret, Path(settings.certificates), pod)

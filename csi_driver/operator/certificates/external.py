"""Certificates that the user supplies, or cert-manager makes: nothing is created or rotated, their expiry is watched.

Only the webhook's CA is copied to the API server: the issuer of these certificates cannot know where it is needed.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog

from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.kube.workqueue import Result
from csi_driver.operator.certificates import ca
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle, write_ca_bundle

PERIOD_SECONDS = 30.0
"""Between two reconciliations, also after one that failed."""

WARN_BEFORE = timedelta(days=7)
"""The end of a certificate that others renew: cert-manager renews one of 90 days a month before."""

log = structlog.get_logger()


class ExternalCertificateReconciler:
    """`secrets_by_role`: names of Secrets, the controller's among them."""

    def __init__(self, dependencies: CertificateDependencies, secrets_by_role: Mapping[str, str]) -> None:
        self._with = dependencies
        self._secrets_by_role = secrets_by_role
        self._warned: dict[str, datetime] = {}

    async def reconcile(self, _: str) -> Result:
        """Export when each certificate ends, warn once about one that ends soon, and copy the CA to the webhook."""
        for role, name in self._secrets_by_role.items():
            secret = await self._with.api.get(SECRETS, name, self._with.namespace)
            data = (secret or {}).get("data") or {}
            try:
                ends = ca.describe(secrets.decoded(data, "tls.crt")).ends
                bundle = secrets.decoded(data, "ca.crt")
            except ValueError:
                log.error("cannot read certificate", secret=name, role=role, exists=secret is not None)
                continue
            self._with.set_expiry(role, ends)
            if secret is not None and ends - self._with.now() < WARN_BEFORE and self._warned.get(name) != ends:
                self._warned[name] = ends
                message = f"the certificate of every {role} expires at {ends:%Y-%m-%d %H:%M} UTC: renew Secret {name}"
                await self._with.events.emit(secret, "Warning", "CertificateExpiring", message)
            if role == "controller" and self._with.webhook and bundle:
                await self._update_webhook(bundle)
        return Result(PERIOD_SECONDS)

    async def _update_webhook(self, bundle: bytes) -> None:
        configuration = await self._with.api.get(MUTATING_WEBHOOKS, self._with.webhook)
        if configuration is not None and read_ca_bundle(configuration) not in {None, bundle}:
            await write_ca_bundle(self._with.api, configuration, bundle)

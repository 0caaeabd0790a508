"""Certificates that the user supplies, or cert-manager makes: nothing is created or rotated, their expiry is watched.

Only the webhook's CA is copied to the API server: the issuer of these certificates cannot know where it is needed.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.client import Api
from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.operator.certificates import ca
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates.controller import PERIOD_SECONDS, EventRecorder
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle, write_ca_bundle

WARN_BEFORE = timedelta(days=7)
"""The end of a certificate that others renew: cert-manager renews one of 90 days a month before."""

log = structlog.get_logger()


class ExternalCertificates:
    """`secrets_by_role`: names of Secrets, the controller's among them. See Certificates for the other arguments."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        secrets_by_role: Mapping[str, str],
        webhook: str,
        events: EventRecorder,
        set_expiry: Callable[[str, datetime], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._secrets_by_role = secrets_by_role
        self._webhook = webhook
        self._events = events
        self._set_expiry = set_expiry
        self._now = now
        self._warned: dict[str, datetime] = {}

    async def run(self) -> None:
        """Check every half minute, until cancelled."""
        while True:
            try:
                await self.reconcile()
            except DriverError as error:
                log.warning("certificate check failed, retrying", why=str(error))
            await asyncio.sleep(PERIOD_SECONDS)

    async def reconcile(self) -> None:
        """Export when each certificate ends, warn once about one that ends soon, and copy the CA to the webhook."""
        for role, name in self._secrets_by_role.items():
            secret = await self._api.get(SECRETS, name, self._namespace)
            data = (secret or {}).get("data") or {}
            try:
                ends = ca.describe(secrets.decoded(data, "tls.crt")).ends
                bundle = secrets.decoded(data, "ca.crt")
            except ValueError:
                log.error("cannot read certificate", secret=name, role=role, exists=secret is not None)
                continue
            self._set_expiry(role, ends)
            if secret is not None and ends - self._now() < WARN_BEFORE and self._warned.get(name) != ends:
                self._warned[name] = ends
                message = f"the certificate of every {role} expires at {ends:%Y-%m-%d %H:%M} UTC: renew Secret {name}"
                await self._events.emit(secret, "Warning", "CertificateExpiring", message)
            if role == "controller" and self._webhook and bundle:
                await self._update_webhook(bundle)

    async def _update_webhook(self, bundle: bytes) -> None:
        configuration = await self._api.get(MUTATING_WEBHOOKS, self._webhook)
        if configuration is not None and read_ca_bundle(configuration) not in {None, bundle}:
            await write_ca_bundle(self._api, configuration, bundle)

"""Certificates that the user gives, or cert-manager makes: nothing is made or rotated, their end is watched.

Of the webhook only the authority is passed on to the API server, since whoever gave the certificates cannot know where.
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
from csi_driver.operator.certificates.controller import LOOK_SECONDS, EventRecorder
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle, write_ca_bundle

WARN = timedelta(days=7)
"""Before the end of a certificate that is not ours to renew: cert-manager renews one of 90 days a month before."""

log = structlog.get_logger()


class ExternalCertificates:
    """`given`: Secrets by role, the controller's among them."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        given: Mapping[str, str],
        hook: str,
        events: EventRecorder,
        expiry: Callable[[str, datetime], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._given = given
        self._hook = hook
        self._events = events
        self._expiry = expiry
        self._now = now
        self._warned: dict[str, datetime] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except DriverError as error:
                log.warning("certificates are not watched", why=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Tell when each ends, warn once of one that ends soon, and pass the authority on."""
        for role, name in self._given.items():
            secret = await self._api.get(SECRETS, name, self._namespace)
            data = (secret or {}).get("data") or {}
            try:
                ends = ca.describe(secrets.decoded(data, "tls.crt")).ends
                bundle = secrets.decoded(data, "ca.crt")
            except ValueError:
                log.error("certificate cannot be read", secret=name, role=role, there=secret is not None)
                continue
            self._expiry(role, ends)
            if secret is not None and ends - self._now() < WARN and self._warned.get(name) != ends:
                self._warned[name] = ends
                words = f"the certificate of every {role} ends at {ends:%Y-%m-%d %H:%M} UTC: renew Secret {name}"
                await self._events.emit(secret, "Warning", "CertificateEnds", words)
            if role == "controller" and self._hook and bundle:
                await self._pass_on(bundle)

    async def _pass_on(self, bundle: bytes) -> None:
        hook = await self._api.get(MUTATING_WEBHOOKS, self._hook)
        if hook is not None and read_ca_bundle(hook) not in {None, bundle}:
            await write_ca_bundle(self._api, hook, bundle)

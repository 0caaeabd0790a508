"""Certificates of the user's own: nothing is made, their end is told, and the webhook is trusted."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

from certificates_rig import Told
from support.fake_api import FakeApi

from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.operator.certificates import ca
from csi_driver.operator.certificates.controller import KEY
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.external import PERIOD_SECONDS, ExternalCertificateReconciler

NS = "tidemark"


async def test_their_end_is_watched(fake: FakeApi) -> None:
    root, now = ca.new_ca(), datetime.now(UTC)
    for name, days in (("mine", 90), ("agents", 5)):
        pair = ca.issue(root, name, days=days, now=now)
        data = {"ca.crt": root.certificate, "tls.crt": pair.certificate, "tls.key": pair.key}
        body = {"metadata": {"name": name}, "data": {key: b64encode(value).decode() for key, value in data.items()}}
        fake.put(SECRETS, body, NS)
    hook = {"metadata": {"name": "pin"}, "webhooks": [{"name": "a", "clientConfig": {"service": {"name": "s"}}}]}
    fake.put(MUTATING_WEBHOOKS, hook)
    expiry: dict[str, datetime] = {}
    emitter = Told()
    given = {"controller": "mine", "agent": "agents", "third": "not there"}
    dependencies = CertificateDependencies(await fake.connect(), NS, "pin", emitter, expiry.__setitem__, lambda: now)
    watch = ExternalCertificateReconciler(dependencies, given)
    for _ in range(2):
        assert (await watch.reconcile(KEY)).requeue_after == PERIOD_SECONDS
    assert {role: round((ends - now) / timedelta(days=1)) for role, ends in expiry.items()} == {
        "controller": 90,
        "agent": 5,
    }
    assert emitter.reasons == ["CertificateExpiring"], "once, and only of the one that ends soon"
    assert "renew Secret agents" in emitter.events[0][1]
    written = [(call.verb, call.kind) for call in fake.calls if call.verb not in {"get", "list"}]
    assert written == [("patch", MUTATING_WEBHOOKS)], "once"
    found = fake.get(MUTATING_WEBHOOKS, "pin")
    assert found is not None
    expected = {"service": {"name": "s"}, "caBundle": b64encode(root.certificate).decode()}
    assert found["webhooks"] == [{"name": "a", "clientConfig": expected}]

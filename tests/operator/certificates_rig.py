"""A cluster's certificates in this process: a Kubernetes API in memory, replicas that keep them, and peers that load them."""

from __future__ import annotations

import ssl
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography import x509
from support.fake_api import FakeApi

from csi_driver.domain.certificates import FILES, fingerprint
from csi_driver.kube.client import Object
from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.observe import CertificateSecrets, CertificateSpec
from csi_driver.operator.certificates.reconciler import CertificateReconciler

NAMESPACE = "tidemark"
AUTHORITY, CONTROLLER, AGENT = "tidemark-authority", "tidemark-controller-tls", "tidemark-agent-tls"
NAMES = {
    CONTROLLER: ("controller.tidemark.internal", "tidemark-webhook.tidemark.svc"),
    AGENT: ("agent.tidemark.internal",),
}

Loaded = dict[str, bytes]


class Told:
    """Events, as (reason, message)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    async def emit(self, obj: Object, type: Any, reason: str, message: str) -> None:  # noqa: A002
        assert obj["metadata"]["name"]
        self.events.append((reason, message))

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]


class Peers:
    """Who has loaded what. A peer keeps what it has until a test says that it loads."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.loaded: dict[str, dict[str, Loaded]] = {
            CONTROLLER: {"pod-1": {}, "pod-2": {}},
            AGENT: {"n-1": {}, "n-2": {}},
        }

    def load(self, secret: str, peer: str) -> None:
        self.loaded[secret][peer] = content(self.fake, secret)

    def load_all(self) -> None:
        for secret, peers in self.loaded.items():
            for peer in peers:
                self.load(secret, peer)

    def report(self, secret: str) -> dict[str, str]:
        held = self.loaded[secret]
        return {peer: fingerprint(has["ca.crt"], has["tls.crt"]) if has else "" for peer, has in held.items()}

    def check(self) -> None:
        """Each controller and each agent accept each other with what they have loaded, and may have for a while."""
        for controller in self.loaded[CONTROLLER].values():
            for agent in self.loaded[AGENT].values():
                if controller and agent:
                    assert accepts(agent, controller), "an agent would refuse a controller"
                    assert accepts(controller, agent), "a controller would refuse an agent"


class CertificatesRig:
    """A cluster whose certificates are kept by any number of replicas."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.peers = Peers(fake)
        self.emitter = Told()
        self.expiry: dict[str, datetime] = {}
        self.now = datetime.now(UTC)
        fake.put(
            MUTATING_WEBHOOKS,
            {
                "metadata": {"name": "tidemark-pin"},
                "webhooks": [{"name": "pin.tidemark.dev", "clientConfig": {"service": {"name": "s"}}}],
            },
        )

    async def replica(self) -> CertificateReconciler:
        """Another process that keeps them."""

        def wanted(role: str, secret: str) -> CertificateSpec:
            async def peers(obj: Object) -> Mapping[str, str]:
                return self.peers.report(secret)

            return CertificateSpec(role, secret, NAMES[secret], peers)

        dependencies = CertificateDependencies(
            await self.fake.connect(),
            NAMESPACE,
            "tidemark-pin",
            self.emitter,
            self.expiry.__setitem__,
            lambda: self.now,
        )
        specs = [wanted("controller", CONTROLLER), wanted("agent", AGENT)]
        return CertificateReconciler(dependencies, CertificateSecrets(AUTHORITY, specs))

    def secret(self, name: str) -> Object:
        found = self.fake.get(SECRETS, name, NAMESPACE)
        assert found is not None
        return found

    def ask_for_rotation(self) -> None:
        self.fake.change(SECRETS, AUTHORITY, {"metadata": {"annotations": {"tidemark.dev/rotate": "now"}}}, NAMESPACE)

    def authority(self) -> bytes:
        return content(self.fake, AUTHORITY)["tls.crt"]

    def hook(self) -> bytes:
        obj = self.fake.get(MUTATING_WEBHOOKS, "tidemark-pin")
        assert obj is not None
        return b64decode(obj["webhooks"][0]["clientConfig"].get("caBundle", ""))

    def check_rest(self) -> None:
        """One authority, which signed both certificates, is trusted by all, and is known to the API server."""
        root = self.authority()
        assert set(content(self.fake, AUTHORITY)) == {"tls.crt", "tls.key"}
        for secret, names in NAMES.items():
            has = content(self.fake, secret)
            assert has["ca.crt"] == root
            assert accepts(has, has)
            assert names_of(has["tls.crt"]) == names
            fits(has)
        assert self.hook() == root


def content(fake: FakeApi, name: str) -> Loaded:
    found = fake.get(SECRETS, name, NAMESPACE)
    assert found is not None
    return {key: b64decode(value) for key, value in found["data"].items()}


def accepts(one: Loaded, other: Loaded) -> bool:
    """Whether a peer that has loaded `one` takes the certificate of a peer that has loaded `other`."""
    return vouches(one["ca.crt"], other["tls.crt"])


@cache
def vouches(bundle: bytes, certificate: bytes) -> bool:
    shown = x509.load_pem_x509_certificate(certificate)
    for root in x509.load_pem_x509_certificates(bundle):
        try:
            shown.verify_directly_issued_by(root)
        except Exception:
            continue
        return True
    return False


def names_of(certificate: bytes) -> tuple[str, ...]:
    found = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return tuple(found.value.get_values_for_type(x509.DNSName))


def fits(loaded: Loaded) -> None:
    """As a server of the standard library takes it."""
    import tempfile

    assert set(loaded) == set(FILES)
    with tempfile.NamedTemporaryFile() as file:
        file.write(loaded["tls.crt"] + loaded["tls.key"])
        file.flush()
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file.name)

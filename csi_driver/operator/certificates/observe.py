"""Reads what the next step for the certificates depends on: the Secrets, the webhook, and what peers have loaded."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from csi_driver.domain.certificates import fingerprint
from csi_driver.kube.client import Object
from csi_driver.kube.resources import MUTATING_WEBHOOKS, SECRETS
from csi_driver.operator.certificates import ca, rotation
from csi_driver.operator.certificates import ca_secret as secrets
from csi_driver.operator.certificates.dependencies import CertificateDependencies
from csi_driver.operator.certificates.webhook_ca import read_ca_bundle

ROTATE = "tidemark.dev/rotate"
"""Annotation on the CA's Secret that requests a rotation, with any value; removed when the rotation starts."""

Peers = Callable[[Object], Awaitable[Mapping[str, str]]]
"""Given a Secret of type TLS, returns what each peer that must load it has loaded: a fingerprint by name, empty if the
peer does not answer."""


@dataclass(frozen=True, slots=True)
class CertificateSpec:
    """A certificate to keep in a Secret of type TLS."""

    role: str
    """Label of the metric: controller or agent."""
    secret: str
    names: rotation.Names
    """Its DNS names."""
    peers: Peers


@dataclass(frozen=True, slots=True)
class CertificateSecrets:
    """Which Secrets are kept: the CA's by name, and that of each certificate."""

    ca: str
    specs: Sequence[CertificateSpec]

    def spec(self, names: rotation.Names) -> CertificateSpec:
        """Return the certificate with these DNS names."""
        return next(spec for spec in self.specs if spec.names == names)


@dataclass(frozen=True, slots=True)
class Observation:
    """The objects as they were read; a step is done under their versions."""

    ca_object: Object | None
    ca_secret: secrets.CaSecret | None
    issued: Mapping[rotation.Names, Object | None]
    webhook: Object | None

    @property
    def ca(self) -> secrets.CaSecret:
        """The CA. There is one at every step but the first."""
        assert self.ca_secret is not None
        return self.ca_secret

    def state(self, stale_peers: tuple[str, ...] | None) -> rotation.ObservedState:
        """Return what the planner reads of it."""
        trusted = self.ca_secret.trusted if self.ca_secret is not None else []
        issued = {names: _read_issued(obj, trusted) if obj is not None else None for names, obj in self.issued.items()}
        annotations = ((self.ca_object or {}).get("metadata") or {}).get("annotations") or {}
        ca_state = self.ca_secret.state if self.ca_secret is not None else None
        return rotation.ObservedState(
            ca_state, issued, read_ca_bundle(self.webhook), ROTATE in annotations, stale_peers
        )


class CertificateObserver:
    """Reads from the API and from the peers, and reports when each certificate ends."""

    def __init__(self, dependencies: CertificateDependencies, kept: CertificateSecrets) -> None:
        self._with = dependencies
        self._kept = kept

    async def observe(self) -> Observation:
        """Read all objects. Raises Precondition if the CA's Secret has invalid content."""
        api, namespace = self._with.api, self._with.namespace
        obj = await api.get(SECRETS, self._kept.ca, namespace)
        ca_secret = secrets.read(obj) if obj is not None else None
        issued = {spec.names: await api.get(SECRETS, spec.secret, namespace) for spec in self._kept.specs}
        webhook = await api.get(MUTATING_WEBHOOKS, self._with.webhook) if self._with.webhook else None
        return Observation(obj, ca_secret, issued, webhook)

    async def stale_peers(self, observation: Observation) -> tuple[str, ...]:
        """Return the peers that have not loaded their current Secret."""
        stale: set[str] = set()
        for names, obj in observation.issued.items():
            spec = self._kept.spec(names)
            if obj is None:
                return (spec.secret,)
            data = obj["data"]
            current = fingerprint(secrets.decoded(data, "ca.crt"), secrets.decoded(data, "tls.crt"))
            loaded = await spec.peers(obj)
            stale.update(peer for peer, its_fingerprint in loaded.items() if its_fingerprint != current)
        return tuple(sorted(stale))

    def report_expiry(self, state: rotation.ObservedState) -> None:
        """Report when each certificate and the CA end."""
        for names, secret in state.issued.items():
            if secret is not None and secret.certificate is not None:
                self._with.set_expiry(self._kept.spec(names).role, secret.certificate.ends)
        if state.ca is not None and state.ca.signer is not None:
            self._with.set_expiry("authority", state.ca.signer.ends)


def _read_issued(obj: Object, trusted: Sequence[bytes]) -> rotation.IssuedSecret:
    data = obj.get("data") or {}
    try:
        pair = ca.KeyPair(secrets.decoded(data, "tls.crt"), secrets.decoded(data, "tls.key"))
        certificate = ca.describe(pair.certificate, trusted) if ca.key_matches(pair) else None
        return rotation.IssuedSecret(secrets.decoded(data, "ca.crt"), certificate)
    except ValueError:
        return rotation.IssuedSecret(b"", None)

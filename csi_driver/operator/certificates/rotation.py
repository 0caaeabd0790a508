"""Decides the next step for a cluster's certificates from what was observed. Pure: reconciler.py observes and acts.

A rotation of the CA never requires two sides to change at the same moment:
  1. the next CA is created, and the CA bundle of every peer gets the old one and the next one;
  2. when every peer has loaded that bundle, the next CA becomes the signer, and all certificates are issued again by it;
  3. when every peer has loaded those, the old CA is removed from the bundles.
The progress of a rotation is read from the Secrets, so that any replica continues where another one ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from csi_driver.domain.certificates import Certificate

Names = tuple[str, ...]
"""DNS names of a certificate, which identify it here."""


@dataclass(frozen=True, slots=True)
class CaState:
    """What the CA's Secret holds."""

    signer: Certificate | None
    """Signs now. None: its key was lost, and only the next CA exists."""
    next_ca: Certificate | None
    """In the bundles already, signs later."""
    has_old: bool
    """Some CAs are still in the bundles and do not sign."""
    bundle: bytes
    """All CA certificates that peers must trust, in PEM; the same bytes before and after the signer changes."""


@dataclass(frozen=True, slots=True)
class IssuedSecret:
    """What a Secret of type TLS holds."""

    bundle: bytes
    certificate: Certificate | None
    """None: it cannot be read."""


@dataclass(frozen=True, slots=True)
class ObservedState:
    """Everything that a step depends on."""

    ca: CaState | None
    issued: Mapping[Names, IssuedSecret | None]
    """By the DNS names that each must have; None: there is no such Secret."""
    webhook_bundle: bytes | None
    """caBundle of the webhook configuration; None: no webhook is configured."""
    rotation_requested: bool
    """A person has requested a rotation."""
    stale_peers: tuple[str, ...] | None
    """Peers that have not loaded their current Secret; None: they were not checked."""


@dataclass(frozen=True, slots=True)
class CreateCa:
    """Create the first CA."""


@dataclass(frozen=True, slots=True)
class CreateNextCa:
    """Create the next CA."""


@dataclass(frozen=True, slots=True)
class IssueCertificate:
    """Issue a certificate by the signer, with the whole bundle beside it."""

    names: Names


@dataclass(frozen=True, slots=True)
class UpdateCaBundle:
    """Write the bundle beside a certificate that stays."""

    names: Names


@dataclass(frozen=True, slots=True)
class UpdateWebhookCaBundle:
    """Write the bundle into the webhook configuration."""


@dataclass(frozen=True, slots=True)
class CheckPeers:
    """Check what the peers have loaded, and decide again."""


@dataclass(frozen=True, slots=True)
class PromoteNextCa:
    """Make the next CA the signer; the bundle keeps the old one."""


@dataclass(frozen=True, slots=True)
class RemoveOldCa:
    """Remove old CAs from the bundle."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Do nothing now. `waiting` has the peers that a rotation waits for."""

    waiting: tuple[str, ...] = ()


Step = (
    CreateCa
    | CreateNextCa
    | IssueCertificate
    | UpdateCaBundle
    | UpdateWebhookCaBundle
    | CheckPeers
    | PromoteNextCa
    | RemoveOldCa
    | Idle
)


def next_step(observed: ObservedState, now: datetime) -> Step:
    """Return the one next step. Doing it, and observing again, leads to Idle in a bounded number of steps."""
    ca = observed.ca
    if ca is None:
        return CreateCa()
    for names, issued in observed.issued.items():
        if _must_be_issued(names, issued, ca, now):
            # Without the signer's key there is no waiting for the peers: stale ones fail until they have loaded theirs.
            return IssueCertificate(names) if ca.signer is not None else PromoteNextCa()
        assert issued is not None
        if issued.bundle != ca.bundle:
            return UpdateCaBundle(names)
    if observed.webhook_bundle is not None and observed.webhook_bundle != ca.bundle:
        return UpdateWebhookCaBundle()
    if ca.next_ca is not None or ca.has_old:
        if ca.next_ca is not None and ca.signer is not None and now >= ca.signer.ends:
            return PromoteNextCa()  # peers cannot be checked over connections for which the old CA no longer vouches
        if observed.stale_peers is None:
            return CheckPeers()
        if observed.stale_peers:
            return Idle(observed.stale_peers)
        return PromoteNextCa() if ca.next_ca is not None else RemoveOldCa()
    if observed.rotation_requested or (ca.signer is not None and ca.signer.due(now)):
        return CreateNextCa()
    return Idle()


def _must_be_issued(names: Names, issued: IssuedSecret | None, ca: CaState, now: datetime) -> bool:
    if issued is None or issued.certificate is None:
        return True
    certificate = issued.certificate
    if certificate.names != names or certificate.due(now):
        return True
    return certificate.signer != ca.signer.id if ca.signer is not None else not certificate.signer

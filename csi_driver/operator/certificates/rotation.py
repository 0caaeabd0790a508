"""Which step the certificates of a cluster need next, from what is observed. Pure: certificates.py observes and acts.

A rotation of the authority never asks two sides to change at the same moment:
  1. the new authority is made, and everybody is told to trust the old one and the new one;
  2. when every peer has loaded that, the new one becomes the signer, and all certificates are issued again by it;
  3. when every peer has loaded those, the old one is dropped.
Where a rotation stands is read from the Secrets, so that any replica goes on where another one ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from csi_driver.domain.certificates import Certificate

Names = tuple[str, ...]
"""DNS names of a certificate: they tell one from the other here."""


@dataclass(frozen=True, slots=True)
class Authority:
    """What the authority's Secret holds."""

    signer: Certificate | None
    """Signs now. None: its Secret was lost, and there is only its successor."""
    successor: Certificate | None
    """Trusted already, signs later."""
    retiring: bool
    """There are authorities that are trusted still and sign no more."""
    bundle: bytes
    """All that are to be trusted, in PEM; the same bytes before and after the signer changes."""


@dataclass(frozen=True, slots=True)
class IssuedSecret:
    """What a Secret of type TLS holds."""

    trusts: bytes
    certificate: Certificate | None
    """None: it cannot be read."""


@dataclass(frozen=True, slots=True)
class ObservedState:
    """All that a step follows from."""

    authority: Authority | None
    issued: Mapping[Names, IssuedSecret | None]
    """By the DNS names that each is to have; None: there is no such Secret."""
    hook: bytes | None
    """Whom the API server trusts when it calls the webhook; None: no webhook is configured."""
    wish: bool
    """Somebody asked for a rotation."""
    behind: tuple[str, ...] | None
    """Peers that have not loaded their Secret as it is now; None: they were not asked."""


@dataclass(frozen=True, slots=True)
class MakeAuthority:
    """There is none."""


@dataclass(frozen=True, slots=True)
class CreateNextCa:
    """Make the successor of the authority."""


@dataclass(frozen=True, slots=True)
class Issue:
    """Issue a certificate by the signer, with the whole bundle beside it."""

    names: Names


@dataclass(frozen=True, slots=True)
class UpdateCaBundle:
    """Put the bundle beside a certificate that stays."""

    names: Names


@dataclass(frozen=True, slots=True)
class UpdateWebhookCaBundle:
    """Put the bundle into the webhook's configuration."""


@dataclass(frozen=True, slots=True)
class CheckPeers:
    """Ask the peers what they have loaded, and decide again."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The successor signs from now on; the signer retires."""


@dataclass(frozen=True, slots=True)
class RemoveOldCa:
    """Those that retire are trusted no more."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do now; `waiting` for these peers, where a rotation is going on."""

    waiting: tuple[str, ...] = ()


Step = (
    MakeAuthority
    | CreateNextCa
    | Issue
    | UpdateCaBundle
    | UpdateWebhookCaBundle
    | CheckPeers
    | Promote
    | RemoveOldCa
    | Idle
)


def next_step(seen: ObservedState, now: datetime) -> Step:
    """The one next step. Doing it, and observing again, leads to Rest in a bounded number of steps."""
    authority = seen.authority
    if authority is None:
        return MakeAuthority()
    for names, issued in seen.issued.items():
        if _unfit(names, issued, authority, now):
            # Without a signer's key nobody can wait for the peers: those that have not followed yet fail until they have.
            return Issue(names) if authority.signer is not None else Promote()
        assert issued is not None
        if issued.trusts != authority.bundle:
            return UpdateCaBundle(names)
    if seen.hook is not None and seen.hook != authority.bundle:
        return UpdateWebhookCaBundle()
    if authority.successor is not None or authority.retiring:
        if authority.successor is not None and authority.signer is not None and now >= authority.signer.ends:
            return Promote()  # nobody can be asked over connections that the old one no longer vouches for
        if seen.behind is None:
            return CheckPeers()
        if seen.behind:
            return Idle(seen.behind)
        return Promote() if authority.successor is not None else RemoveOldCa()
    if seen.wish or (authority.signer is not None and authority.signer.due(now)):
        return CreateNextCa()
    return Idle()


def _unfit(names: Names, issued: IssuedSecret | None, authority: Authority, now: datetime) -> bool:
    if issued is None or issued.certificate is None:
        return True
    certificate = issued.certificate
    if certificate.names != names or certificate.due(now):
        return True
    return certificate.signer != authority.signer.id if authority.signer is not None else not certificate.signer

"""The Secret that holds the authority, as it stands in each phase of a rotation. Read and written here alone."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csi_driver.domain.errors import Precondition
from csi_driver.operator.trust import Authority
from csi_driver.service import authority
from csi_driver.service.authority import Pair


@dataclass(frozen=True, slots=True)
class Keeping:
    """What the Secret keeps: tls.crt and tls.key of who signs, next.crt and next.key of the successor, old.crt."""

    signer: Pair | None
    successor: Pair | None = None
    retiring: tuple[bytes, ...] = ()

    @property
    def trusted(self) -> list[bytes]:
        """All that everybody is to trust."""
        return [*(pair.certificate for pair in (self.signer, self.successor) if pair is not None), *self.retiring]

    @property
    def bundle(self) -> bytes:
        """The same in one file; the same bytes before and after the signer changes."""
        return authority.join(self.trusted)

    @property
    def seen(self) -> Authority:
        """What the next step depends on."""
        described = [authority.describe(pair.certificate) if pair else None for pair in (self.signer, self.successor)]
        return Authority(described[0], described[1], bool(self.retiring), self.bundle)

    def begun(self, now: datetime) -> "Keeping":
        """With a successor that is trusted and does not sign yet."""
        return Keeping(self.signer, authority.new_authority(now), self.retiring)

    def promoted(self) -> "Keeping":
        """The successor signs; who signed before is trusted still."""
        retired = (self.signer.certificate,) if self.signer is not None else ()
        return Keeping(self.successor, None, (*self.retiring, *retired))

    def dropped(self) -> "Keeping":
        """Nobody but the signer is trusted."""
        return Keeping(self.signer)

    def data(self) -> dict[str, str | None]:
        """For the Secret's `data`; None removes a key."""
        pairs = {"tls": self.signer, "next": self.successor}
        data: dict[str, str | None] = {}
        for name, pair in pairs.items():
            data[f"{name}.crt"] = encoded(pair.certificate) if pair is not None else None
            data[f"{name}.key"] = encoded(pair.key) if pair is not None else None
        data["old.crt"] = encoded(authority.join(self.retiring)) if self.retiring else None
        return data


def read(secret: Mapping[str, Any]) -> Keeping:
    """Raises Precondition where the Secret does not hold an authority: it is never overwritten then."""
    data = secret.get("data") or {}
    try:
        retiring = tuple(authority.split(decoded(data, "old.crt"))) if data.get("old.crt") else ()
        kept = Keeping(_pair(data, "tls"), _pair(data, "next"), retiring)
    except ValueError as error:
        raise _no_authority(secret, str(error)) from error
    if kept.signer is None and kept.successor is None:
        raise _no_authority(secret, "tls.crt and tls.key are missing")
    return kept


def lost(trusted: list[bytes], now: datetime) -> Keeping:
    """A new authority where others are trusted whose keys are gone; without those, one that signs at once."""
    made = authority.new_authority(now)
    return Keeping(None, made, tuple(trusted)) if trusted else Keeping(made)


def encoded(content: bytes) -> str:
    """As a Secret's `data` holds it."""
    return b64encode(content).decode()


def decoded(data: Mapping[str, str], key: str) -> bytes:
    """One entry of a Secret's `data`; empty where it is missing. Raises ValueError."""
    return b64decode(data.get(key) or "", validate=True)


def _pair(data: Mapping[str, str], name: str) -> Pair | None:
    pair = Pair(decoded(data, f"{name}.crt"), decoded(data, f"{name}.key"))
    if not pair.certificate and not pair.key:
        return None
    if not authority.fits(pair):
        raise ValueError(f"{name}.key is not the key of {name}.crt")
    # As this project writes it, whoever made it: bundles are compared by their bytes.
    return Pair(authority.split(pair.certificate)[0], pair.key)


def _no_authority(secret: Mapping[str, Any], why: str) -> Precondition:
    return Precondition(
        f"Secret {secret['metadata']['name']} does not hold the authority ({why}): restore it, or delete it to have a new "
        "authority made"
    )

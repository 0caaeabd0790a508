"""The Secret that holds the authority, as it stands in each phase of a rotation. Read and written here alone."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csi_driver.domain.errors import Precondition
from csi_driver.operator.certificates import ca
from csi_driver.operator.certificates.ca import KeyPair
from csi_driver.operator.certificates.rotation import Authority


@dataclass(frozen=True, slots=True)
class CaSecret:
    """What the Secret keeps: tls.crt and tls.key of who signs, next.crt and next.key of the successor, old.crt."""

    signer: KeyPair | None
    successor: KeyPair | None = None
    retiring: tuple[bytes, ...] = ()

    @property
    def trusted(self) -> list[bytes]:
        """All that everybody is to trust."""
        return [*(pair.certificate for pair in (self.signer, self.successor) if pair is not None), *self.retiring]

    @property
    def bundle(self) -> bytes:
        """The same in one file; the same bytes before and after the signer changes."""
        return ca.join(self.trusted)

    @property
    def seen(self) -> Authority:
        """What the next step depends on."""
        described = [ca.describe(pair.certificate) if pair else None for pair in (self.signer, self.successor)]
        return Authority(described[0], described[1], bool(self.retiring), self.bundle)

    def begun(self, now: datetime) -> "CaSecret":
        """With a successor that is trusted and does not sign yet."""
        return CaSecret(self.signer, ca.new_authority(now), self.retiring)

    def promoted(self) -> "CaSecret":
        """The successor signs; who signed before is trusted still."""
        retired = (self.signer.certificate,) if self.signer is not None else ()
        return CaSecret(self.successor, None, (*self.retiring, *retired))

    def dropped(self) -> "CaSecret":
        """Nobody but the signer is trusted."""
        return CaSecret(self.signer)

    def data(self) -> dict[str, str | None]:
        """For the Secret's `data`; None removes a key."""
        pairs = {"tls": self.signer, "next": self.successor}
        data: dict[str, str | None] = {}
        for name, pair in pairs.items():
            data[f"{name}.crt"] = encoded(pair.certificate) if pair is not None else None
            data[f"{name}.key"] = encoded(pair.key) if pair is not None else None
        data["old.crt"] = encoded(ca.join(self.retiring)) if self.retiring else None
        return data


def read(secret: Mapping[str, Any]) -> CaSecret:
    """Raises Precondition where the Secret does not hold an authority: it is never overwritten then."""
    data = secret.get("data") or {}
    try:
        retiring = tuple(ca.split(decoded(data, "old.crt"))) if data.get("old.crt") else ()
        kept = CaSecret(_pair(data, "tls"), _pair(data, "next"), retiring)
    except ValueError as error:
        raise _no_authority(secret, str(error)) from error
    if kept.signer is None and kept.successor is None:
        raise _no_authority(secret, "tls.crt and tls.key are missing")
    return kept


def recreate(trusted: list[bytes], now: datetime) -> CaSecret:
    """A new authority where others are trusted whose keys are gone; without those, one that signs at once."""
    made = ca.new_authority(now)
    return CaSecret(None, made, tuple(trusted)) if trusted else CaSecret(made)


def encoded(content: bytes) -> str:
    """As a Secret's `data` holds it."""
    return b64encode(content).decode()


def decoded(data: Mapping[str, str], key: str) -> bytes:
    """One entry of a Secret's `data`; empty where it is missing. Raises ValueError."""
    return b64decode(data.get(key) or "", validate=True)


def _pair(data: Mapping[str, str], name: str) -> KeyPair | None:
    pair = KeyPair(decoded(data, f"{name}.crt"), decoded(data, f"{name}.key"))
    if not pair.certificate and not pair.key:
        return None
    if not ca.key_matches(pair):
        raise ValueError(f"{name}.key is not the key of {name}.crt")
    # As this project writes it, whoever made it: bundles are compared by their bytes.
    return KeyPair(ca.split(pair.certificate)[0], pair.key)


def _no_authority(secret: Mapping[str, Any], why: str) -> Precondition:
    return Precondition(
        f"Secret {secret['metadata']['name']} does not hold the authority ({why}): restore it, or delete it to have a new "
        "authority made"
    )

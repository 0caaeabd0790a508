"""The Secret that holds the CA, in each phase of a rotation. Only this module reads and writes it."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csi_driver.domain.errors import Precondition
from csi_driver.operator.certificates import ca
from csi_driver.operator.certificates.ca import KeyPair
from csi_driver.operator.certificates.rotation import CaState


@dataclass(frozen=True, slots=True)
class CaSecret:
    """The Secret's content: tls.crt and tls.key of the signer, next.crt and next.key of the next CA, old.crt."""

    signer: KeyPair | None
    next_ca: KeyPair | None = None
    old: tuple[bytes, ...] = ()

    @property
    def trusted(self) -> list[bytes]:
        """All CA certificates that must be in the bundle."""
        return [*(pair.certificate for pair in (self.signer, self.next_ca) if pair is not None), *self.old]

    @property
    def bundle(self) -> bytes:
        """The same in one file; the same bytes before and after the signer changes."""
        return ca.join(self.trusted)

    @property
    def state(self) -> CaState:
        """What the next step depends on."""
        signer, next_ca = (ca.describe(pair.certificate) if pair else None for pair in (self.signer, self.next_ca))
        return CaState(signer, next_ca, bool(self.old), self.bundle)

    def with_next_ca(self, now: datetime) -> "CaSecret":
        """Return a copy with a next CA, which is trusted and does not sign yet."""
        return CaSecret(self.signer, ca.new_ca(now), self.old)

    def with_next_promoted(self) -> "CaSecret":
        """Return a copy in which the next CA signs; the old signer is still trusted."""
        retired = (self.signer.certificate,) if self.signer is not None else ()
        return CaSecret(self.next_ca, None, (*self.old, *retired))

    def with_old_removed(self) -> "CaSecret":
        """Return a copy in which only the signer is trusted."""
        return CaSecret(self.signer)

    def data(self) -> dict[str, str | None]:
        """Return the Secret's `data`; None removes a key."""
        pairs = {"tls": self.signer, "next": self.next_ca}
        data: dict[str, str | None] = {}
        for name, pair in pairs.items():
            data[f"{name}.crt"] = encoded(pair.certificate) if pair is not None else None
            data[f"{name}.key"] = encoded(pair.key) if pair is not None else None
        data["old.crt"] = encoded(ca.join(self.old)) if self.old else None
        return data


def read(secret: Mapping[str, Any]) -> CaSecret:
    """Read a Secret. Raises Precondition if it does not hold a CA: it is never overwritten then."""
    data = secret.get("data") or {}
    try:
        old = tuple(ca.split(decoded(data, "old.crt"))) if data.get("old.crt") else ()
        content = CaSecret(_read_pair(data, "tls"), _read_pair(data, "next"), old)
    except ValueError as error:
        raise _not_a_ca(secret, str(error)) from error
    if content.signer is None and content.next_ca is None:
        raise _not_a_ca(secret, "tls.crt and tls.key are missing")
    return content


def recreate(trusted: list[bytes], now: datetime) -> CaSecret:
    """Return a new CA that signs at once; if peers trust CAs whose keys were lost, one that signs after they trust it."""
    new = ca.new_ca(now)
    return CaSecret(None, new, tuple(trusted)) if trusted else CaSecret(new)


def encoded(content: bytes) -> str:
    """Return content in the encoding of a Secret's `data`."""
    return b64encode(content).decode()


def decoded(data: Mapping[str, str], key: str) -> bytes:
    """Return one entry of a Secret's `data`; empty if it is missing. Raises ValueError."""
    return b64decode(data.get(key) or "", validate=True)


def _read_pair(data: Mapping[str, str], name: str) -> KeyPair | None:
    pair = KeyPair(decoded(data, f"{name}.crt"), decoded(data, f"{name}.key"))
    if not pair.certificate and not pair.key:
        return None
    if not ca.key_matches(pair):
        raise ValueError(f"{name}.key is not the key of {name}.crt")
    # In the form that this project writes, whoever made it: bundles are compared by their bytes.
    return KeyPair(ca.split(pair.certificate)[0], pair.key)


def _not_a_ca(secret: Mapping[str, Any], why: str) -> Precondition:
    return Precondition(
        f"Secret {secret['metadata']['name']} does not hold a CA ({why}): restore it, or delete it to have a new CA created"
    )

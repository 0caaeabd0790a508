"""What is known of a certificate, and how certificates are told apart without showing them. Parses nothing."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

FILES = ("ca.crt", "tls.crt", "tls.key")
"""Of a directory of certificates, and keys of a Secret of type TLS: who is trusted, what is shown, and its key, in PEM."""


def fingerprint(authority: bytes, certificate: bytes) -> str:
    """SHA-256, in hexadecimal, of whom a peer trusts and of what it shows: equal means that it has loaded just these."""
    return hashlib.sha256(authority + b"\0" + certificate).hexdigest()


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of an authority, or one that was issued by one."""

    id: str
    names: tuple[str, ...]
    """What it is good for: its DNS names. None in an authority's."""
    signer: str
    """Id of the trusted authority that signed it; empty: none of those."""
    begins: datetime
    ends: datetime

    def due(self, now: datetime) -> bool:
        """Whether two thirds of its life are over: a third is left to find out why it is not renewed."""
        return now >= self.begins + (self.ends - self.begins) * 2 / 3

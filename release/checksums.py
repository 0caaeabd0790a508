"""Checksums of all files of a release, in the form of sha256sum: one signature of them covers everything."""

from __future__ import annotations

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"
SIGNATURES = (f"{NAME}.asc", f"{NAME}.sigstore.json")
"""Where a signature goes: by GnuPG, or by cosign. Whoever releases makes them; no key is in the tree."""


def checksums(directory: Path) -> str:
    """Return a line for each file of a release but the checksums and their signatures."""
    lines = []
    for path in sorted(directory.iterdir()):
        if path.name not in (NAME, *SIGNATURES):
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)

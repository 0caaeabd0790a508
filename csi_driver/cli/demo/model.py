"""The expected content of the demo's disks and snapshots, by plain copying: it shares no code with any backend."""

from dataclasses import dataclass, field
from functools import cache

REGION = 1 << 20
"""A block of the demo: one recognisable mebibyte."""

REGIONS = 4
SIZE = REGION * REGIONS

UNKNOWN = "??"
_LINE = 64


@cache
def pattern(label: str) -> bytes:
    """Return a region of numbered lines, so that no two blocks of 4096 bytes are equal."""
    return b"".join(
        f"{label} line {number:05d} of the tidemark demo".ljust(_LINE - 1).encode() + b"\n"
        for number in range(REGION // _LINE)
    )


def labels(content: bytes) -> tuple[str, ...]:
    """Return the label of each region, read from its bytes: empty for zeros, `??` if a single byte is wrong."""
    return tuple(_label(content[at : at + REGION]) for at in range(0, SIZE, REGION))


def _label(region: bytes) -> str:
    if not any(region):
        return ""
    label = region[:2].decode("ascii", "replace")
    return label if region == pattern(label) else UNKNOWN


@dataclass
class Model:
    """Full copies of all objects, and which write filled each region; 0 for a region that was never written."""

    content: dict[str, bytearray] = field(default_factory=dict)
    written: dict[str, list[int]] = field(default_factory=dict)
    _writes: int = 0

    def make(self, name: str) -> None:
        """Create an empty disk."""
        self.content[name] = bytearray(SIZE)
        self.written[name] = [0] * REGIONS

    def write(self, name: str, region: int, label: str) -> None:
        """Replace one region."""
        self._writes += 1
        self.content[name][region * REGION : (region + 1) * REGION] = pattern(label)
        self.written[name][region] = self._writes

    def copy(self, source: str, name: str) -> None:
        """A snapshot, a clone, or a rollback: the content of `name` is replaced."""
        self.content[name] = bytearray(self.content[source])
        self.written[name] = list(self.written[source])

    def drop(self, name: str) -> None:
        """Delete an object."""
        del self.content[name]
        del self.written[name]

    def usage(self, name: str) -> tuple[int, int]:
        """Return bytes that only this object uses, and bytes that others use as well."""
        others = {write for other, writes in self.written.items() if other != name for write in writes}
        mine = [write for write in self.written[name] if write]
        shared = sum(write in others for write in mine)
        return (len(mine) - shared) * REGION, shared * REGION

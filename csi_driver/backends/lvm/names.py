"""What logical volumes are called: the name carries hash and generation, so that a device tells whose it is and nothing is remembered.

`v-<hash>.<generation>` is a volume, `s-<hash>.<generation>` a snapshot. Of two with one hash the higher generation is the object.
The device mapper doubles each dash of both parts: `vg-v--<hash>.<generation>`.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["volume", "snapshot"]

MEMBER = "tidemark.member="
"""Begins the tag of a group's member, which has no record of its own: the group's hash and generation follow."""

CHECK = "tidemark.check"
"""The tag of a copy that is being checked: neither an object nor trash."""
KEPT = "tidemark.kept="
"""Begins the tag of what a volume held before its file system was mended; the time (Unix nanoseconds) follows."""
ZEROED = "tidemark.zeroed="
"""Begins the tag of a thick volume of which only so many bytes are sure to hold nothing of former owners, or of its own."""

_KINDS: dict[str, Kind] = {"v": "volume", "s": "snapshot"}
_NAME = re.compile(r"([vs])-([0-9a-f]{32})\.([1-9][0-9]{0,8})", re.ASCII)
_VG = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", re.ASCII)
_LV = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}", re.ASCII)
_DEFAULT_POOL = "pool"


@dataclass(frozen=True, slots=True)
class LvName:
    """The parsed name of a logical volume that is an object of a pool, in one of its generations."""

    kind: Kind
    hash: str
    generation: int

    def __str__(self) -> str:
        return f"{self.kind[0]}-{self.hash}.{self.generation}"


def parse(name: str) -> LvName | None:
    """Return what a logical volume's name says; None: it is not an object of a pool."""
    found = _NAME.fullmatch(name)
    return LvName(_KINDS[found[1]], found[2], int(found[3])) if found else None


def parse_device(group: str, name: str) -> LvName | None:
    """Return what the name of a device of the device mapper says; None: it is not an object of this volume group."""
    prefix = f"{group.replace('-', '--')}-"
    if not name.startswith(prefix):
        return None
    # A layer below a logical volume has one dash more: `vg-pool-tpool`, `vg-pool_tmeta`. Objects have no layers.
    return parse(name.removeprefix(prefix).replace("--", "-"))


def device_name(group: str, volume: str, layer: str = "") -> str:
    """Return the name that the device mapper has for a logical volume, or for a layer below it."""
    parts = [part.replace("-", "--") for part in (group, volume)]
    return "-".join([*parts, layer] if layer else parts)


def member_tag(group_hash: str, generation: int) -> str:
    """Return the tag of a member of a group."""
    return f"{MEMBER}{group_hash}.{generation}"


def split_path(path: str) -> tuple[str, str]:
    """Return volume group and thin pool of `VG[/POOL]`."""
    group, _, pool = path.partition("/")
    return group, pool or _DEFAULT_POOL


def path_error(path: str) -> str:
    """Why a pool's path cannot be `VG[/POOL]`, with what to do; empty: it can."""
    group, separator, pool = path.partition("/")
    if path.startswith("/"):
        return f"{path!r} is a path: give the names of a volume group and its thin pool, as in lvm:VG or lvm:VG/POOL"
    if not _VG.fullmatch(group) or group in {".", ".."}:
        return f"{group!r} cannot be the name of a volume group: give one that `vgs` shows, as in lvm:VG or lvm:VG/POOL"
    if separator and (not _LV.fullmatch(pool) or pool in {".", ".."}):
        return f"{pool!r} cannot be the name of a thin pool: give one that `lvs {group}` shows, or leave it out for {_DEFAULT_POOL!r}"
    if pool and parse(pool):
        return f"{pool!r} is what a volume of a pool would be called: give the name of a thin pool"
    return ""

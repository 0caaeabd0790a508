"""Records as tags of LVM: a logical volume with its record is made, changed and removed in one commit of its volume group.

A tag holds few characters, and the manuals let it have 1,024. So a record is compressed, written in base64url and cut in pieces,
and each piece says whose it is:

    tm.<kind>.<hash>.<generation>.<piece>-<pieces>.<checksum>=<data>

Of two devices with one kind and hash the one of the higher generation is the object. Checksum and number of pieces tell a
record that somebody has edited by hand, or of which a tag is missing.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import Kind

DRAFT = "tm.draft"
"""Of a logical volume that is being made: nobody has been promised it, and one that is found at start is removed."""

LONGEST = 999
"""Characters of a tag that is written here: lvm's manuals allow 1,024, and its code any number."""

_POOL = "tidemark.pool="
_OURS = "tm."
_PIECE = re.compile(
    r"tm\.(?P<kind>[vsg])\.(?P<hash>[0-9a-f]{32})\.(?P<generation>0|[1-9][0-9]{0,17})\.(?P<number>[0-9]{1,4})-"
    r"(?P<count>[0-9]{1,4})\.(?P<checksum>[0-9a-f]{8})=(?P<data>[A-Za-z0-9_-]*)",
    re.ASCII,
)
_LETTERS: dict[Kind, str] = {"volume": "v", "snapshot": "s", "group": "g"}
_KINDS: dict[str, Kind] = {letter: kind for kind, letter in _LETTERS.items()}
_DATA = 900
"""Characters of a record in one tag; before them stand at most 80."""
_LARGEST = 4 << 20
"""Bytes of a record: more would be no record of ours, but a bomb."""


class Tagged(NamedTuple):
    """A record that was read from tags."""

    kind: Kind
    hash: str
    generation: int
    record: bytes


def to_tags(record: bytes, kind: Kind, hash: str, generation: int) -> list[str]:  # noqa: A002  # as in ids
    """Return a record as tags, each shorter than 1,000 characters. `generation`: 1 for a new object."""
    packed = zlib.compress(record, 9)
    checksum = _checksum(packed, kind, hash, generation)
    text = base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
    pieces = [text[at : at + _DATA] for at in range(0, len(text), _DATA)]
    return [
        f"tm.{_LETTERS[kind]}.{hash}.{generation}.{number}-{len(pieces)}.{checksum:08x}={piece}"
        for number, piece in enumerate(pieces)
    ]


def from_tags(tags: Iterable[str], name: str = "") -> Tagged | None:
    """Return the record in the tags of a logical volume; None: it has none of ours. `name`: the volume's, for messages.

    Raises Damaged for tags of ours that are no record, or of several.
    """
    records = records_of(tags, name)
    if len(records) > 1:
        texts = ", ".join(f"{record.kind} {record.hash}.{record.generation}" for record in records)
        raise Damaged(f"{_named(name)} has the records of several objects in its tags ({texts}): {_REMEDY}")
    return records[0] if records else None


def records_of(tags: Iterable[str], name: str = "") -> list[Tagged]:
    """Return all records in tags, as those of a volume group, which has one for each group snapshot. Raises Damaged."""
    pieces: dict[tuple[str, str, int], list[re.Match[str]]] = {}
    for tag in tags:
        if tag == DRAFT or not tag.startswith(_OURS):
            continue
        match = _PIECE.fullmatch(tag)
        if match is None:
            raise Damaged(f"{_named(name)} has the tag {tag[:80]!r}, which no driver wrote: {_REMEDY}")
        pieces.setdefault((match["kind"], match["hash"], int(match["generation"])), []).append(match)
    return [_joined(*key, found, name) for key, found in sorted(pieces.items())]


def pool_tag(pool: Mapping[str, Any]) -> str:
    """Return the tag by which a volume group is a pool: its identity as JSON."""
    text = json.dumps(dict(pool), separators=(",", ":")).encode()
    return _POOL + base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def pool_tags(tags: Iterable[str]) -> list[str]:
    """Return those of the tags that make a volume group a pool: one, or none."""
    return [tag for tag in tags if tag.startswith(_POOL)]


def pool_of(tags: Iterable[str], name: str = "") -> dict[str, Any] | None:
    """Return the identity in the tags of a volume group; None: it is no pool. Raises Damaged for one that cannot be read."""
    found = pool_tags(tags)
    if not found:
        return None
    if len(found) > 1:
        raise Damaged(f"{_named(name)} has {len(found)} tags {_POOL}...: remove the wrong one with vgchange --deltag")
    try:
        identity = json.loads(_decoded(found[0].removeprefix(_POOL)))
        if not isinstance(identity, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{_named(name)} has a tag {_POOL}... that cannot be read ({error}): restore it") from error
    return identity


def changes(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Return the arguments by which lvchange or vgchange makes one set of tags the other, in one commit."""
    old, new = set(before), set(after)
    arguments = []
    for option, tags in (("--deltag", old - new), ("--addtag", new - old)):
        for tag in sorted(tags):
            arguments += [option, tag]
    return arguments


def additions(tags: Iterable[str]) -> list[str]:
    """Return the arguments by which lvcreate, vgcreate, lvchange or vgchange adds tags."""
    return changes((), tags)


_REMEDY = "put its tags back as they were, or remove it by hand if nothing needs it"


def _joined(letter: str, digest: str, generation: int, found: list[re.Match[str]], name: str) -> Tagged:
    kind = _KINDS[letter]
    called = f"{_named(name)}: the record of {kind} {digest}.{generation} in its tags"
    numbers = sorted(int(match["number"]) for match in found)
    counts, checksums = {match["count"] for match in found}, {match["checksum"] for match in found}
    if len(counts) > 1 or len(checksums) > 1 or numbers != list(range(int(min(counts)))):
        raise Damaged(f"{called} is not whole: {_REMEDY}")
    text = "".join(match["data"] for match in sorted(found, key=lambda match: int(match["number"])))
    try:
        packed = _decoded(text)
        if _checksum(packed, kind, digest, generation) != int(min(checksums), 16):
            raise ValueError("its checksum does not match")
        unpacking = zlib.decompressobj()
        record = unpacking.decompress(packed, _LARGEST)
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError("it does not end where it should")
    except (ValueError, zlib.error) as error:
        raise Damaged(f"{called} cannot be read ({error}): {_REMEDY}") from error
    return Tagged(kind, digest, generation, record)


def _checksum(packed: bytes, kind: Kind, digest: str, generation: int) -> int:
    return zlib.crc32(packed, zlib.crc32(f"{kind}.{digest}.{generation}".encode()))


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _named(name: str) -> str:
    return f"logical volume {name}" if "/" in name else f"volume group {name}" if name else "an object of lvm"

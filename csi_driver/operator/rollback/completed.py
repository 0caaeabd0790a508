"""Names that are spent: a VolumeRollback that completed is not done again when the same object is made again.

The UID is the rollback's name on the node, and a retry of the same object changes nothing there. But backup tools and
GitOps make deleted objects again, under a new UID. So the name is written down where only the operator writes and
where it lives as long as the disk's object: on the PersistentVolume, before the finalizer of the first object goes. A
user cannot take it away, and a claim that is replaced from a manifest does not lose it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from csi_driver.domain.errors import Damaged
from csi_driver.operator.rollback.resource import RollbackSpec

SPENT_ANNOTATION = "tidemark.dev/rollbacks"
REMEMBERED = 100
"""Names on one PersistentVolume. With the longest names about 60 KiB, of the 256 KiB that annotations may take."""


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One completed rollback: the object's UID, the VolumeSnapshot's name, and when (RFC 3339)."""

    uid: str
    snapshot: str
    at: str


def read_completed(volume: Mapping[str, Any] | None) -> dict[str, CompletionRecord]:
    """The spent names of a PersistentVolume, by `namespace/name`, oldest first. Raises Damaged where they cannot be read."""
    return {
        key: CompletionRecord(entry["uid"], entry["snapshot"], entry["at"]) for key, entry in _entries(volume).items()
    }


def record_completed(volume: Mapping[str, Any], wish: RollbackSpec, at: str) -> str:
    """The annotation's new value, with this rollback's name in it; what another version noted of others stays.

    Raises Damaged where the value cannot be read.
    """
    entries = _entries(volume)
    entries.pop(wish.key, None)
    entries[wish.key] = asdict(CompletionRecord(wish.uid, wish.snapshot, at))
    newest = list(entries.items())[-REMEMBERED:]
    return json.dumps(dict(newest), separators=(",", ":"))


def _entries(volume: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What the annotation holds, checked as far as it is read here: a name that is overlooked would be done twice."""
    meta = (volume or {}).get("metadata") or {}
    text = (meta.get("annotations") or {}).get(SPENT_ANNOTATION) or "{}"
    try:
        entries = json.loads(text)
        if not all(isinstance(entry[key], str) for entry in entries.values() for key in ("uid", "snapshot", "at")):
            raise TypeError("a value of uid, snapshot or at is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"annotation {SPENT_ANNOTATION} of PersistentVolume {meta.get('name', '')} cannot be read ({error!r}), so nobody can "
            "tell which rollbacks were done: let the newer controller that wrote it go on, or restore it"
        ) from error
    return dict(entries)

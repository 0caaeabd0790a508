"""Completed rollbacks by name: one that was completed is not repeated when the same object is created again.

The UID is the rollback's name on the node, and a retry of the same object changes nothing there. But backup tools and
GitOps create deleted objects again, under a new UID. So the name is recorded where only the controller writes, and where it lives as
long as the volume's object: on the PersistentVolume, before the finalizer of the first object goes. A user cannot remove it, and a
PVC that is replaced from a manifest does not lose it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from csi_driver.domain.errors import Damaged
from csi_driver.operator.rollback.resource import RollbackSpec

COMPLETED_ANNOTATION = "tidemark.dev/rollbacks"
MOST_RECORDS = 100
"""Names on one PersistentVolume. With the longest names about 60 KiB, of the 256 KiB that annotations may take."""


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """One completed rollback: the object's UID, the VolumeSnapshot's name, and when (RFC 3339)."""

    uid: str
    snapshot: str
    at: str


def read_completed(pv: Mapping[str, Any] | None) -> dict[str, CompletionRecord]:
    """Read the completed rollbacks of a PersistentVolume, by `namespace/name`, oldest first. Raises Damaged if unreadable."""
    return {key: CompletionRecord(entry["uid"], entry["snapshot"], entry["at"]) for key, entry in _entries(pv).items()}


def record_completed(pv: Mapping[str, Any], spec: RollbackSpec, at: str) -> str:
    """Return the annotation's new value, with this rollback in it; what another version noted of others stays.

    Raises Damaged if the value is unreadable.
    """
    entries = _entries(pv)
    entries.pop(spec.key, None)
    entries[spec.key] = asdict(CompletionRecord(spec.uid, spec.snapshot, at))
    newest = list(entries.items())[-MOST_RECORDS:]
    return json.dumps(dict(newest), separators=(",", ":"))


def _entries(pv: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Read the annotation, and check what is read here: a name that is overlooked would be rolled back twice."""
    metadata = (pv or {}).get("metadata") or {}
    text = (metadata.get("annotations") or {}).get(COMPLETED_ANNOTATION) or "{}"
    try:
        entries = json.loads(text)
        if not all(isinstance(entry[key], str) for entry in entries.values() for key in ("uid", "snapshot", "at")):
            raise TypeError("a value of uid, snapshot or at is not a string")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"annotation {COMPLETED_ANNOTATION} of PersistentVolume {metadata.get('name', '')}: unreadable ({error!r}), so it is "
            "unknown which rollbacks were completed; let the newer controller that wrote it go on, or restore the annotation"
        ) from error
    return dict(entries)

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

from csi_driver.operator.rollback_wish import Wish

SPENT_ANNOTATION = "tidemark.dev/rollbacks"
REMEMBERED = 100
"""Names on one PersistentVolume. With the longest names about 60 KiB, of the 256 KiB that annotations may take."""


@dataclass(frozen=True, slots=True)
class Spent:
    """One completed rollback: the object's UID, the VolumeSnapshot's name, and when (RFC 3339)."""

    uid: str
    snapshot: str
    at: str


def read_spent(volume: Mapping[str, Any] | None) -> dict[str, Spent]:
    """The spent names of a PersistentVolume, by `namespace/name`, oldest first. What cannot be read is left out."""
    text = ((volume or {}).get("metadata", {}).get("annotations") or {}).get(SPENT_ANNOTATION, "")
    try:
        entries = json.loads(text or "{}")
        return {key: Spent(e["uid"], e["snapshot"], e["at"]) for key, e in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def spend(volume: Mapping[str, Any], wish: Wish, at: str) -> str:
    """The annotation's new value, with this rollback's name in it."""
    entries = read_spent(volume)
    entries.pop(wish.key, None)
    entries[wish.key] = Spent(wish.uid, wish.snapshot, at)
    newest = list(entries.items())[-REMEMBERED:]
    return json.dumps({key: asdict(entry) for key, entry in newest}, separators=(",", ":"))

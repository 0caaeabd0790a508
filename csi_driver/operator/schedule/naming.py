"""Names, labels and annotations of a schedule's snapshots. Names follow from schedule, PVC and time, so a retry finds its own.

Labels, which have at most 63 characters, carry hashes to select by; annotations of the same keys carry the full names.
"""

import hashlib
from datetime import UTC, datetime

SCHEDULE = "tidemark.dev/schedule"
"""Label: hash of the schedule's namespace and name. Annotation: its name."""

VOLUME = "tidemark.dev/volume"
"""Label: hash of the volume handle. Annotation: the handle."""

CLAIM = "tidemark.dev/claim"
"""Annotation: the PVC that had the volume when the snapshot was created."""

MEMBERS = "tidemark.dev/members"
"""Annotation of a group: a JSON object from PVC to volume handle, as intended when it was created."""

NODE = "tidemark.dev/node"
"""Annotation of a group: the node of its volumes."""

SCHEDULED_FOR = "tidemark.dev/scheduled-for"
"""Annotation: the nominal time, in UTC."""

GROUP = "group.tidemark.dev/"
"""Prefix of the label by which a grouped schedule selects its members; the schedule's name follows, the value is the node."""

_FRONT = 36
"""Characters of the PVC's or schedule's name in a name that has at most 63."""


def digest(*parts: str) -> str:
    """Return 32 hex digits over names; no name contains NUL."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def schedule_label(namespace: str, name: str) -> str:
    """Return the value of the label SCHEDULE: a new schedule of the same name owns the same snapshots."""
    return digest(namespace, name)


def snapshot_name(schedule: str, pvc: str, instant: int) -> str:
    """Return the name of the snapshot of a PVC at a nominal time: readable in front, unique by its end."""
    return _name(pvc, instant, digest("snapshot", schedule, pvc, str(instant)))


def group_name(schedule: str, node: str, instant: int) -> str:
    """Return the name of the group of a schedule on a node at a nominal time."""
    return _name(schedule, instant, digest("group", schedule, node, str(instant)))


def _name(front: str, instant: int, end: str) -> str:
    return f"{front[:_FRONT].rstrip('-.')}-{datetime.fromtimestamp(instant, UTC):%Y%m%d-%H%M%S}-{end[:10]}"

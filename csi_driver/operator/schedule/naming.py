"""What a schedule calls the things that it makes. Names follow from schedule, claim and time, so that a retry meets its own.

Labels, which have at most 63 characters, carry hashes to select by; annotations of the same keys carry the full names.
"""

import hashlib
from datetime import UTC, datetime

from csi_driver.operator.labels import KEEP_LABEL

SCHEDULE = "tidemark.dev/schedule"
"""Label: hash of the schedule's namespace and name. Annotation: its name."""

VOLUME = "tidemark.dev/volume"
"""Label: hash of the volume handle of the disk. Annotation: the handle."""

CLAIM = "tidemark.dev/claim"
"""Annotation: the claim that had the disk when the snapshot was made."""

MEMBERS = "tidemark.dev/members"
"""Annotation of a group: a JSON object from claim to volume handle, as meant when it was made."""

NODE = "tidemark.dev/node"
"""Annotation of a group: the node of its disks."""

SCHEDULED_FOR = "tidemark.dev/scheduled-for"
"""Annotation: the nominal time, in UTC."""

KEEP = KEEP_LABEL
"""Label that people put on a snapshot or a group, with any value: no schedule deletes it."""

GROUP = "group.tidemark.dev/"
"""Prefix of the label by which a grouped schedule gathers claims; the schedule's name follows, the value is the node."""

_FRONT = 36
"""Characters of a claim's or schedule's name in a name that has at most 63."""


def digest(*parts: str) -> str:
    """32 hex digits over names; no name contains NUL."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def schedule_label(namespace: str, name: str) -> str:
    """The value of the label SCHEDULE: a schedule that is made again under its name has its snapshots again."""
    return digest(namespace, name)


def snapshot_name(schedule: str, claim: str, instant: int) -> str:
    """The snapshot of a claim at a nominal time: readable in front, unmistakable at the end."""
    return _name(claim, instant, digest("snapshot", schedule, claim, str(instant)))


def group_name(schedule: str, node: str, instant: int) -> str:
    """The group of a schedule on a node at a nominal time."""
    return _name(schedule, instant, digest("group", schedule, node, str(instant)))


def _name(front: str, instant: int, end: str) -> str:
    return f"{front[:_FRONT].rstrip('-.')}-{datetime.fromtimestamp(instant, UTC):%Y%m%d-%H%M%S}-{end[:10]}"

"""The observed state of one schedule, as one value that the planner decides by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from csi_driver.domain.retention import SnapshotRecord
from csi_driver.operator.schedule.resource import Spec


@dataclass(frozen=True, slots=True)
class TargetPvc:
    """A PVC that the schedule selects. `refusal` says why no snapshot of it can be taken; then it has no handle."""

    name: str
    created: int
    handle: str = ""
    node: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedSnapshot(SnapshotRecord):
    """A snapshot or a group that the schedule created. `volumes` are (PVC, handle) pairs, more than one in a group."""

    kind: Literal["snapshot", "group"]
    uid: str
    version: str
    volumes: tuple[tuple[str, str], ...]
    node: str
    in_progress: bool
    """Whether it may still become ready: no other snapshot of its volumes is begun meanwhile."""
    deleting: bool
    """Whether it has a deletionTimestamp: it counts for nothing then."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class ObservedSchedule:
    """All that was observed of one schedule and around it. Handles are those of volumes."""

    schedule: Mapping[str, Any]
    """The API's document."""
    spec: Spec
    pvcs: Sequence[TargetPvc] = ()
    owned: Sequence[OwnedSnapshot] = ()
    bound_handles: frozenset[str] = frozenset()
    """Of all volumes that a PVC of the namespace has."""
    pvcs_without_handle: frozenset[str] = frozenset()
    """PVCs of the namespace whose volume is not known."""
    snapshot_counts: Mapping[str, int] = field(default_factory=dict)
    """Snapshots of each volume, whoever created them."""
    labelled: Mapping[str, str] = field(default_factory=dict)
    """PVCs that carry this schedule's group label, and its value."""
    expected_names: frozenset[str] = frozenset()
    """Snapshots and groups that were just created and that the informers may not show yet."""
    expected_handles: frozenset[str] = frozenset()
    """The volumes of those."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Snapshots and groups of all schedules that are in progress, by node."""
    in_flight_limit: int = 4

    @property
    def existing(self) -> list[OwnedSnapshot]:
        """The owned ones that are not being deleted."""
        return [snapshot for snapshot in self.owned if not snapshot.deleting]

    @property
    def handles_in_progress(self) -> frozenset[str]:
        """The volumes of which a snapshot of this schedule is in progress."""
        return self.expected_handles.union(
            handle for snapshot in self.existing if snapshot.in_progress for _, handle in snapshot.volumes
        )

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as it was read."""
        return self.schedule.get("status") or {}

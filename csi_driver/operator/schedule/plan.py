"""The plan of one reconciliation: what the executor does, in this order, and nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from csi_driver.operator.schedule.observed import TargetPvc
from csi_driver.operator.schedule.resource import StatusState


@dataclass(frozen=True, slots=True)
class SnapshotToCreate:
    """An object to create, of the volumes `handles` of the PVCs `pvcs`."""

    kind: Literal["snapshot", "group"]
    name: str
    node: str
    pvcs: tuple[str, ...]
    handles: tuple[str, ...]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GroupLabel:
    """The label of a grouped schedule on a PVC: `node`, or to be removed if that is empty."""

    pvc: str
    node: str


@dataclass(frozen=True, slots=True)
class RetainedSnapshot:
    """An object that must still exist when others are deleted because of it."""

    kind: Literal["snapshot", "group"]
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotToDelete:
    """An object to delete if its UID and version are still these."""

    kind: Literal["snapshot", "group"]
    name: str
    uid: str
    version: str
    reason: Literal["retention", "failed", "pvc"]
    volumes: Sequence[tuple[str, str]] = ()
    """PVCs and handles: those that must be gone if `reason` is pvc."""
    retained: frozenset[RetainedSnapshot] = frozenset()
    """The youngest ready ones of its volumes, if `reason` is retention."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event on the schedule."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(slots=True)
class Plan:
    """What to do, in this order: the status if a run starts, labels, creations, deletions, the status, events."""

    state: StatusState = field(default_factory=StatusState)
    starts_run: bool = False
    """Then the status is written before anything is created: the next leader knows by it which PVCs were selected."""
    labels: list[GroupLabel] = field(default_factory=list)
    creations: list[SnapshotToCreate] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    """PVCs of which nothing can be created at present, and why."""
    deletions: list[SnapshotToDelete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    status: Mapping[str, Any] = field(default_factory=dict)
    wake: int | None = None
    """When to reconcile again although nothing has changed."""
    overdue_since: int | None = None
    """When the first run was to start that has not succeeded yet."""

    def block(self, pvcs: Iterable[TargetPvc], reason: str) -> None:
        """Give the same reason for several PVCs."""
        self.blocked.update((pvc.name, reason) for pvc in pvcs)

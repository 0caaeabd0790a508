"""What the planner of rollbacks gets, and the actions that it may choose: both as values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from csi_driver.domain.errors import DriverError
from csi_driver.operator.rollback.completed import CompletionRecord
from csi_driver.operator.rollback.references import ResolvedReferences, UnresolvedReference
from csi_driver.operator.rollback.resource import Phase, RollbackSpec, RollbackStatus
from csi_driver.service.agents import VolumeDescription
from csi_driver.service.rollbacks import RollbackRequest

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ObservedRollback:
    """Everything that a plan rests on, read in this order: objects from the API, then the volume from its agent.

    `volume` is what the agent records, or why that is unknown; `pv` is its PersistentVolume, if that still exists. `completed` are
    the completed rollbacks that the PersistentVolume names, or why they are unknown. `safety_snapshots` are all of the namespace,
    `safety_handles` the handles of this rollback's own by name. `needed_snapshots` are names that must stay. `rejection` is the
    agent's final answer to Rollback in this process, `since_renewal` the seconds since this process renewed the hold.
    """

    spec: RollbackSpec
    status: RollbackStatus
    now: float
    driver: str
    target: ResolvedReferences | UnresolvedReference
    completed: Mapping[str, CompletionRecord] | UnresolvedReference
    volume: VolumeDescription | DriverError
    pv: Object | None = None
    pods: Collection[Object] = ()
    classes: Collection[Object] = ()
    safety_snapshots: Collection[Object] = ()
    safety_handles: Mapping[str, str] | None = None
    needed_snapshots: Collection[str] = ()
    rejection: DriverError | None = None
    since_renewal: float = float("inf")


@dataclass(frozen=True, slots=True)
class UpdateStatus:
    """Write the status, and reconcile again after `requeue_after` seconds."""

    phase: Phase
    reason: str
    message: str
    requeue_after: float = 0.0
    target: ResolvedReferences | None = None
    safety_snapshot: str = ""


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Add the finalizer: until Cleanup the object stays, so that its hold is released."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the volume, or renew the hold."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class CreateSafetySnapshot:
    """Create the safety snapshot of that number."""

    volume_id: str
    class_name: str
    number: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """Ask the agent to exchange the content."""

    request: RollbackRequest


@dataclass(frozen=True, slots=True)
class RecordCompletion:
    """Record on the PersistentVolume that a rollback of this name was completed."""

    at: float


@dataclass(frozen=True, slots=True)
class Release:
    """Release the hold on the volume."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Delete expired safety snapshots, as far as possible, and remove the finalizer."""

    expired: tuple[Object, ...] = ()
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class LeaveAlone:
    """Change nothing: another version is at work, and goes on when it leads again. The message says so to people."""

    message: str


Action = (
    UpdateStatus
    | AddFinalizer
    | Hold
    | CreateSafetySnapshot
    | RollBack
    | RecordCompletion
    | Release
    | Cleanup
    | LeaveAlone
    | Finished
)

"""What is seen of one VolumeRollback, and what can be done next: the two ends of a decision, as values."""

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
    """Everything that a decision rests on, read in this order: objects from the API, then the disk from its agent.

    `disk` is what the agent records, or why that is not known. `spent` are the names that are spent for the claim's disk, or
    why they are not known, `volume` its PersistentVolume if that is still there. `safeties` are all safety snapshots of the
    namespace, `handles` the handles of their contents by name. `refused` is the agent's last word on Rollback in this
    process, and `renewed` the seconds since this process renewed the hold.
    """

    wish: RollbackSpec
    progress: RollbackStatus
    now: float
    driver: str
    target: ResolvedReferences | UnresolvedReference
    spent: Mapping[str, CompletionRecord] | UnresolvedReference
    disk: VolumeDescription | DriverError
    volume: Object | None = None
    pods: Collection[Object] = ()
    classes: Collection[Object] = ()
    safeties: Collection[Object] = ()
    handles: Mapping[str, str] | None = None
    needed: Collection[str] = ()
    refused: DriverError | None = None
    renewed: float = float("inf")


@dataclass(frozen=True, slots=True)
class UpdateStatus:
    """Write the status, and look again after `wait` seconds."""

    phase: Phase
    reason: str
    message: str
    wait: float = 0.0
    target: ResolvedReferences | None = None
    safety: str = ""


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Put the finalizer on: from here to Tidy the object stays, so that its hold is released."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold the disk, or renew that."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class MakeSafety:
    """Make the safety snapshot of that number."""

    volume_id: str
    class_name: str
    number: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """Ask the agent for the exchange."""

    request: RollbackRequest


@dataclass(frozen=True, slots=True)
class RecordCompletion:
    """Write on the PersistentVolume that this name is spent."""

    at: float


@dataclass(frozen=True, slots=True)
class Release:
    """Give the disk back."""

    volume_id: str


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Delete surplus safety snapshots, as far as that goes, and take the finalizer away."""

    surplus: tuple[Object, ...] = ()
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Change nothing: another version is at it, and goes on when it leads again. The message says so to people."""

    message: str


Action = (
    UpdateStatus | AddFinalizer | Hold | MakeSafety | RollBack | RecordCompletion | Release | Cleanup | Stand | Finished
)

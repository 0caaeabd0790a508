"""A VolumeRollback as a value: what is asked for, how far it has come, and the names that are derived from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from csi_driver.domain.durations import parse_duration

FINALIZER = "tidemark.dev/rollback"
"""On a VolumeRollback from its first hold on the disk to the release."""

FIELDS = frozenset({"claimName", "snapshotName", "safetySnapshot", "volumeSnapshotClassName", "keepSafety", "timeout"})
"""Of a VolumeRollback's spec. What else stands there was asked of another version."""

_HOLDER_BYTES = 128


class Phase(StrEnum):
    """How far a rollback has come. Completed and Failed are final; before RollingBack the disk is untouched."""

    PENDING = "Pending"
    WAITING = "WaitingForRelease"
    SAFETY = "SafetySnapshot"
    ROLLING = "RollingBack"
    COMPLETED = "Completed"
    FAILED = "Failed"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the disk."""
        return self in (Phase.COMPLETED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class RollbackSpec:
    """What a VolumeRollback asks for; times in seconds, `created` since the Unix epoch by the API server's clock."""

    namespace: str
    name: str
    uid: str
    claim: str
    snapshot: str
    created: float
    safety: bool = True
    snapshot_class: str = ""
    keep: int = 3
    timeout: float = 600.0
    unknown: tuple[str, ...] = ()
    """Fields of the spec that this version does not have."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def holder(self) -> str:
        """Who holds the disk, as errors name it: the object for people, its UID so that no two are the same."""
        room = _HOLDER_BYTES - len(self.uid) - len("VolumeRollback  ")
        return f"VolumeRollback {self.key[:room]} {self.uid}"


@dataclass(frozen=True, slots=True)
class RollbackStatus:
    """How far it has come, from the status. Times in seconds since the epoch; 0: not yet.

    `started` is what the timeout counts from; `rolling` is when the first Rollback may have been sent, and stays set;
    `volume_id` is the disk that may be held, `volume_name` its PersistentVolume.
    """

    phase: Phase | None = None
    reason: str = ""
    message: str = ""
    started: float = 0.0
    rolling: float = 0.0
    ended: float = 0.0
    volume_id: str = ""
    volume_name: str = ""
    guarded: bool = False
    deleted: float = 0.0
    foreign: str = ""
    """The phase, where it is one of another version: then `phase` is None, and only that version knows what comes next."""


def parse_spec(rollback: Mapping[str, Any]) -> RollbackSpec:
    """The wish of an object that the API server admitted: the CRD has filled in what was left out."""
    meta, spec = rollback["metadata"], rollback["spec"]
    return RollbackSpec(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        claim=spec["claimName"],
        snapshot=spec["snapshotName"],
        created=seconds(meta["creationTimestamp"]),
        safety=spec.get("safetySnapshot", True),
        snapshot_class=spec.get("volumeSnapshotClassName", ""),
        keep=spec.get("keepSafety", 3),
        timeout=parse_duration(spec.get("timeout", "10m")),
        unknown=tuple(sorted(spec.keys() - FIELDS)),
    )


def read_progress(rollback: Mapping[str, Any]) -> RollbackStatus:
    """How far an object has come; without a status it has not begun."""
    meta, status = rollback["metadata"], rollback.get("status") or {}
    phase = status.get("phase") or ""
    known = phase in set(Phase)
    return RollbackStatus(
        phase=Phase(phase) if known else None,
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        started=seconds(status.get("startTime")) or seconds(meta["creationTimestamp"]),
        rolling=seconds(status.get("rollingBackTime")),
        ended=seconds(status.get("completionTime")),
        volume_id=status.get("volumeHandle", ""),
        volume_name=status.get("volumeName", ""),
        guarded=FINALIZER in meta.get("finalizers", ()),
        deleted=seconds(meta.get("deletionTimestamp")),
        foreign="" if known else str(phase),
    )


def unfinished(rollback: Mapping[str, Any]) -> bool:
    """Whether something is left to do."""
    progress = read_progress(rollback)
    return progress.phase is None or not progress.phase.final or progress.guarded


def seconds(stamp: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 where there is none."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


def stamp(moment: float) -> str:
    """An RFC 3339 time in UTC, to the second, as Kubernetes writes it."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

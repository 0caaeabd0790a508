"""A VolumeRollback as values: its spec, its status, and the names that are derived from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from csi_driver.domain.durations import parse_duration
from csi_driver.domain.timestamps import parse_optional_timestamp

FINALIZER = "tidemark.dev/rollback"
"""On a VolumeRollback from its first hold on the volume to the release."""

FIELDS = frozenset({"claimName", "snapshotName", "safetySnapshot", "volumeSnapshotClassName", "keepSafety", "timeout"})
"""Of a VolumeRollback's spec. Any other field was meant for another version."""

_HOLDER_BYTES = 128


class Phase(StrEnum):
    """How far a rollback has come. Completed and Failed are final; before RollingBack the volume is unchanged."""

    PENDING = "Pending"
    WAITING = "WaitingForRelease"
    SAFETY = "SafetySnapshot"
    ROLLING = "RollingBack"
    COMPLETED = "Completed"
    FAILED = "Failed"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the volume."""
        return self in (Phase.COMPLETED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class RollbackSpec:
    """The spec and identity of a VolumeRollback; times in seconds, `created` since the Unix epoch by the API server's clock."""

    namespace: str
    name: str
    uid: str
    pvc: str
    snapshot: str
    created: float
    safety: bool = True
    snapshot_class: str = ""
    keep_safety: int = 3
    timeout: float = 600.0
    unknown_fields: tuple[str, ...] = ()
    """Fields of the spec that this version does not have."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def pvc_key(self) -> str:
        """`namespace/name` of the PVC."""
        return f"{self.namespace}/{self.pvc}"

    @property
    def holder(self) -> str:
        """The holder of the volume, as errors name it: the object for people, its UID so that no two are the same."""
        rest = _HOLDER_BYTES - len(self.uid) - len("VolumeRollback  ")
        return f"VolumeRollback {self.key[:rest]} {self.uid}"


@dataclass(frozen=True, slots=True)
class RollbackStatus:
    """The progress of a VolumeRollback, from its status. Times in seconds since the epoch; 0: not yet.

    The timeout counts from `started_at`. `rolling_back_at` is when the first Rollback may have been sent, and stays set.
    `volume_id` is the volume that may be held, `pv_name` its PersistentVolume.
    """

    phase: Phase | None = None
    reason: str = ""
    message: str = ""
    started_at: float = 0.0
    rolling_back_at: float = 0.0
    completed_at: float = 0.0
    volume_id: str = ""
    pv_name: str = ""
    has_finalizer: bool = False
    deleted_at: float = 0.0
    unknown_phase: str = ""
    """The phase, if it is one of another version: then `phase` is None, and only that version knows what comes next."""
    has_outcome: bool = True
    """False: the phase is final, and an earlier version wrote it, without the condition `Complete`."""


def parse_spec(rollback: Mapping[str, Any]) -> RollbackSpec:
    """Read the spec of an object that the API server admitted: the CRD has filled in the defaults."""
    metadata, spec = rollback["metadata"], rollback["spec"]
    return RollbackSpec(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        pvc=spec["claimName"],
        snapshot=spec["snapshotName"],
        created=parse_optional_timestamp(metadata["creationTimestamp"]),
        safety=spec.get("safetySnapshot", True),
        snapshot_class=spec.get("volumeSnapshotClassName", ""),
        keep_safety=spec.get("keepSafety", 3),
        timeout=parse_duration(spec.get("timeout", "10m")),
        unknown_fields=tuple(sorted(spec.keys() - FIELDS)),
    )


def parse_status(rollback: Mapping[str, Any]) -> RollbackStatus:
    """Read the status of an object; without one it has not begun."""
    metadata, status = rollback["metadata"], rollback.get("status") or {}
    text = str(status.get("phase") or "")
    phase = Phase(text) if text in set(Phase) else None
    conditions = {condition["type"] for condition in status.get("conditions") or ()}
    return RollbackStatus(
        phase=phase,
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        started_at=parse_optional_timestamp(status.get("startTime"))
        or parse_optional_timestamp(metadata["creationTimestamp"]),
        rolling_back_at=parse_optional_timestamp(status.get("rollingBackTime")),
        completed_at=parse_optional_timestamp(status.get("completionTime")),
        volume_id=status.get("volumeHandle", ""),
        pv_name=status.get("volumeName", ""),
        has_finalizer=FINALIZER in metadata.get("finalizers", ()),
        deleted_at=parse_optional_timestamp(metadata.get("deletionTimestamp")),
        unknown_phase="" if phase else text,
        has_outcome=phase is None or not phase.final or "Complete" in conditions,
    )


def unfinished(rollback: Mapping[str, Any]) -> bool:
    """Whether something is left to do."""
    status = parse_status(rollback)
    return status.phase is None or not status.phase.final or status.has_finalizer or not status.has_outcome

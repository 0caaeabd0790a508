"""The status of a VolumeRollback: phase, reason and message for people, conditions for programs.

The conditions follow the API conventions: `Complete` and `Failed` as a Job has them, `Reconciling` and `Stalled` as kstatus reads
them, so that tools which know neither this kind nor its phases can wait for its end.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.operator.rollback.actions import UpdateStatus
from csi_driver.operator.rollback.resource import Phase, RollbackSpec

Condition = dict[str, Any]
Verdict = tuple[str, str, str]
"""Status, reason and message of a condition."""

EARLIER_NAMES = {"Complete": "Completed", "VolumeReleased": "DiskReleased"}
"""What an earlier version called a condition. `Completed` is still written, for scripts that wait for it."""

ALREADY_COMPLETED = ("AlreadyCompleted", "AlreadyDone")
"""Reasons of Completed, when an earlier object of the name did it. An earlier version wrote the second."""

_HELD_PHASES = (Phase.SAFETY, Phase.ROLLING)


def build_status(rollback: Mapping[str, Any], spec: RollbackSpec, update: UpdateStatus, now: float) -> dict[str, Any]:
    """Build the whole status after an action, with the times and names that earlier ones left."""
    old = rollback.get("status") or {}
    new = {key: value for key, value in old.items() if key != "conditions"}
    new |= {
        "observedGeneration": rollback["metadata"].get("generation", 1),
        "phase": str(update.phase),
        "reason": update.reason,
        "message": update.message,
    }
    new.setdefault("startTime", rollback["metadata"]["creationTimestamp"])
    if old.get("phase") == Phase.ROLLING and update.phase in (Phase.WAITING, Phase.PENDING, Phase.SAFETY):
        # It turned out not to have been carried out: it begins again, and so does its timeout.
        new["startTime"] = format_timestamp(now)
    if update.phase is Phase.ROLLING:
        new.setdefault("rollingBackTime", format_timestamp(now))
    if update.phase.final:
        new.setdefault("completionTime", format_timestamp(now))
    if update.target is not None:
        new |= {
            "volumeName": update.target.pv_name,
            "volumeHandle": update.target.volume_id,
            "snapshotHandle": update.target.snapshot_id,
        }
    if update.safety_snapshot:
        new["safetySnapshotName"] = update.safety_snapshot
    new["conditions"] = list(
        _conditions(old.get("conditions") or [], spec, update, new["observedGeneration"], format_timestamp(now))
    )
    return new


def _conditions(
    old: list[Condition], spec: RollbackSpec, update: UpdateStatus, generation: int, now: str
) -> Iterator[Condition]:
    by_type = {condition["type"]: condition for condition in old}
    verdicts = _verdicts(by_type, spec, update)
    for kind, (status, reason, message) in verdicts.items():
        last = _last(by_type, kind)
        yield {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": last["lastTransitionTime"] if last and last.get("status") == status else now,
        }
    # Those of a later version are its own to change.
    yield from (c for c in old if c["type"] not in verdicts and c["type"] not in EARLIER_NAMES.values())


def _last(by_type: Mapping[str, Condition], kind: str) -> Condition | None:
    return by_type.get(kind) or by_type.get(EARLIER_NAMES.get(kind, ""))


def _verdicts(by_type: Mapping[str, Condition], spec: RollbackSpec, update: UpdateStatus) -> dict[str, Verdict]:
    reason, message = update.reason, update.message
    complete, failed = update.phase is Phase.COMPLETED, update.phase is Phase.FAILED
    verdicts = {
        "Complete": (_status(complete), reason, message),
        "Failed": (_status(failed), reason, message),
        "Reconciling": (_status(not update.phase.final), reason, message),
        "Stalled": (_status(failed), reason, message),
        "VolumeReleased": _volume_released(by_type, update),
        "SafetySnapshotReady": _safety_snapshot_ready(by_type, spec, update),
    }
    return verdicts | {"Completed": verdicts["Complete"]}


def _volume_released(by_type: Mapping[str, Condition], update: UpdateStatus) -> Verdict:
    completed_now = update.phase is Phase.COMPLETED and update.reason not in ALREADY_COMPLETED
    if update.phase in _HELD_PHASES or completed_now:
        return "True", "Held", "nothing uses the volume"
    if update.phase is Phase.WAITING:
        return _status(update.reason == "VolumeReleased"), update.reason, update.message
    last = _last(by_type, "VolumeReleased")
    if last is not None:
        return last["status"], last["reason"], last["message"]
    return "Unknown", update.reason, update.message


def _safety_snapshot_ready(by_type: Mapping[str, Condition], spec: RollbackSpec, update: UpdateStatus) -> Verdict:
    if not spec.safety:
        return "False", "Disabled", "no safety snapshot is taken (safetySnapshot: false)"
    if update.safety_snapshot and update.phase in (Phase.ROLLING, Phase.COMPLETED):
        return "True", "Ready", f"VolumeSnapshot {update.safety_snapshot} has the content before the rollback"
    if update.phase is Phase.SAFETY:
        return "False", update.reason, update.message
    last = _last(by_type, "SafetySnapshotReady")
    if last is not None and (update.phase is Phase.ROLLING or update.phase.final):
        return last["status"], last["reason"], last["message"]
    return "False", "NotCreated", "no safety snapshot was created"


def _status(holds: bool) -> str:
    return "True" if holds else "False"

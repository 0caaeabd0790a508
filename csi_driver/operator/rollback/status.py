"""The status of a VolumeRollback: what was decided, in words and conditions that a person understands."""

from collections.abc import Mapping
from typing import Any

from csi_driver.operator.rollback.actions import UpdateStatus
from csi_driver.operator.rollback.resource import Phase, RollbackSpec, stamp

_HELD = (Phase.SAFETY, Phase.ROLLING)


def status_of(rollback: Mapping[str, Any], wish: RollbackSpec, say: UpdateStatus, now: float) -> dict[str, Any]:
    """The whole status after a decision, with the times and names that earlier ones left."""
    old = rollback.get("status") or {}
    new = {key: value for key, value in old.items() if key != "conditions"}
    new |= {
        "observedGeneration": rollback["metadata"].get("generation", 1),
        "phase": str(say.phase),
        "reason": say.reason,
        "message": say.message,
    }
    new.setdefault("startTime", rollback["metadata"]["creationTimestamp"])
    if old.get("phase") == Phase.ROLLING and say.phase in (Phase.WAITING, Phase.PENDING, Phase.SAFETY):
        # Found not to have been made: it begins again, and so does its timeout.
        new["startTime"] = stamp(now)
    if say.phase is Phase.ROLLING:
        new.setdefault("rollingBackTime", stamp(now))
    if say.phase.final:
        new.setdefault("completionTime", stamp(now))
    if say.target is not None:
        new |= {
            "volumeName": say.target.volume_name,
            "volumeHandle": say.target.volume_id,
            "snapshotHandle": say.target.snapshot_id,
        }
    if say.safety:
        new["safetySnapshotName"] = say.safety
    new["conditions"] = _conditions(old.get("conditions") or [], wish, say, new["observedGeneration"], now)
    return new


def _conditions(
    old: list[dict[str, Any]], wish: RollbackSpec, say: UpdateStatus, generation: int, now: float
) -> list[dict[str, Any]]:
    before = {condition["type"]: condition for condition in old}
    made = []
    verdicts = _verdicts(before, wish, say)
    for kind, (status, reason, message) in verdicts.items():
        condition = {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": stamp(now),
        }
        last = before.get(kind)
        if last is not None and last.get("status") == status:
            condition["lastTransitionTime"] = last["lastTransitionTime"]
        made.append(condition)
    # Those of another version are its own to change.
    made += [condition for condition in old if condition["type"] not in verdicts]
    return made


def _verdicts(before: Mapping[str, Any], wish: RollbackSpec, say: UpdateStatus) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message of each condition."""
    completed, failed = say.phase is Phase.COMPLETED, say.phase is Phase.FAILED
    verdicts = {}
    if say.phase in _HELD or (completed and say.reason != "AlreadyDone"):
        verdicts["DiskReleased"] = ("True", "Held", "nobody uses the disk")
    elif say.phase is Phase.WAITING:
        verdicts["DiskReleased"] = ("False" if say.reason != "DiskFree" else "True", say.reason, say.message)
    elif "DiskReleased" in before:
        last = before["DiskReleased"]
        verdicts["DiskReleased"] = (last["status"], last["reason"], last["message"])
    else:
        verdicts["DiskReleased"] = ("Unknown", say.reason, say.message)
    if not wish.safety:
        verdicts["SafetySnapshotReady"] = ("False", "Declined", "what the disk holds before the rollback is not kept")
    elif say.safety and say.phase in (Phase.ROLLING, Phase.COMPLETED):
        verdicts["SafetySnapshotReady"] = ("True", "Ready", f"VolumeSnapshot {say.safety} keeps what the disk held")
    elif say.phase is Phase.SAFETY:
        verdicts["SafetySnapshotReady"] = ("False", say.reason, say.message)
    elif "SafetySnapshotReady" in before and say.phase in (Phase.ROLLING, Phase.FAILED):
        last = before["SafetySnapshotReady"]
        verdicts["SafetySnapshotReady"] = (last["status"], last["reason"], last["message"])
    else:
        verdicts["SafetySnapshotReady"] = ("False", "NotMade", "no safety snapshot was made")
    verdicts["Completed"] = ("True" if completed else "False", say.reason, say.message)
    verdicts["Failed"] = ("True" if failed else "False", say.reason, say.message)
    return verdicts

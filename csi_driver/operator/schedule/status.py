"""The status of a schedule. What has not changed is written with the same words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.operator.schedule.naming import SCHEDULE
from csi_driver.operator.schedule.observed import ObservedSchedule, TargetPvc
from csi_driver.operator.schedule.plan import Plan
from csi_driver.operator.schedule.resource import ActiveRun

OLD_NAMES = {
    "lastScheduled": "lastScheduleTime",
    "lastSuccessful": "lastSuccessfulTime",
    "nextScheduled": "nextScheduleTime",
    "withoutClaim": "orphanedSnapshots",
}
"""Names of before, written beside the new ones for one release: a controller of the version before decides by the first two."""

KEYS = frozenset(
    {
        "observedGeneration",
        "selector",
        "times",
        "notBefore",
        "lastMissed",
        "run",
        "snapshots",
        "claims",
        "conditions",
        *OLD_NAMES,
        *OLD_NAMES.values(),
    }
)
"""The fields that this version writes. Other fields belong to another version, and stay."""

CONDITIONS = ("Ready", "ClaimsSelected", "Complete")

OLD_CONDITIONS = ("Covered",)
"""What versions before called ClaimsSelected: removed."""

LISTED_NAMES = 10
"""PVCs that a condition names; of more it tells the number."""

_Verdict = tuple[str, str, str]
"""Status, reason and message of a condition."""


def build_status(observed: ObservedSchedule, plan: Plan, now: int) -> dict[str, Any]:
    """Return the whole status after the plan."""
    spec, state = observed.spec, plan.state
    following = None if spec.suspend else spec.times.following(now)
    ready, failed = _count(observed)
    status: dict[str, Any] = {
        "observedGeneration": _generation(observed.schedule),
        "selector": f"{SCHEDULE}={spec.label}",
        "times": spec.times_text,
        "notBefore": _timestamp(state.not_before),
        "lastScheduleTime": _timestamp(state.scheduled),
        "lastSuccessfulTime": _timestamp(state.successful),
        "lastMissed": _timestamp(state.missed),
        "nextScheduleTime": _timestamp(None if following is None else following.nominal),
        "snapshots": ready.total(),
        "orphanedSnapshots": sum(count for handle, count in ready.items() if handle not in observed.bound_handles),
        "claims": [
            _pvc(pvc, plan, ready[pvc.handle], failed[pvc.handle])
            for pvc in sorted(observed.pvcs, key=lambda pvc: pvc.name)
        ],
        "run": _run(state.run),
        "conditions": _conditions(
            observed.schedule,
            {
                "Ready": _ready(observed),
                "ClaimsSelected": _selected(observed, plan),
                "Complete": _complete(observed, plan),
            },
            now,
        ),
    }
    status |= {old: status[new] for old, new in OLD_NAMES.items()}
    return {key: value for key, value in status.items() if value is not None}


def invalid_status(schedule: Mapping[str, Any], reason: str, message: str, now: int) -> dict[str, Any]:
    """Return the status of a schedule with an invalid spec: as before, but for Ready and the next time."""
    before = schedule.get("status") or {}
    status = {key: value for key, value in before.items() if key not in ("nextScheduled", "nextScheduleTime")}
    status["observedGeneration"] = _generation(schedule)
    status["conditions"] = _conditions(schedule, {"Ready": ("False", reason, message)}, now)
    return status


def run_with(run: Mapping[str, Any], waiting: Sequence[str], creating: Sequence[str]) -> dict[str, Any]:
    """Return a run of a status with other PVCs that wait and other snapshots that are being created."""
    return {**run, "waiting": [*waiting], "creating": [*creating], "making": [*creating]}


def _run(run: ActiveRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    # False is written, too: a patch leaves what it does not name as it was. `making` and `cutShort` are the names of before.
    fixed = {"scheduledFor": format_timestamp(run.instant), "incomplete": run.incomplete, "cutShort": run.incomplete}
    return run_with(fixed, run.waiting, run.creating)


def _count(observed: ObservedSchedule) -> tuple[Counter[str], Counter[str]]:
    """Ready and failed snapshots of each volume."""
    ready, failed = Counter[str](), Counter[str]()
    for snapshot in observed.existing:
        for handle in filter(None, (handle for _, handle in snapshot.volumes)):
            ready[handle] += snapshot.ready
            failed[handle] += snapshot.failed
    return ready, failed


def _ready(observed: ObservedSchedule) -> _Verdict:
    if observed.spec.suspend:
        return "False", "Suspended", "no snapshots are taken while spec.suspend is true"
    return "True", "Scheduled", f"snapshots are taken at {observed.spec.times_text}"


def _selected(observed: ObservedSchedule, plan: Plan) -> _Verdict:
    if not observed.pvcs:
        return "False", "NoClaims", "no PVC of this namespace matches"
    refused = [f"{pvc.name} ({pvc.refusal})" for pvc in observed.pvcs if pvc.refusal]
    if refused:
        return "False", "ClaimsSkipped", _list(refused)
    if plan.blocked:
        return "False", "ClaimsBlocked", _list([f"{name} ({reason})" for name, reason in sorted(plan.blocked.items())])
    return "True", "AllClaims", f"all {len(observed.pvcs)} PVCs that match"


def _complete(observed: ObservedSchedule, plan: Plan) -> _Verdict:
    state = plan.state
    if state.scheduled is None:
        return "Unknown", "NotRun", "no time has come yet"
    scheduled_for = format_timestamp(state.scheduled)
    if state.run is None:
        if state.successful == state.scheduled:
            return "True", "AllReady", f"every snapshot for {scheduled_for} is ready"
        return "False", "RunIncomplete", f"the run for {scheduled_for} ended before every snapshot was ready"
    errors = [
        f"{snapshot.name}: {snapshot.error or 'no error message'}"
        for snapshot in observed.existing
        if snapshot.instant == state.run.instant and snapshot.failed
    ]
    if errors:
        return "False", "SnapshotsFailed", _list(errors)
    count = len(state.run.waiting) + len(state.run.creating)
    return "False", "Running", f"{count} snapshots for {scheduled_for} are not ready yet"


def _conditions(schedule: Mapping[str, Any], verdicts: Mapping[str, _Verdict], now: int) -> list[dict[str, Any]]:
    before = {c.get("type"): c for c in (schedule.get("status") or {}).get("conditions") or []}
    # Conditions of other versions stay as they are.
    conditions = [c for kind, c in before.items() if kind not in CONDITIONS and kind not in OLD_CONDITIONS]
    for kind, (status, reason, message) in verdicts.items():
        last = before.get(kind, {})
        since = last["lastTransitionTime"] if last.get("status") == status else format_timestamp(now)
        conditions.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": since,
                "observedGeneration": _generation(schedule),
            }
        )
    return conditions


def _pvc(pvc: TargetPvc, plan: Plan, ready: int, failed: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": pvc.name, "kept": ready, "failed": failed}
    reason = pvc.refusal or plan.blocked.get(pvc.name, "")
    return entry | ({"skipped": reason} if reason else {})


def _generation(schedule: Mapping[str, Any]) -> int:
    return int(schedule["metadata"].get("generation", 1))


def _timestamp(instant: int | None) -> str | None:
    return None if instant is None else format_timestamp(instant)


def _list(entries: Sequence[str]) -> str:
    more = len(entries) - LISTED_NAMES
    return "; ".join(entries[:LISTED_NAMES]) + (f"; and {more} more" if more > 0 else "")

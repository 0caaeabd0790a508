"""The plan for one schedule, from what was observed. Pure: no clock, no API, nothing remembered."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from csi_driver.domain.retention import expired, failures_to_remove, youngest_ready
from csi_driver.domain.schedule_times import ScheduledTime
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.operator.schedule.create_plan import plan_creations
from csi_driver.operator.schedule.observed import ObservedSchedule, OwnedSnapshot
from csi_driver.operator.schedule.plan import Event, GroupLabel, Plan, RetainedSnapshot, SnapshotToDelete
from csi_driver.operator.schedule.resource import ActiveRun, InvalidSpec, StatusState, read_state
from csi_driver.operator.schedule.status import build_status, invalid_status


def plan_invalid(schedule: Mapping[str, Any], error: InvalidSpec, now: int) -> Plan:
    """Return the plan for an invalid spec: create nothing, delete nothing, and say why."""
    conditions = (schedule.get("status") or {}).get("conditions") or []
    reported = any(c.get("type") == "Ready" and c.get("message") == str(error) for c in conditions)
    events = [] if reported else [Event("Warning", error.reason, str(error))]
    return Plan(events=events, status=invalid_status(schedule, error.reason, str(error), now))


def plan(observed: ObservedSchedule, now: int) -> Plan:
    """Return the plan for a schedule with a valid spec."""
    result = Plan()
    _start_due_run(observed, result, now)
    if result.starts_run:
        result.wake = now
    else:
        _continue_run(observed, result, now)
        if not observed.spec.grouped:
            result.labels += [GroupLabel(name, "") for name in sorted(observed.labelled)]
        result.deletions += _deletions(observed)
        result.wake = _next_start(observed, now)
        result.overdue_since = _overdue_since(observed, result.state, now)
    result.status = build_status(observed, result, now)
    return result


def _start_due_run(observed: ObservedSchedule, plan: Plan, now: int) -> None:
    """Start the run that is due, if one is, or note that it was missed."""
    spec, state = observed.spec, read_state(observed.status)
    if (state.suspended and not spec.suspend) or (state.times and state.times != spec.times_text):
        # Resumed, or its times were changed: ignore times before that.
        state = replace(state, not_before=now)
    plan.state = state = replace(state, times=spec.times_text, suspended=spec.suspend)
    if spec.suspend:
        plan.state = replace(state, run=None)
        return
    due = spec.times.latest(now)
    if due is None or due.nominal <= _last_handled_time(observed, state, due, now):
        return
    if now > due.deadline:
        plan.state = replace(state, missed=due.nominal)
        plan.events.append(_missed(due))
        return
    run = _new_run(observed, due)
    plan.starts_run = True
    plan.state = replace(state, scheduled=due.nominal, run=run)
    if state.run is not None and state.run.instant != run.instant and state.run.waiting:
        plan.events.append(_incomplete(state.run.waiting))
    plan.events.append(Event("Normal", "RunStarted", f"{len(run.waiting)} PVCs at {format_timestamp(run.instant)}"))


def _last_handled_time(observed: ObservedSchedule, state: StatusState, due: ScheduledTime, now: int) -> int:
    """Return the nominal time up to which no run starts any more.

    A time in the future is not believed: the clock was ahead when it was written, and it must not stop the schedule until then. If
    the status is lost, the newest owned snapshot says which run was the last. Whether that run was complete is not known then, so it
    is repeated until its deadline: what it created is found by name.
    """
    own = [snapshot.instant for snapshot in observed.owned if snapshot.instant <= now]
    scheduled = state.scheduled
    if scheduled is None and own:
        newest = max(own)
        in_time = newest == due.nominal and now <= due.deadline
        scheduled = newest - 1 if in_time else newest
    elif scheduled is not None and scheduled > now:
        scheduled = max(own, default=0)
    return _latest_past(now, observed.spec.created, state.not_before, scheduled, state.missed)


def _overdue_since(observed: ObservedSchedule, state: StatusState, now: int) -> int | None:
    """Return when the first run was to start that has not succeeded yet, or None if none is missing."""
    spec = observed.spec
    if spec.suspend:
        return None
    ready = [snapshot.instant for snapshot in observed.owned if snapshot.ready]
    successful = state.successful if state.successful is not None else max(ready, default=None)
    following = spec.times.following(_latest_past(now, spec.created, state.not_before, successful))
    return following.start_time if following is not None and following.start_time <= now else None


def _incomplete(pvcs: tuple[str, ...]) -> Event:
    """Return the event for PVCs that a run did not reach before the next time."""
    names = ", ".join(pvcs[:10])
    return Event(
        "Warning", "RunIncomplete", f"the next run is due, and no snapshot was taken of {len(pvcs)} PVCs: {names}"
    )


def _new_run(observed: ObservedSchedule, due: ScheduledTime) -> ActiveRun:
    """The PVC whose last snapshot is oldest comes first, so that incomplete runs do not always miss the same ones."""
    done = {name for snapshot in observed.owned if snapshot.instant == due.nominal for name, _ in snapshot.volumes}
    newest: dict[str, int] = {}
    for snapshot in observed.owned:
        for _, handle in snapshot.volumes:
            newest[handle] = max(newest.get(handle, 0), snapshot.instant)
    waiting = [c for c in observed.pvcs if not c.refusal and c.created <= due.start_time and c.name not in done]
    waiting.sort(key=lambda pvc: (newest.get(pvc.handle, 0), pvc.name))
    return ActiveRun(due.nominal, tuple(pvc.name for pvc in waiting))


def _missed(due: ScheduledTime) -> Event:
    return Event(
        "Warning",
        "RunMissed",
        f"the run for {format_timestamp(due.nominal)} did not start until {format_timestamp(due.deadline)}: startingDeadline has "
        "passed, so it is skipped",
    )


def _latest_past(now: int, *times: int | None) -> int:
    return max((time for time in times if time is not None and time <= now), default=0)


def _continue_run(observed: ObservedSchedule, result: Plan, now: int) -> None:
    if result.state.run is None:
        return
    run = _progress(result.state.run, observed)
    latest = observed.spec.times.latest(now)
    if run.waiting and latest is not None and latest.nominal > run.instant:
        # The next time has come and no run started for it: it was missed, or the times were changed. This run ends as well: a
        # snapshot taken now would bear the name of a time that is long past.
        result.events.append(_incomplete(run.waiting))
        run = replace(run, waiting=(), incomplete=True)
    plan_creations(observed, run, result)
    started = {pvc for creation in result.creations for pvc in creation.pvcs}
    run = replace(
        run,
        waiting=tuple(name for name in run.waiting if name not in started),
        creating=tuple(sorted({*run.creating, *(creation.name for creation in result.creations)})),
    )
    result.state = replace(result.state, run=None if run.over else run)
    if run.over and not run.incomplete:
        result.state = replace(result.state, successful=run.instant)
        result.events.append(
            Event("Normal", "RunCompleted", f"every snapshot for {format_timestamp(run.instant)} is ready")
        )


def _progress(run: ActiveRun, observed: ObservedSchedule) -> ActiveRun:
    """Return what is left of a run: no PVC waits whose snapshot exists, and no ready snapshot is being created."""
    of_run = [snapshot for snapshot in observed.owned if snapshot.instant == run.instant]
    done = {pvc for snapshot in of_run for pvc, _ in snapshot.volumes}
    eligible = {pvc.name for pvc in observed.pvcs if not pvc.refusal}
    existing = {snapshot.name: snapshot for snapshot in of_run if not snapshot.deleting}
    creating = {name for name in run.creating if name in observed.expected_names and name not in existing}
    creating |= {snapshot.name for snapshot in existing.values() if not snapshot.ready}
    return replace(
        run,
        waiting=tuple(name for name in run.waiting if name in eligible and name not in done),
        creating=tuple(sorted(creating)),
        # Somebody deleted a snapshot before it was ready: it is not created again, and the run is no success.
        incomplete=run.incomplete or any(name not in creating and name not in existing for name in run.creating),
    )


def _next_start(observed: ObservedSchedule, now: int) -> int | None:
    spec = observed.spec
    if spec.suspend:
        return None
    latest = spec.times.latest(now)
    # The second one: a time that has come, but whose jitter has not passed.
    following = [spec.times.following(now), spec.times.following(latest.nominal) if latest is not None else None]
    return min((time.start_time for time in following if time is not None and time.start_time > now), default=None)


def _deletions(observed: ObservedSchedule) -> list[SnapshotToDelete]:
    existing = observed.existing
    deletions: dict[str, SnapshotToDelete] = {}
    if observed.spec.delete_with_claim:
        for snapshot in existing:
            if _pvcs_are_gone(snapshot, observed) and not snapshot.protected and not snapshot.in_progress:
                deletions[snapshot.name] = _delete(snapshot, "pvc")
    for snapshot in failures_to_remove(existing):
        deletions.setdefault(snapshot.name, _delete(snapshot, "failed"))
    youngest = youngest_ready(existing)
    for snapshot in expired(existing, observed.spec.retention):
        retained = [youngest[handle] for handle in snapshot.series]
        deletions.setdefault(snapshot.name, _delete(snapshot, "retention", retained))
    return list(deletions.values())


def _pvcs_are_gone(snapshot: OwnedSnapshot, observed: ObservedSchedule) -> bool:
    return bool(snapshot.volumes) and all(
        handle and handle not in observed.bound_handles and pvc not in observed.pvcs_without_handle
        for pvc, handle in snapshot.volumes
    )


def _delete(
    snapshot: OwnedSnapshot, reason: Literal["retention", "failed", "pvc"], retained: Iterable[OwnedSnapshot] = ()
) -> SnapshotToDelete:
    return SnapshotToDelete(
        snapshot.kind,
        snapshot.name,
        snapshot.uid,
        snapshot.version,
        reason,
        snapshot.volumes,
        frozenset(RetainedSnapshot(other.kind, other.name, other.uid) for other in retained),
    )

"""One look at one schedule: from what was observed to what is to be done. No clock, no API, nothing remembered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from csi_driver.domain.retention import expired, failures_to_remove, youngest_ready
from csi_driver.domain.timestamps import format_instant
from csi_driver.operator.schedule.create_plan import CreatePlan, Label, Limits, SnapshotToCreate, busy_disks, next_steps
from csi_driver.operator.schedule.due import DueResult, overdue_since, start_due_run
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetClaim
from csi_driver.operator.schedule.resource import Spec, Unacceptable
from csi_driver.operator.schedule.status import StatusInputs, build_status, invalid_status
from csi_driver.operator.schedule.status_fields import ActiveRun, StatusState, read_state


@dataclass(frozen=True, slots=True)
class ObservedSchedule:
    """What was observed of one schedule and around it.

    `living` are the handles of all disks that a claim of the namespace has, `unsure` the names of claims whose disk is not
    known; `used` counts the snapshots of a disk, whoever made
    them; `labelled` are claims that carry this schedule's group label, and its value. `assumed` are names that were just created
    and may not be seen yet, `assumed_disks` their disks. Of the `limit` of snapshots in flight on a node, `flying` are.
    """

    schedule: Mapping[str, Any]
    claims: Sequence[TargetClaim] = ()
    made: Sequence[OwnedSnapshot] = ()
    living: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    used: Mapping[str, int] = field(default_factory=dict)
    labelled: Mapping[str, str] = field(default_factory=dict)
    assumed: frozenset[str] = frozenset()
    assumed_disks: frozenset[str] = frozenset()
    flying: Mapping[str, int] = field(default_factory=dict)
    limit: int = 4


@dataclass(frozen=True, slots=True)
class RetainedSnapshot:
    """An object that must still be there when others go for it."""

    kind: Literal["snapshot", "group"]
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotToDelete:
    """An object to delete, if it is still this very one and unchanged."""

    kind: Literal["snapshot", "group"]
    name: str
    uid: str
    version: str
    why: Literal["retention", "failed", "claim"]
    disks: Sequence[tuple[str, str]] = ()
    """Claims and handles: what must be gone where that is why."""
    stays: frozenset[RetainedSnapshot] = frozenset()
    """The youngest ready ones of its disks, where the rules of retention are why."""


@dataclass(frozen=True, slots=True)
class Event:
    """To be told on the schedule."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: `status` if it `begins` a run, labels, makes, removals, `status`, events.

    `wake` is when to look again although nothing has changed; `late` since when a run is missing.
    """

    status: Mapping[str, Any]
    begins: bool = False
    labels: Sequence[Label] = ()
    makes: Sequence[SnapshotToCreate] = ()
    removals: Sequence[SnapshotToDelete] = ()
    events: Sequence[Event] = ()
    wake: int | None = None
    late: int | None = None


def refuse(schedule: Mapping[str, Any], why: Unacceptable, now: int) -> Plan:
    """For a spec that cannot be followed: nothing is made and nothing is deleted."""
    events = () if _already_reported(schedule, why) else (Event("Warning", why.reason, str(why)),)
    return Plan(invalid_status(schedule, why.reason, str(why), now), events=events)


def decide(spec: Spec, seen: ObservedSchedule, now: int) -> Plan:
    """Decide about a schedule whose spec can be followed."""
    alive = [one for one in seen.made if not one.going]
    due = start_due_run(spec, read_state(seen.schedule.get("status") or {}), seen.claims, seen.made, now)
    if due.begun:
        # Written down before anything is made: whoever goes on from here knows which claims matched.
        return Plan(_status(spec, seen, due.state, CreatePlan(), now), begins=True, events=_events(due), wake=now)
    state, steps = due.state, CreatePlan()
    complete: list[Event] = []
    current = spec.plan.latest(now)
    if state.run is not None:
        run = _progress(state.run, seen)
        if run.waiting and current is not None and current.nominal > run.instant:
            # The next time has come and no run began for it: it was missed, or is nobody's wish since the times were changed.
            # That ends this run all the same: what it made now would bear the name of a time that is long past.
            due = replace(due, cut_short=run.waiting)
            run = replace(run, waiting=(), cut_short=True)
        waiting = [claim for name in run.waiting for claim in seen.claims if claim.name == name]
        room = Limits(seen.limit, seen.flying, seen.used, busy_disks(alive) | seen.assumed_disks)
        steps = next_steps(spec, run, waiting, room, seen.labelled)
        started = {claim for make in steps.makes for claim in make.claims}
        run = replace(
            run,
            waiting=tuple(name for name in run.waiting if name not in started),
            making=tuple(sorted({*run.making, *(make.name for make in steps.makes)})),
        )
        state = replace(state, run=None if run.over else run)
        if run.over and not run.cut_short:
            state = replace(state, successful=run.instant)
            complete = [Event("Normal", "Complete", f"every snapshot for {format_instant(run.instant)} is ready")]
    if not spec.grouped:
        steps.labels += [Label(name, "") for name in sorted(seen.labelled)]
    following = spec.plan.following(now) if not spec.suspend else None
    wakes = [time.start_time for time in (following,) if time is not None]
    if current is not None and not spec.suspend:
        # A time that has come, but whose jitter has not passed.
        after = spec.plan.following(current.nominal)
        wakes += [after.start_time] if after is not None and after.start_time > now else []
    return Plan(
        _status(spec, seen, state, steps, now),
        labels=steps.labels,
        makes=steps.makes,
        removals=_removals(spec, seen, alive),
        events=[*_events(due), *complete],
        wake=min(wakes, default=None),
        late=overdue_since(spec, state, seen.made, now),
    )


def _progress(run: ActiveRun, seen: ObservedSchedule) -> ActiveRun:
    """What of a run is left, by what is there: a claim whose snapshot exists does not wait, one that is ready is not made."""
    of_this = [one for one in seen.made if one.instant == run.instant]
    there = {claim for one in of_this for claim, _ in one.disks}
    eligible = {claim.name for claim in seen.claims if not claim.refusal}
    state = {one.name: one for one in of_this if not one.going}
    making = {name for name in run.making if name in seen.assumed and name not in state}
    making |= {one.name for one in state.values() if not one.unit.ready}
    return replace(
        run,
        waiting=tuple(name for name in run.waiting if name in eligible and name not in there),
        making=tuple(sorted(making)),
        # Somebody deleted what was not ready yet: it is not made again, and that it is gone is no success.
        cut_short=run.cut_short or any(name not in making and name not in state for name in run.making),
    )


def _removals(spec: Spec, seen: ObservedSchedule, alive: Sequence[OwnedSnapshot]) -> list[SnapshotToDelete]:
    by_name = {one.name: one for one in alive}
    gone: dict[str, SnapshotToDelete] = {}
    if spec.delete_with_claim:
        for one in alive:
            gone_with_claim = all(
                handle and handle not in seen.living and claim not in seen.unsure for claim, handle in one.disks
            )
            if one.disks and gone_with_claim and not one.unit.kept and not one.busy:
                gone[one.name] = _remove(one, "claim")
    units = [one.unit for one in alive]
    for unit in failures_to_remove(units):
        gone.setdefault(unit.name, _remove(by_name[unit.name], "failed"))
    youngest = {disk: _stay(by_name[unit.name]) for disk, unit in youngest_ready(units).items()}
    for unit in expired(units, spec.rules):
        stays = [youngest[disk] for disk in unit.series]
        gone.setdefault(unit.name, _remove(by_name[unit.name], "retention", stays))
    return list(gone.values())


def _remove(
    one: OwnedSnapshot, why: Literal["retention", "failed", "claim"], stays: Iterable[RetainedSnapshot] = ()
) -> SnapshotToDelete:
    return SnapshotToDelete(one.kind, one.name, one.uid, one.version, why, one.disks, frozenset(stays))


def _stay(one: OwnedSnapshot) -> RetainedSnapshot:
    return RetainedSnapshot(one.kind, one.name, one.uid)


def _status(spec: Spec, seen: ObservedSchedule, state: StatusState, steps: CreatePlan, now: int) -> dict[str, Any]:
    following = spec.plan.following(now)
    findings = StatusInputs(
        seen.claims,
        [one for one in seen.made if not one.going],
        seen.living,
        steps.blocked,
        None if spec.suspend or following is None else following.nominal,
    )
    return build_status(spec, seen.schedule, state, findings, now)


def _events(due: DueResult) -> list[Event]:
    events = []
    if due.missed is not None:
        events.append(
            Event(
                "Warning",
                "Missed",
                f"no run could begin for {format_instant(due.missed.nominal)} until {format_instant(due.missed.deadline)}: "
                "nothing is made up for later than startingDeadline",
            )
        )
    if due.cut_short:
        some = ", ".join(due.cut_short[:10])
        events.append(
            Event(
                "Warning",
                "CutShort",
                f"the next time has come, and {len(due.cut_short)} claims were not reached: {some}",
            )
        )
    if due.begun and due.state.run is not None:
        events.append(
            Event(
                "Normal",
                "Begun",
                f"{len(due.state.run.waiting)} claims at {format_instant(due.state.run.instant)}",
            )
        )
    return events


def _already_reported(schedule: Mapping[str, Any], why: Unacceptable) -> bool:
    conditions = (schedule.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("message") == str(why) for c in conditions)

"""Whether a run is due: of all times that passed, only the last one, and only inside its deadline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csi_driver.domain.schedule_times import ScheduledTime
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetClaim
from csi_driver.operator.schedule.resource import Spec
from csi_driver.operator.schedule.status_fields import ActiveRun, StatusState


@dataclass(frozen=True, slots=True)
class DueResult:
    """The state after a look at the clock. `begun`: a run begins, which must be written down before anything is made.

    `cut_short` are the claims that the run before it did not come to.
    """

    state: StatusState
    begun: bool = False
    missed: ScheduledTime | None = None
    cut_short: tuple[str, ...] = ()


def start_due_run(
    spec: Spec, state: StatusState, claims: Sequence[TargetClaim], made: Sequence[OwnedSnapshot], now: int
) -> DueResult:
    """Begin the run that is due, if one is; or pass over it where it is too late."""
    if (state.suspended and not spec.suspend) or (state.times and state.times != spec.times):
        # Resumed, or given other times: what passed before is nobody's wish any more.
        state = replace(state, not_before=now)
    state = replace(state, times=spec.times, suspended=spec.suspend)
    if spec.suspend:
        return DueResult(replace(state, run=None))
    scheduled_time = spec.plan.latest(now)
    if scheduled_time is None or scheduled_time.nominal <= last_handled_time(spec, state, made, scheduled_time, now):
        return DueResult(state)
    if now > scheduled_time.deadline:
        return DueResult(replace(state, missed=scheduled_time.nominal), missed=scheduled_time)
    there = {claim for one in made if one.instant == scheduled_time.nominal for claim, _ in one.disks}
    newest = _newest_of(made)
    waiting = [c for c in claims if not c.refusal and c.created <= scheduled_time.start_time and c.name not in there]
    # Whose last snapshot is oldest comes first: where a run is cut short, it is not always the same ones that go without.
    waiting.sort(key=lambda claim: (newest.get(claim.handle, 0), claim.name))
    run = ActiveRun(scheduled_time.nominal, tuple(claim.name for claim in waiting))
    before = state.run
    cut_short = before.waiting if before is not None and before.instant != run.instant else ()
    return DueResult(replace(state, scheduled=scheduled_time.nominal, run=run), begun=True, cut_short=cut_short)


def last_handled_time(
    spec: Spec, state: StatusState, made: Sequence[OwnedSnapshot], scheduled_time: ScheduledTime, now: int
) -> int:
    """The nominal time up to which nothing is to be begun any more.

    What lies in the future is not believed: a clock ran ahead, and what it wrote must not stop the schedule until it is true.
    Where the status is lost, the newest own snapshot says which run was the last. Whether that run had come to its end is not known
    then, so it is gone through again while it is in time: what it made is found by name.
    """
    own = [one.instant for one in made if one.instant <= now]
    scheduled = state.scheduled
    if scheduled is None and own:
        newest = max(own)
        in_time = newest == scheduled_time.nominal and now <= scheduled_time.deadline
        scheduled = newest - 1 if in_time else newest
    elif scheduled is not None and scheduled > now:
        scheduled = max(own, default=0)
    marks = (spec.created, state.not_before, scheduled, state.missed)
    return max((mark for mark in marks if mark is not None and mark <= now), default=0)


def overdue_since(spec: Spec, state: StatusState, made: Sequence[OwnedSnapshot], now: int) -> int | None:
    """When the first run fired that has not succeeded yet; None where none is missing."""
    if spec.suspend:
        return None
    ready = [one.instant for one in made if one.unit.ready]
    successful = state.successful if state.successful is not None else max(ready, default=None)
    marks = [mark for mark in (spec.created, state.not_before, successful) if mark is not None and mark <= now]
    scheduled_time = spec.plan.following(max(marks, default=0))
    return scheduled_time.start_time if scheduled_time is not None and scheduled_time.start_time <= now else None


def _newest_of(made: Sequence[OwnedSnapshot]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for one in made:
        for _, handle in one.disks:
            newest[handle] = max(newest.get(handle, 0), one.instant)
    return newest

"""The times of a schedule: those of a cron line in a time zone, or every so many seconds of the Unix epoch.

All times are whole seconds of the Unix epoch. Nothing here reads a clock: the caller passes `now`. cronsim decides what a cron
line means when the clock changes, as Debian's cron does:

- A line whose minute and hour fields both begin with something other than `*` names times of day. A time of day that the clock
  skips happens at the first minute after the gap. A time of day that comes twice happens the first time only. So a nightly
  snapshot is taken once every night.
- Every other line names a rhythm. Skipped times are skipped, and times that come twice happen twice.

Two searches of cronsim are corrected here, both near a change of the clock (ADR 21).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import lru_cache
from hashlib import sha256
from itertools import takewhile
from typing import Protocol

from cronsim import CronSim, CronSimError

from csi_driver.domain.errors import InvalidRequest

_DAY = 86400
_HOUR = 3600

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Times(Protocol):
    """The nominal times of a schedule, before jitter."""

    def after(self, instant: int) -> int | None:
        """Return the first time later than `instant`, or None if no time follows."""
        ...

    def at_or_before(self, instant: int) -> int | None:
        """Return the last time not later than `instant`, or None if no time precedes it."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Each multiple of `seconds` since 1970-01-01T00:00:00Z: independent of when the schedule was created."""

    seconds: int

    def after(self, instant: int) -> int:
        """See Times."""
        return (instant // self.seconds + 1) * self.seconds

    def at_or_before(self, instant: int) -> int:
        """See Times."""
        return instant // self.seconds * self.seconds


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron line of five fields by the wall clock of `zone`.

    Raises InvalidRequest if the line is invalid or has no times.
    """

    line: str
    zone: tzinfo

    def __post_init__(self) -> None:
        try:
            next(CronSim(self._fields, datetime(2000, 1, 1)))
        except (CronSimError, StopIteration) as error:
            raise InvalidRequest(
                f"cron line {self.line!r} names no times ({error or 'no such day'}): write five fields, minute, hour, day of "
                "month, month and day of week, as in '15 3 * * *'"
            ) from error

    @property
    def _fields(self) -> str:
        fields = _NICKNAMES.get(self.line.strip().lower(), self.line)
        if len(fields.split()) != 5:
            raise CronSimError(f"{len(fields.split())} fields")
        return fields

    def after(self, instant: int) -> int | None:
        """See Times."""
        return _after(self, instant)

    def at_or_before(self, instant: int) -> int | None:
        """See Times."""
        return _at_or_before(self, instant)

    def search(self, instant: int, reverse: bool = False) -> Iterator[int]:
        """Yield what cronsim finds from `instant` on, or before it. The first ones may lie on the wrong side of `instant`."""
        start = datetime.fromtimestamp(instant, self.zone)
        return (int(time.timestamp()) for time in CronSim(self._fields, start, reverse=reverse))

    def local(self, instant: int) -> datetime:
        """Return the wall-clock time."""
        return datetime.fromtimestamp(instant, self.zone)


@lru_cache(maxsize=4096)
def _after(cron: Cron, instant: int) -> int | None:
    following = next((time for time in cron.search(instant) if time > instant), None)
    if following is None or cron.local(instant - _HOUR).utcoffset() == cron.local(following).utcoffset():
        return following
    # cronsim goes forward in whole hours: after a change by half an hour (Australia/Lord_Howe) it passes over times of a rhythm.
    # Its search backwards does not.
    earlier = takewhile(lambda time: time > instant, cron.search(following, reverse=True))
    return min(earlier, default=following)


@lru_cache(maxsize=4096)
def _at_or_before(cron: Cron, instant: int) -> int | None:
    before = next((time for time in cron.search(instant + 1, reverse=True) if time <= instant), None)
    if before is None or not cron.local(instant + 1).fold:
        return before
    # cronsim reads the second pass of an hour like the first: it passes over times of day of the first pass.
    later = takewhile(lambda time: time <= instant, cron.search(before))
    return max(later, default=before)


@dataclass(frozen=True, slots=True)
class Jitter:
    """A delay of at most `seconds`, fixed for each schedule, so that many schedules do not start in the same second."""

    seconds: int = 0
    share: float = 0.0
    """From 0 to below 1."""

    def delay(self, period: int) -> int:
        """Return the seconds after the nominal time, at most a quarter of the period."""
        return int(self.share * min(self.seconds, period // 4))


def jitter_for(uid: str, seconds: int) -> Jitter:
    """Return the jitter of a resource: its share follows from the UID alone."""
    return Jitter(seconds, int.from_bytes(sha256(uid.encode()).digest()[:6], "big") / (1 << 48))


DEADLINE_LIMIT = 3600
"""Seconds: without a grace of its own, a run may start late by half the period, and by no more than this."""


@dataclass(frozen=True, slots=True)
class ScheduledTime:
    """One time of a schedule. Names and annotations hold `nominal`; `start_time` is later by the jitter."""

    nominal: int
    start_time: int
    deadline: int
    """The last second at which the run may start."""


@dataclass(frozen=True, slots=True)
class ScheduleTimes:
    """Times, jitter, and the grace for late runs in seconds; None means half the period, at most an hour."""

    times: Times
    jitter: Jitter = Jitter()
    grace: int | None = None

    def scheduled(self, nominal: int) -> ScheduledTime:
        """Return the start and the deadline of one nominal time."""
        following = self.times.after(nominal)
        period = following - nominal if following is not None else _DAY
        start_time = nominal + self.jitter.delay(period)
        grace = self.grace if self.grace is not None else min(period // 2, DEADLINE_LIMIT)
        return ScheduledTime(nominal, start_time, start_time + grace)

    def latest(self, now: int) -> ScheduledTime | None:
        """Return the last time whose start has passed by `now`: of all missed runs, the only one that may still start."""
        nominal = self.times.at_or_before(now)
        while nominal is not None:
            scheduled = self.scheduled(nominal)
            if scheduled.start_time <= now:
                return scheduled
            nominal = self.times.at_or_before(nominal - 1)
        return None

    def following(self, instant: int) -> ScheduledTime | None:
        """Return the first time whose nominal time is later than `instant`."""
        nominal = self.times.after(instant)
        return None if nominal is None else self.scheduled(nominal)

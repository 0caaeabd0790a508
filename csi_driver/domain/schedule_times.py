"""When a schedule is due: the times of a cron line in a time zone, or every so many seconds of the Unix epoch.

All instants are whole seconds of the Unix epoch. Nothing here knows what time it is: `now` is always given. Cron lines are
read by cronsim in wall-clock time alone, without a zone; what a wall clock's time means on the two days of the
year when it is changed is decided here:

- A line whose minute and hour fields both begin with something else than `*` names times of day. A time of day that is
  left out when the clock goes forward happens at the first minute after the gap, and one that comes twice when the clock goes back
  happens the first time only: a nightly snapshot is made every night, once.
- Every other line names a rhythm. What is left out is left out, and what comes twice happens twice: a
  quarter-hourly snapshot is made after each quarter of an hour, whatever the clocks show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Protocol

from cronsim import CronSim, CronSimError

from csi_driver.domain.errors import InvalidRequest

_DAY = 86400
_FAR = 8 * 366 * _DAY
"""The rarest cron line that is still a schedule: 29 February, over a century that has none."""

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
        """The first time that is later than `instant`, or None where none comes any more."""
        ...

    def upto(self, instant: int) -> int | None:
        """The last time that is not later than `instant`; None where there is none within the last eight years."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Each multiple of `seconds` since 1970-01-01T00:00:00Z: the same times whenever it was created."""

    seconds: int

    def after(self, instant: int) -> int:
        """See Times."""
        return (instant // self.seconds + 1) * self.seconds

    def upto(self, instant: int) -> int:
        """See Times."""
        return instant // self.seconds * self.seconds


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron line of five fields by the wall clock of `zone`. Raises InvalidRequest for a line that has none."""

    line: str
    zone: tzinfo

    def __post_init__(self) -> None:
        try:
            next(CronSim(self._fields, datetime(2000, 1, 1)))
        except (CronSimError, StopIteration) as error:
            raise InvalidRequest(
                f"{self.line!r} names no times ({error or 'no such day'}): write five fields, minute, hour, day of month, "
                "month and day of week, as in '15 3 * * *'"
            ) from error

    @property
    def _fields(self) -> str:
        fields = _NICKNAMES.get(self.line.strip().lower(), self.line)
        if len(fields.split()) != 5:
            raise CronSimError(f"{len(fields.split())} fields")
        return fields

    @property
    def _times_of_day(self) -> bool:
        minute, hour, *_ = self._fields.split()
        return not minute.startswith("*") and not hour.startswith("*")

    def after(self, instant: int) -> int | None:
        """See Times."""
        return _after(self, instant)

    def upto(self, instant: int) -> int | None:
        """See Times."""
        return _upto(self, instant)

    def _walls(self, start: int, backwards: bool) -> Iterator[datetime]:
        """Wall-clock times of the line from about the wall-clock time of an instant on, or back."""
        wall = _wall(start, self.zone)
        return iter(CronSim(self._fields, wall, reverse=backwards))

    def _instants(self, wall: datetime) -> tuple[int, ...]:
        """What a time of the wall clock means: no instant, one or two."""
        first, second = (_epoch(wall.replace(tzinfo=self.zone, fold=fold)) for fold in (0, 1))
        if first == second:
            return (first,)
        if first < second:
            return (first,) if self._times_of_day else (first, second)
        # A gap: read with the offset before it, the time lies after the gap, and the other way round.
        return (_end_of_gap(second, first, self.zone),) if self._times_of_day else ()


@lru_cache(maxsize=4096)
def _after(cron: Cron, instant: int) -> int | None:
    """The wall clock is at most a day out of step with what comes: the best of all candidates within that is the answer."""
    best: int | None = None
    last_wall = datetime.max
    for wall in cron._walls(instant - cron_slack(cron.zone, instant), backwards=False):
        if wall > last_wall:
            break
        for candidate in cron._instants(wall):
            if candidate > instant and (best is None or candidate < best):
                best = candidate
                last_wall = _wall(best, cron.zone) + timedelta(seconds=cron_slack(cron.zone, best))
        if best is None and _epoch(wall.replace(tzinfo=UTC)) > instant + _FAR:
            return None
    return best


@lru_cache(maxsize=4096)
def _upto(cron: Cron, instant: int) -> int | None:
    best: int | None = None
    first_wall = datetime.min
    for wall in cron._walls(instant + cron_slack(cron.zone, instant) + 1, backwards=True):
        if wall < first_wall:
            break
        for candidate in cron._instants(wall):
            if candidate <= instant and (best is None or candidate > best):
                best = candidate
                first_wall = _wall(best, cron.zone) - timedelta(seconds=cron_slack(cron.zone, best))
        if best is None and _epoch(wall.replace(tzinfo=UTC)) < instant - _FAR:
            return None
    return best


def cron_slack(zone: tzinfo, instant: int) -> int:
    """How far wall-clock order and true order may differ near an instant, in seconds: nothing unless the clock changes.

    Offsets are looked at on both sides, a day away: no zone changes its clock twice in that time.
    """
    offsets = {datetime.fromtimestamp(instant + days * _DAY, zone).utcoffset() for days in (-1, 0, 1)}
    whole = [offset.total_seconds() for offset in offsets if offset is not None]
    return int(max(whole) - min(whole))


def _wall(instant: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None, fold=0)


def _epoch(moment: datetime) -> int:
    return int(moment.timestamp())


def _end_of_gap(before: int, after: int, zone: tzinfo) -> int:
    """The first instant after the change of the clock that lies between two instants."""
    offset = datetime.fromtimestamp(after, zone).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after


@dataclass(frozen=True, slots=True)
class Jitter:
    """Jitter: a fixed share of it for each schedule, so that many schedules of one time do not start in one second."""

    seconds: int = 0
    share: float = 0.0
    """From 0 to below 1."""

    def delay(self, period: int) -> int:
        """Seconds after the nominal time, at most a quarter of the period."""
        return int(self.share * min(self.seconds, period // 4))


def spread_of(uid: str, seconds: int) -> Jitter:
    """The share follows from the resource's UID alone."""
    from hashlib import sha256

    return Jitter(seconds, int.from_bytes(sha256(uid.encode()).digest()[:6], "big") / (1 << 48))


DEADLINE_LIMIT = 3600
"""Seconds: a late run may still be made within half the period, but no later than this where nothing else is said."""


@dataclass(frozen=True, slots=True)
class ScheduledTime:
    """One time of a schedule. `nominal` is what names and annotations hold; `fires` is later by the jitter."""

    nominal: int
    fires: int
    deadline: int
    """The last second at which the run may still begin."""


@dataclass(frozen=True, slots=True)
class ScheduleTimes:
    """Times, jitter and the grace for late runs. `grace` None: half the period, at most an hour."""

    times: Times
    spread: Jitter = Jitter()
    grace: int | None = None

    def occasion(self, nominal: int) -> ScheduledTime:
        """What belongs to one nominal time."""
        following = self.times.after(nominal)
        period = following - nominal if following is not None else _DAY
        fires = nominal + self.spread.delay(period)
        grace = self.grace if self.grace is not None else min(period // 2, DEADLINE_LIMIT)
        return ScheduledTime(nominal, fires, fires + grace)

    def latest(self, now: int) -> ScheduledTime | None:
        """The last occasion that has fired by `now`: of all that were missed, the only one that may still be made."""
        nominal = self.times.upto(now)
        while nominal is not None:
            occasion = self.occasion(nominal)
            if occasion.fires <= now:
                return occasion
            nominal = self.times.upto(nominal - 1)
        return None

    def following(self, instant: int) -> ScheduledTime | None:
        """The first occasion whose nominal time is later than `instant`."""
        nominal = self.times.after(instant)
        return None if nominal is None else self.occasion(nominal)

"""Which snapshots of a schedule go. Pure: what is kept follows from the snapshots alone, never from a clock.

A snapshot goes only if no rule keeps it; where there is no rule, nothing goes. "Now" is the youngest ready snapshot of the
series, so a schedule that stands still, or a clock that runs away, removes nothing by itself. Only ready snapshots count.
Buckets are those of the calendar in the schedule's zone, and of each bucket the youngest snapshot is kept: the last one of
an hour, of a day, of a week from Monday, of a month, of a year.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

FAILED_HISTORY_LIMIT = 3
"""Failed snapshots of one series that stay for somebody to look at."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """What is made and removed at once: a snapshot, or a group of snapshots."""

    name: str
    instant: int
    """The nominal time that it was made for, in seconds of the Unix epoch."""
    series: frozenset[str]
    """The disks that it holds a snapshot of: one, or one for each member of a group."""
    ready: bool = True
    failed: bool = False
    kept: bool = False
    """Whether it must stay whatever the rules say: somebody labelled it or a member so, or it is being read."""

    @property
    def age(self) -> tuple[int, str]:
        """Order of age; of two of one instant, the name decides, so that the order is the same each time."""
        return self.instant, self.name


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What is kept of each series. 0: the rule is not there. The counts of buckets include the one of "now"."""

    last: int = 0
    """The youngest so many."""
    max_age: int = 0
    """All that are not older than so many seconds."""
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    zone: tzinfo = UTC

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return any((self.last, self.max_age, self.hourly, self.daily, self.weekly, self.monthly, self.yearly))

    def buckets(self) -> Iterable[tuple[int, Callable[[int], int]]]:
        """Each rule of the calendar: how many buckets, and the number of an instant's bucket."""
        for count, number in (
            (self.hourly, self._hour),
            (self.daily, self._day),
            (self.weekly, lambda instant: (self._day(instant) - 1) // 7),
            (self.monthly, self._month),
            (self.yearly, lambda instant: self._local(instant).year),
        ):
            if count:
                yield count, number

    def _local(self, instant: int) -> datetime:
        return datetime.fromtimestamp(instant, self.zone)

    def _hour(self, instant: int) -> int:
        """The hour that comes twice when the clock goes back is two hours; zones off by half an hour have their own."""
        offset = self._local(instant).utcoffset()
        return (instant + (int(offset.total_seconds()) if offset else 0) % 3600) // 3600

    def _day(self, instant: int) -> int:
        return self._local(instant).toordinal()

    def _month(self, instant: int) -> int:
        local = self._local(instant)
        return local.year * 12 + local.month


def expired(units: Sequence[SnapshotRecord], rules: RetentionPolicy) -> list[SnapshotRecord]:
    """The ready units that no rule keeps for any of their series, oldest first.

    Never one that must stay, and never the youngest ready one of a series. A group is one unit: what keeps it for one
    member keeps all of it.
    """
    if not rules.any:
        return []
    ready = [unit for unit in units if unit.ready]
    wanted: set[str] = set()
    for series in _by_series(ready).values():
        wanted |= {unit.name for unit in _kept(series, rules)}
    return sorted((u for u in ready if not u.kept and u.series and u.name not in wanted), key=lambda unit: unit.age)


def youngest_ready(units: Iterable[SnapshotRecord]) -> dict[str, SnapshotRecord]:
    """The youngest ready unit of each series: never surplus, whatever the rules say."""
    ready = _by_series(unit for unit in units if unit.ready)
    return {name: max(series, key=lambda unit: unit.age) for name, series in ready.items()}


def _kept(series: list[SnapshotRecord], rules: RetentionPolicy) -> Iterable[SnapshotRecord]:
    """What the rules keep of one series."""
    youngest_first = sorted(series, key=lambda unit: unit.age, reverse=True)
    now = youngest_first[0].instant
    yield from youngest_first[: max(1, rules.last)]
    if rules.max_age:
        yield from (unit for unit in youngest_first if now - unit.instant <= rules.max_age)
    for count, number in rules.buckets():
        current = number(now)
        seen: set[int] = set()
        for unit in youngest_first:
            bucket = number(unit.instant)
            if bucket > current - count and bucket not in seen:
                seen.add(bucket)
                yield unit


def failures_to_remove(units: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    """The failed units that go, oldest first: those that a younger ready one has made up for, and all but the last few."""
    gone: dict[str, int] = defaultdict(int)
    failed = [unit for unit in units if unit.failed and not unit.ready]
    for series in _by_series(units).values():
        newest = max((unit.age for unit in series if unit.ready), default=None)
        youngest_first = sorted((u for u in series if u.failed and not u.ready), key=lambda u: u.age, reverse=True)
        for younger, unit in enumerate(youngest_first):
            if younger >= FAILED_HISTORY_LIMIT or (newest is not None and unit.age < newest):
                gone[unit.name] += 1
    return sorted(
        (u for u in failed if not u.kept and u.series and gone[u.name] == len(u.series)), key=lambda unit: unit.age
    )


def _by_series(units: Iterable[SnapshotRecord]) -> dict[str, list[SnapshotRecord]]:
    result: dict[str, list[SnapshotRecord]] = defaultdict(list)
    for unit in units:
        for name in unit.series:
            result[name].append(unit)
    return result

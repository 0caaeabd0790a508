"""Which snapshots of a schedule are deleted. Pure: that follows from the snapshots alone, never from a clock.

A snapshot is deleted only if no rule keeps it; without a rule, nothing is deleted. "Now" is the youngest ready snapshot of the series,
so a schedule that is suspended, or a clock that is wrong, deletes nothing. Only ready snapshots count. Buckets are those of the calendar
in the schedule's zone, and the youngest snapshot of each bucket is kept: the last one of an hour, of a day, of a week from Monday, of a
month, of a year.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TypeVar

FAILED_HISTORY_LIMIT = 3
"""Failed snapshots of one series that stay, so that their errors can be read."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot, or a group of snapshots, which is created and deleted as a whole."""

    name: str
    instant: int
    """The nominal time of its run, in seconds of the Unix epoch."""
    series: frozenset[str]
    """Handles of its volumes: one, or one for each member of a group."""
    ready: bool = True
    failed: bool = False
    protected: bool = False
    """Whether no rule may delete it: it or a member is labelled to be kept, or is being read."""

    @property
    def age(self) -> tuple[int, str]:
        """Sort key, oldest first; the name decides between two of one time, so that the order is always the same."""
        return self.instant, self.name


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What is kept of each series; 0 means no rule. The counts of buckets include the one of "now"."""

    last: int = 0
    """Number of the youngest ones."""
    max_age: int = 0
    """Age in seconds up to which all are kept."""
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
        """Yield each rule of the calendar: how many buckets, and the function from a time to its bucket."""
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
        """An hour that comes twice when the clock goes back is two buckets; zones off by half an hour have buckets of their own."""
        offset = self._local(instant).utcoffset()
        return (instant + (int(offset.total_seconds()) if offset else 0) % 3600) // 3600

    def _day(self, instant: int) -> int:
        return self._local(instant).toordinal()

    def _month(self, instant: int) -> int:
        local = self._local(instant)
        return local.year * 12 + local.month


_S = TypeVar("_S", bound=SnapshotRecord)


def expired(snapshots: Sequence[_S], policy: RetentionPolicy) -> list[_S]:
    """Return the ready snapshots that no rule keeps for any of their series, oldest first.

    Never a protected one, and never the youngest ready one of a series. What keeps a group for one member keeps all of it.
    """
    if not policy.any:
        return []
    ready = [snapshot for snapshot in snapshots if snapshot.ready]
    kept: set[str] = set()
    for series in _by_series(ready).values():
        kept |= {snapshot.name for snapshot in _kept(series, policy)}
    return sorted(
        (s for s in ready if not s.protected and s.series and s.name not in kept), key=lambda snapshot: snapshot.age
    )


def youngest_ready(snapshots: Iterable[_S]) -> dict[str, _S]:
    """Return the youngest ready snapshot of each series: it never expires."""
    ready = _by_series(snapshot for snapshot in snapshots if snapshot.ready)
    return {name: max(series, key=lambda snapshot: snapshot.age) for name, series in ready.items()}


def failures_to_remove(snapshots: Sequence[_S]) -> list[_S]:
    """Return the failed snapshots to delete, oldest first: those older than a ready one, and all but the last few."""
    superseded: dict[str, int] = defaultdict(int)
    failed = [snapshot for snapshot in snapshots if snapshot.failed and not snapshot.ready]
    for series in _by_series(snapshots).values():
        newest = max((snapshot.age for snapshot in series if snapshot.ready), default=None)
        youngest_first = sorted((s for s in series if s.failed and not s.ready), key=lambda s: s.age, reverse=True)
        for younger, snapshot in enumerate(youngest_first):
            if younger >= FAILED_HISTORY_LIMIT or (newest is not None and snapshot.age < newest):
                superseded[snapshot.name] += 1
    return sorted(
        (s for s in failed if not s.protected and s.series and superseded[s.name] == len(s.series)),
        key=lambda snapshot: snapshot.age,
    )


def _kept(series: Sequence[SnapshotRecord], policy: RetentionPolicy) -> Iterable[SnapshotRecord]:
    """Yield what the rules keep of one series."""
    youngest_first = sorted(series, key=lambda snapshot: snapshot.age, reverse=True)
    now = youngest_first[0].instant
    yield from youngest_first[: max(1, policy.last)]
    if policy.max_age:
        yield from (snapshot for snapshot in youngest_first if now - snapshot.instant <= policy.max_age)
    for count, number in policy.buckets():
        current = number(now)
        filled: set[int] = set()
        for snapshot in youngest_first:
            bucket = number(snapshot.instant)
            if bucket > current - count and bucket not in filled:
                filled.add(bucket)
                yield snapshot


def _by_series(snapshots: Iterable[_S]) -> dict[str, list[_S]]:
    result: dict[str, list[_S]] = defaultdict(list)
    for snapshot in snapshots:
        for name in snapshot.series:
            result[name].append(snapshot)
    return result

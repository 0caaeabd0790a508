"""Times of schedules: a decade of five zones, both changes of the clock, and what is made up for after an outage."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.schedule_times import Cron, Interval, Jitter, ScheduleTimes, jitter_for

ZONES = ("Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu")
"""Two with an hour's change in each hemisphere's order, one off by half an hour, one that changes by half an hour, one never."""

ODD_ZONES = (
    "Africa/Casablanca",
    "Africa/Cairo",
    "America/Havana",
    "Antarctica/Troll",
    "Pacific/Chatham",
    "Atlantic/Azores",
)
"""Changes at midnight, at Ramadan, by two hours, and in zones off by three quarters of an hour."""

FROM, UNTIL = 2026, 2036
LINES = (
    "30 2 * * *",
    "0 2 * * *",
    "15,45 1-3 * * *",
    "*/15 * * * *",
    "10 * * * *",
    "*/20 2 * * *",
    "5 */3 * * *",
    "0 3 * * 1",
    "0 0 29 2 *",
)
ODD_LINES = ("30 0 * * *", "15,45 0-3 * * *", "*/20 * * * *", "5 */3 * * *", "0-59/7 1-2 * * *")


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())


def local(instant: int, zone: str) -> datetime:
    return datetime.fromtimestamp(instant, ZoneInfo(zone))


def run_times(cron: Cron, start: int, end: int) -> Iterator[int]:
    instant = cron.after(start)
    while instant is not None and instant < end:
        yield instant
        instant = cron.after(instant)


def backwards(cron: Cron, start: int, end: int) -> Iterator[int]:
    """The times after `start` and before `end`, the last one first."""
    instant = cron.at_or_before(end - 1)
    while instant is not None and instant > start:
        yield instant
        instant = cron.at_or_before(instant - 1)


@cache
def changes(zone: str, start: int = FROM, end: int = UNTIL) -> list[int]:
    """The moments at which the clock changes in the decade, found hour by hour and then minute by minute."""
    found = []
    for hour in range(at(start, 1, 1), at(end, 1, 1), 3600):
        if local(hour, zone).utcoffset() != local(hour + 3600, zone).utcoffset():
            minutes = range(hour, hour + 3660, 60)
            found.append(next(m for m in minutes if local(m, zone).utcoffset() == local(hour + 3600, zone).utcoffset()))
    return found


def test_the_zones_change_as_often_as_they_should() -> None:
    assert [len(changes(zone)) for zone in ZONES] == [20, 20, 20, 20, 0]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("line", ["30 2 * * *", "0 2 * * *"])
def test_a_nightly_run_is_made_once_each_night_of_a_decade(zone: str, line: str) -> None:
    minute, hour = (int(field) for field in line.split()[:2])
    runs = list(run_times(Cron(line, ZoneInfo(zone)), at(FROM, 1, 1), at(UNTIL, 1, 1)))
    days = [local(run, zone).date() for run in runs]
    assert len(set(days)) == len(days)
    assert days == [days[0] + timedelta(days=n) for n in range(len(days))]
    assert len(days) in ((date(UNTIL, 1, 1) - date(FROM, 1, 1)).days + n for n in (-1, 0, 1))
    for run in runs:
        clock = local(run, zone)
        if (clock.hour, clock.minute) != (hour, minute):
            # That time of day was left out: the run is at the first minute after the gap.
            assert run in changes(zone)
        else:
            assert clock.fold == 0


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("line", LINES)
def test_around_every_change_of_the_clock(zone: str, line: str) -> None:
    """Minute by minute: a line is due when the wall clock shows one of its times, but for what the module's text says."""
    cron = Cron(line, ZoneInfo(zone))
    for change in changes(zone) or [at(2026, 3, 29, 1)]:
        check_around(cron, line, zone, change)


@pytest.mark.parametrize("zone", ODD_ZONES)
def test_around_changes_of_other_kinds(zone: str) -> None:
    assert changes(zone, 2024, 2028)
    for line in ODD_LINES:
        for change in changes(zone, 2024, 2028):
            check_around(Cron(line, ZoneInfo(zone)), line, zone, change)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("zone", ZONES[:-1])
def test_from_every_quarter_of_an_hour_around_a_change(zone: str, line: str) -> None:
    """A search may start inside the gap, inside the repeated hour, and a second beside each of them."""
    cron = Cron(line, ZoneInfo(zone))
    for change in changes(zone)[:2]:
        times = expected(line, zone, change - 40 * 3600, change + 40 * 3600)
        for start in (change + quarter * 900 + second for quarter in range(-13, 14) for second in (-1, 0, 1)):
            if following := [time for time in times if time > start]:
                assert cron.after(start) == following[0], local(start, zone)
            if before := [time for time in times if time <= start]:
                assert cron.at_or_before(start) == before[-1], local(start, zone)


def check_around(cron: Cron, line: str, zone: str, change: int) -> None:
    start, end = change - 14 * 3600, change + 14 * 3600
    times = expected(line, zone, start, end)
    assert list(run_times(cron, start - 1, end)) == times, local(change, zone)
    assert list(backwards(cron, start - 1, end)) == times[::-1], local(change, zone)


def expected(line: str, zone: str, start: int, end: int) -> list[int]:
    minutes = range(start - start % 60, end, 60)
    shown = walls(zone, minutes)
    due = [m for m in minutes if m >= start and matches(line, shown[m])]
    if line.startswith("*") or line.split()[1].startswith("*"):
        return due
    once: dict[datetime, int] = {}
    for minute in due:
        once.setdefault(shown[minute], minute)
    for change in (
        m for m in minutes if m >= start and m - 60 in shown and shown[m] - shown[m - 60] > timedelta(minutes=1)
    ):
        missing = shown[change - 60] + timedelta(minutes=1)
        while missing < shown[change]:
            if matches(line, missing):
                once[missing] = change
            missing += timedelta(minutes=1)
    return sorted(set(once.values()))


@cache
def walls(zone: str, minutes: range) -> dict[int, datetime]:
    """What the clock on the wall shows at each of these moments."""
    return {m: local(m, zone).replace(tzinfo=None) for m in minutes}


def matches(line: str, wall: datetime) -> bool:
    fields = line.split()
    values = (wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7)
    return all(value in numbers(field) for field, value in zip(fields, values, strict=True))


@cache
def numbers(field: str) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = ("0-59" if span == "*" else span).partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


# Found when the first test asks: a decade hour by hour takes seconds, and each process would else have them at its start.
TIMESTAMPS = st.integers(at(FROM, 1, 1), at(UNTIL, 1, 1)) | st.deferred(
    lambda: st.sampled_from(
        [
            change + seconds
            for zone in ZONES
            for change in changes(zone)
            for seconds in (-3600, -60, -1, 0, 1, 1800, 3600)
        ]
    )
)


@settings(deadline=None)
@given(st.sampled_from(LINES), st.sampled_from(ZONES), TIMESTAMPS)
def test_back_and_forth(line: str, zone: str, instant: int) -> None:
    cron = Cron(line, ZoneInfo(zone))
    following = cron.after(instant)
    assert following is not None
    assert following > instant
    assert cron.at_or_before(following) == following
    before = cron.at_or_before(following - 1)
    assert before is not None
    assert before <= instant
    assert cron.after(before) == following


@given(st.integers(1, 10**6), TIMESTAMPS)
def test_every_counts_from_the_epoch(seconds: int, instant: int) -> None:
    every = Interval(seconds)
    assert every.after(instant) % seconds == every.at_or_before(instant) % seconds == 0
    assert every.at_or_before(instant) <= instant < every.after(instant) == every.at_or_before(instant) + seconds


def test_short_names() -> None:
    assert Cron("@daily", ZoneInfo("Asia/Kathmandu")).after(at(2026, 1, 1)) == at(2026, 1, 1, 18, 15)
    assert Cron("@hourly", UTC).after(at(2026, 1, 1, 0, 30)) == at(2026, 1, 1, 1)


@pytest.mark.parametrize(
    "line", ["", "* * * *", "* * * * * *", "60 * * * *", "0 0 31 2 *", "x", "@often", "TZ=UTC 0 0 * * *", "*/0 * * * *"]
)
def test_lines_that_name_no_times(line: str) -> None:
    with pytest.raises(InvalidRequest, match="five fields"):
        Cron(line, UTC)


def test_the_default_grace_is_half_the_period_and_at_most_an_hour() -> None:
    assert ScheduleTimes(Interval(900)).scheduled(900).deadline == 900 + 450
    assert ScheduleTimes(Cron("0 3 * * *", UTC)).scheduled(at(2026, 1, 1, 3)).deadline == at(2026, 1, 1, 4)
    assert ScheduleTimes(Interval(900), grace=7200).scheduled(900).deadline == 900 + 7200


@given(st.uuids().map(str), st.integers(0, 10**6), st.sampled_from([60, 900, 3600, 86400]))
def test_jitter_is_fixed_and_at_most_a_quarter_of_the_period(uid: str, seconds: int, period: int) -> None:
    delay = jitter_for(uid, seconds).delay(period)
    assert 0 <= delay <= min(seconds, period // 4)
    assert delay == jitter_for(uid, seconds).delay(period)


def test_jitter_spreads() -> None:
    delays = [jitter_for(f"uid-{n}", 900).delay(3600) for n in range(1000)]
    assert len(set(delays)) > 500
    assert min(delays) < 20
    assert max(delays) > 880


@given(
    st.sampled_from([*(Interval(n) for n in (60, 600, 86400)), Cron("0 3 * * *", ZoneInfo("Europe/Berlin"))]),
    TIMESTAMPS,
    st.floats(0, 0.999),
)
def test_the_latest_run_is_the_only_candidate(times: Interval | Cron, now: int, share: float) -> None:
    plan = ScheduleTimes(times, Jitter(10**6, share))
    latest = plan.latest(now)
    assert latest is not None
    assert latest.nominal <= latest.start_time <= now
    following = plan.following(latest.nominal)
    assert following is not None
    assert following.start_time > now

"""Which snapshots go: examples that read like the documentation, and histories against the rules said once more."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.retention_model import ZONES, history, violations

from csi_driver.domain.retention import RetentionPolicy, SnapshotRecord, expired, failures_to_remove

HOUR = 3600
DAY = 24 * HOUR
NOON = int(datetime(2026, 6, 17, 12, tzinfo=UTC).timestamp())  # a Wednesday


def unit(instant: int, *series: str, **facts: bool) -> SnapshotRecord:
    return SnapshotRecord(f"{'+'.join(series) or 'a'}@{instant}", instant, frozenset(series or ["a"]), **facts)


def hours_back(count: int) -> list[SnapshotRecord]:
    return [unit(NOON - hour * HOUR) for hour in range(count)]


def stay(units: list[SnapshotRecord], rules: RetentionPolicy) -> list[str]:
    gone = expired(units, rules)
    return [f"{datetime.fromtimestamp(u.instant, UTC):%a %d %H}" for u in units if u not in gone]


def test_without_a_rule_nothing_goes() -> None:
    assert expired(hours_back(1000), RetentionPolicy()) == []


def test_the_last_so_many_stay() -> None:
    assert stay(hours_back(10), RetentionPolicy(last=3)) == ["Wed 17 12", "Wed 17 11", "Wed 17 10"]


def test_a_day_keeps_its_last_snapshot() -> None:
    assert stay(hours_back(24 * 5), RetentionPolicy(daily=3)) == ["Wed 17 12", "Tue 16 23", "Mon 15 23"]
    assert stay(hours_back(24 * 5), RetentionPolicy(weekly=2)) == ["Wed 17 12", "Sun 14 23"]


def test_rules_add_up() -> None:
    assert stay(hours_back(24 * 5), RetentionPolicy(last=2, hourly=3, daily=2)) == [
        "Wed 17 12",
        "Wed 17 11",
        "Wed 17 10",
        "Tue 16 23",
    ]


def test_a_day_is_that_of_the_zone() -> None:
    tokyo = RetentionPolicy(daily=2, zone=ZoneInfo("Asia/Tokyo"))
    assert stay(hours_back(48), tokyo) == ["Wed 17 12", "Tue 16 14"]


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    # On 2026-10-25 at 01:00 UTC clocks in Berlin go back from 03:00 to 02:00.
    change = int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp())
    quarters = [unit(change + quarter * 900) for quarter in range(-4, 4)]
    gone = expired(quarters, RetentionPolicy(hourly=2, zone=ZoneInfo("Europe/Berlin")))
    assert [u.instant - change for u in quarters if u not in gone] == [-900, 2700]


def test_time_that_passes_removes_nothing() -> None:
    """ "Now" is the youngest snapshot: what stays after an outage of years is what stayed before it."""
    units = hours_back(100)
    rules = RetentionPolicy(max_age=10 * HOUR)
    before = expired(units, rules)
    assert len(before) == 89
    assert expired([u for u in units if u not in before], rules) == []


def test_only_ready_ones_count() -> None:
    units = [
        unit(NOON, ready=False),
        unit(NOON - HOUR, ready=False, failed=True),
        *[unit(NOON - n * HOUR) for n in (2, 3)],
    ]
    assert [u.instant for u in expired(units, RetentionPolicy(last=1))] == [NOON - 3 * HOUR]


def test_what_must_stay_stays_and_counts() -> None:
    units = [unit(NOON), unit(NOON - HOUR, protected=True), unit(NOON - 2 * HOUR)]
    assert [u.instant for u in expired(units, RetentionPolicy(last=2))] == [NOON - 2 * HOUR]
    assert [u.instant for u in expired(units, RetentionPolicy(last=1))] == [NOON - 2 * HOUR]


def test_a_group_stays_whole_for_one_member() -> None:
    group = unit(NOON - 2 * HOUR, "a", "b")
    lone = [unit(NOON, "a"), unit(NOON - HOUR, "a")]
    assert expired([*lone, group], RetentionPolicy(last=1)) == [unit(NOON - HOUR, "a")]  # it is the last one of b
    both = [unit(NOON, "a"), unit(NOON, "b"), group]
    assert expired(both, RetentionPolicy(last=1)) == [group]
    assert expired([*both, unit(NOON - 3 * HOUR, "b")], RetentionPolicy(last=2)) == [unit(NOON - 3 * HOUR, "b")]


def test_a_unit_of_unknown_disks_is_left_alone() -> None:
    nobodys = SnapshotRecord("x", NOON - DAY, frozenset())
    assert expired([unit(NOON), nobodys], RetentionPolicy(last=1)) == []


def test_failures() -> None:
    def failed(hours: int, **facts: bool) -> SnapshotRecord:
        return unit(NOON - hours * HOUR, ready=False, failed=True, **facts)

    assert failures_to_remove([failed(n) for n in range(3)]) == []
    assert failures_to_remove([failed(n) for n in range(5)]) == [failed(4), failed(3)]
    assert failures_to_remove([unit(NOON), failed(1), failed(2, protected=True)]) == [failed(1)]
    assert failures_to_remove([failed(0), unit(NOON - HOUR)]) == []


@settings(max_examples=2000, deadline=None)
@given(st.integers(0, 1 << 64), st.integers(1, 16))
def test_histories(seed: int, length: int) -> None:
    assert history(random.Random(seed), length) == []


SERIES = st.frozensets(st.sampled_from("abc"), min_size=1)
MOMENTS = st.datetimes(datetime(2019, 1, 1), datetime(2031, 1, 1)).map(lambda d: int(d.replace(tzinfo=UTC).timestamp()))
UNITS = st.builds(SnapshotRecord, st.uuids().map(str), MOMENTS, SERIES, st.booleans(), st.booleans(), st.booleans())
COUNTS = st.integers(0, 5)
RULES = st.builds(
    RetentionPolicy,
    COUNTS,
    st.just(0) | st.integers(0, 5 * 366 * DAY),
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    st.sampled_from(ZONES).map(ZoneInfo),
)


@settings(deadline=None)
@given(st.lists(UNITS, max_size=20), RULES)
def test_any_units_and_rules(units: list[SnapshotRecord], rules: RetentionPolicy) -> None:
    assert violations(units, rules) == []


@pytest.mark.parametrize("zone", ZONES)
def test_what_is_left_after_a_hundred_days_of_steps_is_what_one_step_would_leave(zone: str) -> None:
    """The last snapshot of a week is the last of a day, and so on: no fine rule eats what a coarse one needs later."""
    rules = RetentionPolicy(last=3, hourly=24, daily=7, weekly=4, monthly=3, zone=ZoneInfo(zone))
    start = datetime(2025, 1, 1, tzinfo=UTC)
    everything = [unit(int((start + timedelta(hours=hour)).timestamp())) for hour in range(100 * 24)]
    left: list[SnapshotRecord] = []
    for one in everything:
        left.append(one)
        gone = expired(left, rules)
        left = [u for u in left if u not in gone]
    gone = expired(everything, rules)
    assert left == sorted(set(everything).difference(gone), key=lambda u: u.instant)
    months = {(d.year, d.month) for d in (datetime.fromtimestamp(u.instant, rules.zone) for u in left)}
    assert len(months) == 3

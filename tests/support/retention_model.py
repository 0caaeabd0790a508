"""The rules of retention said once more, unit by unit and rule by rule, and histories of schedules from a seed.

Nothing here shares code with csi_driver/domain/retention.py, and nothing here is quick.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from csi_driver.domain.retention import (
    FAILED_HISTORY_LIMIT,
    RetentionPolicy,
    SnapshotRecord,
    expired,
    failures_to_remove,
)

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
STEPS = (600, 900, 3600, 6 * 3600, 86400, 7 * 86400)


def may_go(unit: SnapshotRecord, units: Sequence[SnapshotRecord], rules: RetentionPolicy) -> bool:
    """Whether a ready unit may be removed: no rule keeps it in any of its series."""
    if not unit.ready or unit.protected or not unit.series or not rules.any:
        return False
    return not any(reason(unit, name, units, rules) for name in unit.series)


def reason(unit: SnapshotRecord, series: str, units: Sequence[SnapshotRecord], rules: RetentionPolicy) -> str:
    """Why a series keeps a unit; empty where it does not."""
    ready = [other for other in units if other.ready and series in other.series]
    younger = [other for other in ready if (other.instant, other.name) > (unit.instant, unit.name)]
    now = max(other.instant for other in ready)
    if not younger:
        return "the last ready one"
    if len(younger) < rules.last:
        return "keepLast"
    if rules.max_age and unit.instant >= now - rules.max_age:
        return "maxAge"
    for count, title in (
        (rules.hourly, "hour"),
        (rules.daily, "day"),
        (rules.weekly, "week"),
        (rules.monthly, "month"),
        (rules.yearly, "year"),
    ):
        own = bucket(unit.instant, title, rules.zone)
        if any(bucket(other.instant, title, rules.zone) == own for other in younger):
            continue
        if steps_between(own, bucket(now, title, rules.zone), title) < count:
            return title
    return ""


@lru_cache(maxsize=65536)
def bucket(instant: int, title: str, zone: tzinfo) -> tuple[int, ...]:
    local = datetime.fromtimestamp(instant, zone)
    if title == "hour":
        # The hour's start by this wall clock, as an instant: so the two hours of one name are two.
        return (instant - local.minute * 60 - local.second,)
    if title == "day":
        return local.year, local.month, local.day
    if title == "week":
        return tuple(local.isocalendar())[:2]
    if title == "month":
        return local.year, local.month
    return (local.year,)


def steps_between(older: tuple[int, ...], newer: tuple[int, ...], title: str) -> int:
    if title == "hour":
        # Up to half an hour is missing or doubled where a zone shifts by that much.
        return (newer[0] - older[0] + 1800) // 3600
    if title == "day":
        return (datetime(*newer) - datetime(*older)).days  # type: ignore[arg-type]
    if title == "week":
        mondays = [datetime.fromisocalendar(year, week, 1) for year, week in (older, newer)]
        return (mondays[1] - mondays[0]) // timedelta(weeks=1)
    if title == "month":
        return (newer[0] - older[0]) * 12 + newer[1] - older[1]
    return newer[0] - older[0]


def violations(units: Sequence[SnapshotRecord], rules: RetentionPolicy) -> list[str]:
    """What is wrong with the answer of the code for these units; nothing, if all is well."""
    gone = expired(units, rules)
    expected = sorted((u for u in units if may_go(u, units, rules)), key=lambda u: (u.instant, u.name))
    found = []
    if gone != expected:
        found.append(f"{[u.name for u in gone]} would go, {[u.name for u in expected]} may")
    for name in {series for unit in units for series in unit.series}:
        ready = [unit for unit in units if unit.ready and name in unit.series]
        if ready and all(unit in gone for unit in ready):
            found.append(f"nothing ready would stay of {name}")
    failed = failures_to_remove(units)
    for unit in units:
        if (unit in failed) != failure_may_go(unit, units):
            found.append(f"the failed {unit.name}: to go {unit in failed}")
    return found


def failure_may_go(unit: SnapshotRecord, units: Sequence[SnapshotRecord]) -> bool:
    if unit.ready or not unit.failed or unit.protected or not unit.series:
        return False
    for name in unit.series:
        younger = [u for u in units if name in u.series and (u.instant, u.name) > (unit.instant, unit.name)]
        if not any(u.ready for u in younger) and sum(u.failed and not u.ready for u in younger) < FAILED_HISTORY_LIMIT:
            return False
    return True


def some_rules(chance: random.Random) -> RetentionPolicy:
    def maybe(most: int) -> int:
        return chance.choice((0, 0, 1, chance.randint(1, most)))

    return RetentionPolicy(
        last=maybe(8),
        max_age=chance.choice((0, 0, 1, 3600, 86400, chance.randint(1, 40 * 86400))),
        hourly=maybe(30),
        daily=maybe(14),
        weekly=maybe(8),
        monthly=maybe(15),
        yearly=maybe(4),
        zone=ZoneInfo(chance.choice(ZONES)),
    )


def history(chance: random.Random, length: int) -> list[str]:
    """Lives through the runs of one schedule and applies retention after each; the violations met.

    Disks come and go, snapshots fail, hang or become ready late, groups are switched on and off, somebody labels one and takes
    the label away, a restore begins and ends, the rules change, the schedule stands still for years, the clock jumps back.
    """
    rules = some_rules(chance)
    step = chance.choice(STEPS)
    now = chance.randrange(
        int(datetime(2015, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2037, 1, 1, tzinfo=UTC).timestamp())
    )
    disks = ["a", "b", "c"][: chance.randint(1, 3)]
    units: list[SnapshotRecord] = []
    found: list[str] = []
    grouped = chance.random() < 0.3
    for number in range(length):
        now += step * chance.choice((1, 1, 1, 1, 1, chance.randint(1, 60), chance.randint(-3, 3)))
        grouped ^= chance.random() < 0.05
        if chance.random() < 0.05:
            disks = [*disks[1:], f"d{number}"]
        for members in [frozenset(disks)] if grouped else [frozenset([disk]) for disk in disks]:
            luck = chance.random()
            units.append(
                SnapshotRecord(
                    f"{now}-{number}-{'-'.join(sorted(members))}",
                    now,
                    members,
                    luck < 0.8,
                    luck > 0.9,
                    luck * 1000 % 1 < 0.05,
                )
            )
        if units and chance.random() < 0.3:
            at = chance.randrange(len(units))
            units[at] = replace(units[at], protected=not units[at].protected)
        if units and chance.random() < 0.3:
            at = chance.randrange(len(units))
            units[at] = replace(units[at], ready=True, failed=False)
        if chance.random() < 0.02:
            rules = some_rules(chance)
        found += violations(units, rules)
        gone = {unit.name for unit in (*expired(units, rules), *failures_to_remove(units))}
        units = [unit for unit in units if unit.name not in gone]
        if expired(units, rules):
            found.append("a second look removes more than the first")
    return found

"""The small parts of schedules: names, selectors, figures, and what the cluster lets the controller read."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from structlog.testing import capture_logs
from support.fake_api import Call, FakeApi, Fault

from csi_driver.controller import served
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.controller.schedules import NEEDED, PrometheusScheduleMetrics
from csi_driver.controller.served import readable
from csi_driver.kube.resources import GROUP_SNAPSHOTS, ROLLBACKS, SCHEDULES
from csi_driver.kube.selectors import selects
from csi_driver.operator.schedule.naming import (
    CLAIM,
    SCHEDULE,
    SCHEDULED_FOR,
    VOLUME,
    group_name,
    schedule_label,
    snapshot_name,
)
from csi_driver.operator.schedule.objects import read_snapshot

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", fullmatch=True)
TIMESTAMPS = st.integers(0, 4_000_000_000)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@given(NAMES, NAMES, TIMESTAMPS)
def test_names_are_names(schedule: str, claim: str, instant: int) -> None:
    for name in (snapshot_name(schedule, claim, instant), group_name(schedule, claim, instant)):
        assert len(name) <= 63
        front = (claim if name == snapshot_name(schedule, claim, instant) else schedule)[:36]
        if SUBDOMAIN.fullmatch(front):
            assert SUBDOMAIN.fullmatch(name)


def test_names_tell_apart_what_is_apart() -> None:
    given_ = [("s", "a", 1), ("s", "a", 2), ("s", "b", 1), ("t", "a", 1), ("s", "a" * 40, 1), ("s", "a" * 41, 1)]
    assert len({snapshot_name(*one) for one in given_} | {group_name(*one) for one in given_}) == 12
    assert snapshot_name("nightly", "data-db-0", 1781697600) == "data-db-0-20260617-120000-913e53a425"
    assert schedule_label("a", "bc") != schedule_label("ab", "c")


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, True),
        ({"matchLabels": {"app": "db"}}, True),
        ({"matchLabels": {"app": "web"}}, False),
        ({"matchLabels": {"app": "db", "more": "x"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}, False),
        ({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["db"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}, True),
        ({"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Like"}]}, False),
    ],
)
def test_selectors(selector: Any, matches: bool) -> None:
    assert selects(selector, {"app": "db", "tier": "1"}) is matches


def test_whose_disk_a_snapshot_is_of_is_told_by_its_content() -> None:
    meta = {"name": snapshot_name("s", "a", 0), "namespace": "ns", "labels": {SCHEDULE: schedule_label("ns", "s")}}
    said = {SCHEDULE: "s", CLAIM: "a", VOLUME: "meant", SCHEDULED_FOR: "1970-01-01T00:00:00Z"}
    content = {"spec": {"source": {"volumeHandle": "cut"}}}

    def disk(ready: bool, content: Any) -> str:
        snapshot = {"metadata": meta | {"annotations": said}, "status": {"readyToUse": ready}}
        made = read_snapshot(snapshot, content, "s", frozenset())
        assert made is not None
        assert made.series == {handle for _, handle in made.volumes if handle}
        return made.volumes[0][1]

    assert disk(ready=False, content=None) == "meant"
    assert disk(ready=True, content=None) == "", "nothing is concluded before it is seen"
    assert disk(ready=True, content=content) == disk(ready=False, content=content) == "cut"
    assert disk(ready=True, content={"spec": {"source": {"snapshotHandle": "imported"}}}) == "meant"


def test_metrics() -> None:
    exported = ControllerMetrics()
    metrics = PrometheusScheduleMetrics(exported)
    metrics.snapshot_created("ns", "s")
    metrics.set_overdue("ns", "s", 1000)
    metrics.set_overdue("ns", "t", None)
    text = generate_latest(exported.registry).decode()
    assert 'tidemark_schedule_snapshots_total{namespace="ns",result="made",schedule="s"} 1.0' in text
    assert float(re.findall(r'late_seconds{namespace="ns",schedule="s"} (\S+)', text)[0]) > 1e9
    assert 'late_seconds{namespace="ns",schedule="t"} 0.0' in text
    metrics.remove("ns", "s")
    assert 'schedule="s"' not in generate_latest(exported.registry).decode()
    metrics.clear()
    assert 'schedule="t"' not in generate_latest(exported.registry).decode()


async def test_schedules_wait_for_rollbacks_to_be_readable(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else retention would delete what a rollback wants, for as long as the controller runs."""
    monkeypatch.setattr(served, "UNSERVED_SECONDS", 0.01)
    api = await fake.connect()
    fake.unserved.add(ROLLBACKS)
    waiting = asyncio.create_task(served.until_served(api, "snapshot schedules", NEEDED))
    with capture_logs() as logs:
        while len(logs) < 3:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    assert {"volumerollbacks" in log["why"] for log in logs} == {True}
    fake.unserved.remove(ROLLBACKS)
    await asyncio.wait_for(waiting, 30)


async def test_kinds_that_are_not_there_or_not_allowed(fake: FakeApi) -> None:
    api = await fake.connect()
    assert await readable(api, SCHEDULES)
    fake.unserved.add(GROUP_SNAPSHOTS)
    assert not await readable(api, GROUP_SNAPSHOTS)

    def forbid(call: Call) -> None:
        raise Fault(403, "Forbidden", "not for you")

    fake.hooks.append(forbid)
    assert not await readable(api, SCHEDULES)

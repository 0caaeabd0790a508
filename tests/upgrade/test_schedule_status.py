"""The status of a SnapshotSchedule over versions: this one goes on from what 4414c43 wrote, and that one from what this one writes."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from support.fake_api import FakeApi
from support.schedule_rig import World

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.resources import SCHEDULES, SNAPSHOTS
from csi_driver.operator.schedule.resource import ActiveRun, StatusState, read_state

NEW_NAMES = {"lastScheduleTime", "lastSuccessfulTime", "nextScheduleTime", "orphanedSnapshots"}
NEW_OF_RUN = {"creating", "incomplete"}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with FakeApi() as fake:
        result = World(fake)
        for name in ("a", "b", "c"):
            result.claim(name)
        result.schedule()
        yield result
        await result.close()


def as_4414c43_wrote(status: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the names that it did not have; its condition ClaimsSelected was called Covered."""
    old = copy.deepcopy({key: value for key, value in status.items() if key not in NEW_NAMES})
    if "run" in old:
        old["run"] = {key: value for key, value in old["run"].items() if key not in NEW_OF_RUN}
    for condition in old["conditions"]:
        if condition["type"] == "ClaimsSelected":
            condition["type"] = "Covered"
    return old


def as_4414c43_reads(status: Mapping[str, Any]) -> dict[str, Any]:
    """All by which it decided: written down from its code, and sharing nothing with this one's."""
    run = status.get("run") or {}
    return {
        "times": status.get("times") or "",
        "suspended": any(c["type"] == "Ready" and c["reason"] == "Suspended" for c in status.get("conditions") or []),
        "notBefore": status.get("notBefore"),
        "scheduled": status.get("lastScheduled"),
        "successful": status.get("lastSuccessful"),
        "missed": status.get("lastMissed"),
        "run": (
            (run["scheduledFor"], list(run["waiting"]), list(run["making"]), run["cutShort"] is True) if run else None
        ),
    }


def as_this_one_reads(status: Mapping[str, Any]) -> dict[str, Any]:
    state = read_state(status)

    def text(instant: int | None) -> str | None:
        return None if instant is None else format_timestamp(instant)

    run = state.run
    return {
        "times": state.times,
        "suspended": state.suspended,
        "notBefore": text(state.not_before),
        "scheduled": text(state.scheduled),
        "successful": text(state.successful),
        "missed": text(state.missed),
        "run": (text(run.instant), list(run.waiting), list(run.creating), run.incomplete) if run else None,
    }


def replace_status(world: World, status: Mapping[str, Any]) -> None:
    schedule = world.fake.get(SCHEDULES, "s")
    assert schedule is not None
    world.fake.put(SCHEDULES, {**schedule, "status": dict(status)})


async def run_under_way(world: World) -> dict[str, Any]:
    """A run that has created one snapshot of three, by a controller that ends then; the run before it was complete."""
    first = await world.operator(limit=1)
    world.pass_to(17, 13)
    for _ in range(3):
        await first.settle()
    world.slow = True
    world.pass_to(17, 14)
    await first.look()
    await first.stop()
    status = world.status()
    assert (len(status["run"]["waiting"]), len(status["run"]["creating"])) == (2, 1)
    return status


async def finish(world: World) -> None:
    second = await world.operator(limit=4)
    await second.settle()
    assert len(world.fake.all(SNAPSHOTS)) == 6, "the one that was created is found, and none is created twice"
    world.slow = False
    await second.settle()
    assert world.snapshots() == [(name, f"06-17T{hour}:00") for hour in (13, 14) for name in ("a", "b", "c")]
    status = world.status()
    assert "run" not in status
    assert status["lastSuccessful"] == status["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"
    assert {c["type"] for c in status["conditions"]} == {"Ready", "ClaimsSelected", "Complete"}
    assert second.counts.made_ == 2


async def test_a_run_that_4414c43_started_is_finished(world: World) -> None:
    old = as_4414c43_wrote(await run_under_way(world))
    assert not NEW_NAMES & old.keys()
    replace_status(world, old)
    await finish(world)


async def test_a_run_of_this_version_is_finished(world: World) -> None:
    await run_under_way(world)
    await finish(world)


async def test_the_last_times_that_4414c43_wrote_count(world: World) -> None:
    """Else the run of 14:00 would start once more, which its snapshots alone do not prevent: they may have been deleted since."""
    status = await run_under_way(world)
    old = as_4414c43_wrote(status)
    del old["run"]
    old["lastSuccessful"] = old["lastScheduled"]
    replace_status(world, old)
    for snapshot in world.fake.all(SNAPSHOTS):
        world.fake.remove(SNAPSHOTS, snapshot["metadata"]["name"])
    operator = await world.operator()
    await operator.settle()
    assert world.snapshots() == []
    assert world.status()["lastScheduleTime"] == "2026-06-17T14:00:00Z"


async def test_4414c43_decides_by_this_ones_status_as_this_one_does(world: World) -> None:
    """After a `helm rollback`: with its own CRD, which has dropped the new names, and before that."""
    seen = 0
    operator = await world.operator(limit=1)
    for hour in (12, 13, 14, 18):
        world.slow = hour == 14
        world.pass_to(17, hour, 5)
        for _ in range(4):
            await operator.look()
            world.snapshotter()
            status = world.status()
            assert as_4414c43_reads(status) == as_this_one_reads(status)
            assert as_4414c43_reads(as_4414c43_wrote(status)) == as_this_one_reads(status)
            seen += "run" in status
    assert seen > 4


def test_what_4414c43_wrote_last_counts() -> None:
    """It leads once more under the new CRD, knows nothing of the new names, and leaves them as they were."""
    status = {
        "lastScheduleTime": "2026-06-17T13:00:00Z",
        "lastSuccessfulTime": "2026-06-17T13:00:00Z",
        "lastScheduled": "2026-06-17T14:00:00Z",
        "lastSuccessful": "2026-06-17T14:00:00Z",
        "run": {
            "scheduledFor": "2026-06-17T14:00:00Z",
            "waiting": ["b"],
            "creating": ["a-1"],
            "making": ["a-1", "a-2"],
            "incomplete": False,
            "cutShort": True,
        },
    }
    at = 1781704800
    assert read_state(status) == StatusState(
        scheduled=at, successful=at, run=ActiveRun(at, ("b",), ("a-1", "a-2"), incomplete=True)
    )


def test_a_status_without_the_old_names_is_read() -> None:
    """As a later version will write it."""
    run = {"scheduledFor": "2026-06-17T14:00:00Z", "waiting": [], "creating": ["a-1"], "incomplete": True}
    status = {"lastScheduleTime": "2026-06-17T14:00:00Z", "lastSuccessfulTime": "2026-06-17T13:00:00Z", "run": run}
    at = 1781704800
    assert read_state(status) == StatusState(
        scheduled=at, successful=at - 3600, run=ActiveRun(at, (), ("a-1",), incomplete=True)
    )

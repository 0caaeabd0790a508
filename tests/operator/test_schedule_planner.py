"""Runs that the operator's end interrupts: gone on with until the next time comes, and no longer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.fake_api import FakeApi
from support.schedule_rig import Operator, World

from csi_driver.kube.resources import EVENTS, SCHEDULES, SNAPSHOTS


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    """Two claims, and a run of each day at midnight that may begin until one."""
    made = World(fake)
    made.claim("a")
    made.claim("b")
    made.schedule(every="1d")
    yield made
    await made.close()


async def interrupted(world: World, ready: bool = False, limit: int = 1) -> Operator:
    """The operator after its end in the first run: a's snapshot was made, and b waits if there was room for one only."""
    world.slow = True
    world.pass_to(18, 0, 10)
    operator = await world.operator(limit=limit)
    await operator.look()
    assert len(world.snapshots()) == limit
    if ready:
        world.slow = False
        world.snapshotter()
    await operator.stop()
    return operator


async def test_back_in_time_it_is_gone_on_with(world: World) -> None:
    await interrupted(world)
    world.slow = False
    world.pass_to(18, 0, 50)
    await (await world.operator(limit=1)).settle()
    assert world.snapshots() == [("a", "06-18T00:00"), ("b", "06-18T00:00")]
    assert world.status()["lastSuccessfulTime"] == "2026-06-18T00:00:00Z"
    assert "RunIncomplete" not in world.reasons()


async def test_back_after_the_next_time_was_missed_nothing_more_is_made(world: World) -> None:
    """Else a snapshot would be named for a time of last week, and hold what the disk holds today."""
    await interrupted(world, ready=True)
    world.pass_to(25, 2)
    operator = await world.operator(limit=1)
    await operator.settle()
    assert world.snapshots() == [("a", "06-18T00:00")]
    assert set(world.reasons()) == {"RunStarted", "RunMissed", "RunIncomplete"}
    (told,) = [event["message"] for event in world.fake.all(EVENTS) if event["reason"] == "RunIncomplete"]
    assert told.endswith("no snapshot was taken of 1 PVCs: b")
    assert "run" not in world.status()
    assert "lastSuccessfulTime" not in world.status()
    assert world.condition("Complete")["reason"] == "RunIncomplete"
    world.pass_to(26)
    await operator.settle()
    assert world.snapshots() == [("a", "06-18T00:00"), ("a", "06-26T00:00"), ("b", "06-26T00:00")]
    assert world.status()["lastSuccessfulTime"] == "2026-06-26T00:00:00Z"


async def test_what_is_being_made_is_followed_and_is_no_success(world: World) -> None:
    await interrupted(world)
    world.pass_to(25, 2)
    operator = await world.operator(limit=1)
    for _ in range(2):
        await operator.look()
    run = world.status()["run"]
    assert (run["scheduledFor"][5:10], run["waiting"], len(run["creating"]), run["incomplete"]) == (
        "06-18",
        [],
        1,
        True,
    )
    assert world.condition("Complete")["reason"] == "Running"
    world.slow = False
    await operator.settle()
    assert world.snapshots() == [("a", "06-18T00:00")]
    assert set(world.reasons()) == {"RunStarted", "RunMissed", "RunIncomplete"}
    assert world.condition("Complete")["reason"] == "RunIncomplete"
    assert "lastSuccessfulTime" not in world.status()


async def test_that_one_was_incomplete_is_nothing_to_the_next(world: World) -> None:
    await interrupted(world)
    world.pass_to(25, 2)
    operator = await world.operator(limit=1)
    await operator.look()
    world.pass_to(26)
    await operator.look()
    assert world.status()["run"]["incomplete"] is False
    world.slow = False
    await operator.settle()
    assert world.status()["lastSuccessfulTime"] == "2026-06-26T00:00:00Z"


async def test_a_run_that_had_reached_all_is_a_success_however_late(world: World) -> None:
    """Every snapshot was asked for in its time, and the status that said so was lost with the operator."""
    await interrupted(world, limit=2)
    world.fake.change(SCHEDULES, "s", {"status": {"run": {"waiting": ["a", "b"], "making": []}}})
    world.pass_to(25, 2)
    operator = await world.operator()
    await operator.look()
    world.slow = False
    await operator.settle()
    assert set(world.reasons()) == {"RunStarted", "RunMissed", "RunCompleted"}
    assert world.status()["lastSuccessfulTime"] == "2026-06-18T00:00:00Z"


async def test_other_times_given_meanwhile_end_it_too(world: World) -> None:
    await interrupted(world, ready=True)
    world.fake.change(SCHEDULES, "s", {"spec": {"every": "12h"}})
    world.pass_to(25, 12, 10)
    await (await world.operator(limit=1)).settle()
    assert world.snapshots() == [("a", "06-18T00:00")]
    assert set(world.reasons()) == {"RunStarted", "RunIncomplete"}


async def test_a_node_that_comes_back_late_has_the_last_time_made(world: World) -> None:
    """Long after the deadline, which is one of the beginning, and also under an operator that was started again."""
    world.claim("far", node="n2")
    world.away = {"n2"}
    operator = await world.operator()
    for day in (18, 19):
        world.pass_to(day)
        await operator.settle()
    await operator.stop()
    world.away = set()
    world.pass_to(19, 20)
    await (await world.operator()).settle()
    assert [when for claim, when in world.snapshots() if claim == "far"] == ["06-18T00:00", "06-19T00:00"]
    assert world.condition("Complete")["status"] == "True"


async def test_what_was_deleted_before_it_was_ready_is_no_success_and_not_made_again(world: World) -> None:
    """The node of a disk is away, and somebody deletes the snapshot that hangs."""
    world.slow = True
    world.pass_to(18, 0, 10)
    operator = await world.operator()
    await operator.look()
    hanging = next(s["metadata"]["name"] for s in world.fake.all(SNAPSHOTS) if "b" in s["spec"]["source"].values())
    await operator.look()
    world.slow = False
    world.fake.remove(SNAPSHOTS, hanging)
    await operator.settle()
    assert world.snapshots() == [("a", "06-18T00:00")]
    assert "lastSuccessfulTime" not in world.status()
    assert world.condition("Complete")["reason"] == "RunIncomplete"
    assert "RunCompleted" not in world.reasons()
    world.pass_to(19)
    await operator.settle()
    assert world.status()["lastSuccessfulTime"] == "2026-06-19T00:00:00Z"

"""Schedules in trouble: killed at every call, two leaders, clocks that jump, outages, lost status. Nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from support.dying import Killed
from support.fake_api import Call, FakeApi, Fault
from support.schedule_rig import START, Operator, World, until_done

from csi_driver.domain.errors import DriverError
from csi_driver.kube.resources import GROUP_SNAPSHOTS, PVCS, PVS, SCHEDULES, SNAPSHOTS

HOUR = 3600


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    made = World(fake)
    yield made
    await made.close()


@pytest.fixture
async def operator(world: World) -> Operator:
    return await world.operator()


def created(world: World) -> Counter[str]:
    """Names of all that was ever created, and how often."""
    names: Counter[str] = Counter()
    for change in world.fake._history:
        if change.old is not None or change.new is None or change.kind not in {SNAPSHOTS, GROUP_SNAPSHOTS}:
            continue
        if not change.new["metadata"].get("ownerReferences"):
            names[change.new["metadata"]["name"]] += 1
    return names


def two_runs(world: World, grouped: bool) -> None:
    for name in ("a", "b", "c"):
        world.claim(name, node="n2" if name == "c" else "n1")
    world.schedule(retention={"keepLast": 1}, grouped=grouped)


async def run_at(world: World, hour: int, **how: Any) -> bool:
    """One process that goes through a run, from its start to its rest or its end; whether it lived."""
    world.pass_to(17, hour)
    operator = await world.operator(**how)
    try:
        await operator.settle()
    except Killed:
        return False
    finally:
        await operator.stop()
    return True


@pytest.mark.parametrize("served", [False, True], ids=["before the call", "after the call"])
@pytest.mark.parametrize("grouped", [False, True], ids=["single", "grouped"])
async def test_killed_at_every_call_and_started_again(grouped: bool, served: bool) -> None:
    points = 0
    while True:
        points += 1
        async with FakeApi() as fake:
            world = World(fake)
            two_runs(world, grouped)
            assert await run_at(world, 13)
            lived = await run_at(world, 14, dies_at=points, served=served)
            assert await run_at(world, 14)
            if grouped:
                assert {
                    g["metadata"]["annotations"]["tidemark.dev/scheduled-for"][11:13] for g in fake.all(GROUP_SNAPSHOTS)
                } == {"14"}
                assert len(fake.all(SNAPSHOTS)) == 3
            else:
                assert world.snapshots() == [(name, "06-17T14:00") for name in ("a", "b", "c")]
            assert set(created(world).values()) == {1}
            assert len(created(world)) == (4 if grouped else 6)
            assert world.status()["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"
            assert "run" not in world.status()
            await world.close()
        if lived:
            break
    # Begin, two or three objects, two or three deletions, the status in between, and events: each of them was the last once.
    assert points > 10


async def test_two_leaders_at_once(world: World) -> None:
    """For a moment there may be two, each with a view of its own: names and versions keep them from doing a thing twice."""
    two_runs(world, grouped=False)
    first, second = await world.operator(), await world.operator()
    for hour in (13, 14, 15):
        world.pass_to(17, hour)
        for _ in range(10):
            results = await asyncio.gather(first.look(), second.look(), return_exceptions=True)
            assert all(
                result is None or isinstance(result, DriverError) or hasattr(result, "creations") for result in results
            )
            world.snapshotter()
    assert world.snapshots() == [(name, "06-17T15:00") for name in ("a", "b", "c")]
    assert set(created(world).values()) == {1}
    assert len(created(world)) == 9


async def test_the_leader_changes_in_the_middle_of_a_run(world: World) -> None:
    """The run is gone on with: it would be wrong to begin again, also for the claims that no longer match."""
    for number in range(6):
        world.claim(f"a{number}")
    world.schedule()
    world.slow = True
    world.pass_to(17, 13)
    first = await world.operator(limit=2)
    await first.look()
    assert len(world.snapshots()) == 2
    world.claim("new", created=START + HOUR + 30)
    await first.stop()
    world.slow = False
    second = await world.operator(limit=2)
    await second.settle()
    assert world.snapshots() == [(f"a{number}", "06-17T13:00") for number in range(6)]


async def test_a_stale_view_begins_nothing_twice(world: World, operator: Operator) -> None:
    """The informer still shows the schedule before its run: the version of the status says that it is too late."""
    world.claim("a")
    world.schedule()
    await operator.settle()
    stale = await world.operator()
    await stale.see()
    world.pass_to(17, 13)
    await operator.settle()
    world.fake.remove(SNAPSHOTS, world.fake.all(SNAPSHOTS)[0]["metadata"]["name"])
    world.fake.silent = True
    with suppress(DriverError):
        await stale.reconciler.plan_and_execute(("default", "s"))
    assert world.snapshots() == []


@pytest.mark.parametrize("refusals", [1, 2, 3, 5, 8])
async def test_the_api_goes_away_in_the_middle(world: World, operator: Operator, refusals: int) -> None:
    """Every so many-th change is refused."""
    two_runs(world, grouped=False)
    seen = 0

    def failing(call: Call) -> None:
        nonlocal seen
        if call.verb in {"create", "patch", "delete"}:
            seen += 1
            if seen % refusals == 0 and seen < 40:
                raise Fault(503, "ServiceUnavailable", "try again")

    world.fake.hooks.append(failing)
    for hour in (13, 14):
        world.pass_to(17, hour)
        await until_done(operator)
    assert world.snapshots() == [(name, "06-17T14:00") for name in ("a", "b", "c")]
    assert set(created(world).values()) == {1}


async def test_after_an_outage_one_run_is_made_up_for(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule()
    world.pass_to(17, 13)
    await operator.settle()
    world.pass_to(20, 9, 20)
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-20T09:00")]


async def test_too_late_is_not_made_up_for_and_is_told_once(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule()
    world.pass_to(20, 9, 40)
    for _ in range(3):
        await operator.settle()
    assert world.snapshots() == []
    assert world.status()["lastMissed"] == "2026-06-20T09:00:00Z"
    assert world.reasons() == ["RunMissed"]
    assert operator.counts.late_["default", "s"] == START + HOUR
    world.pass_to(20, 10)
    await operator.settle()
    assert world.snapshots() == [("a", "06-20T10:00")]
    assert operator.counts.late_["default", "s"] is None


async def test_the_deadline_is_part_of_the_spec(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(every="1d", startingDeadline="12h")
    world.pass_to(20, 11, 59)
    await operator.settle()
    assert world.snapshots() == [("a", "06-20T00:00")]


async def test_suspended_for_a_while(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(retention={"keepLast": 2})
    for hour in (13, 14):
        world.pass_to(17, hour)
        await operator.settle()
    world.fake.change(SCHEDULES, "s", {"spec": {"suspend": True}})
    for hour in (15, 16, 17):
        world.pass_to(17, hour)
        await operator.settle()
    assert world.condition("Ready")["reason"] == "Suspended"
    assert operator.counts.late_["default", "s"] is None
    assert "nextScheduleTime" not in world.status()
    # Resumed shortly after a time: that one passed while it was suspended, and is not made up for.
    world.pass_to(17, 18, 5)
    await operator.settle()
    world.fake.change(SCHEDULES, "s", {"spec": {"suspend": False}})
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T14:00")]
    world.pass_to(17, 19)
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T14:00"), ("a", "06-17T19:00")]


async def test_other_times_begin_with_their_next_one(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(every=None, cron="0 3 * * *", startingDeadline="6h")
    world.pass_to(18, 3)
    await operator.settle()
    world.pass_to(18, 12, 10)
    world.fake.change(SCHEDULES, "s", {"spec": {"cron": "0 12 * * *"}})
    await operator.settle()
    assert world.snapshots() == [("a", "06-18T03:00")]
    assert world.status()["nextScheduleTime"] == "2026-06-19T12:00:00Z"


async def test_the_clock_jumps_ahead_by_a_day_and_back(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule()
    for when in ((17, 13), (17, 14), (18, 14, 10), (17, 14, 10), (17, 15), (17, 16)):
        world.pass_to(*when)
        await operator.settle()
    made = [
        ("a", "06-17T13:00"),
        ("a", "06-17T14:00"),
        ("a", "06-17T15:00"),
        ("a", "06-17T16:00"),
        ("a", "06-18T14:00"),
    ]
    assert world.snapshots() == made
    # The day comes at last: what was made for that time is there, and is not made again.
    for hour in (13, 14, 15):
        world.pass_to(18, hour)
        await operator.settle()
    assert world.snapshots() == [*made[:4], ("a", "06-18T13:00"), made[4], ("a", "06-18T15:00")]
    assert set(created(world).values()) == {1}


@pytest.mark.parametrize("made_before", [0, 1, 3])
async def test_the_status_is_lost(world: World, operator: Operator, made_before: int) -> None:
    """The newest own snapshot says which run was the last; whether it had come to its end is looked up by name."""
    for name in ("a", "b", "c"):
        world.claim(name)
    world.schedule()
    world.slow = True
    world.pass_to(17, 13)
    await operator.look()
    for snapshot in world.fake.all(SNAPSHOTS)[made_before:]:
        world.fake.remove(SNAPSHOTS, snapshot["metadata"]["name"])
    world.fake.change(SCHEDULES, "s", {"status": None})
    world.slow = False
    fresh = await world.operator()
    await fresh.settle()
    assert world.snapshots() == [(name, "06-17T13:00") for name in ("a", "b", "c")]
    world.fake.change(SCHEDULES, "s", {"status": None})
    world.pass_to(17, 13, 50)
    await fresh.settle()
    assert len(world.snapshots()) == 3
    assert fresh.counts.late_["default", "s"] is None
    world.pass_to(17, 14)
    await fresh.settle()
    assert len(world.snapshots()) == 6


async def test_a_run_that_is_not_done_when_the_next_time_comes(world: World) -> None:
    """It is cut short and that is told; who went without is first in the next one."""
    for name in ("a", "b"):
        world.claim(name)
    world.schedule()
    operator = await world.operator(limit=1)
    world.slow = True
    world.pass_to(17, 13)
    await operator.look()
    assert world.snapshots() == [("a", "06-17T13:00")]
    world.slow = False
    world.pass_to(17, 14)
    await operator.look()
    world.snapshotter()
    await operator.look()
    assert world.snapshots() == [("a", "06-17T13:00"), ("b", "06-17T14:00")]
    assert "RunIncomplete" in world.reasons()
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T14:00"), ("b", "06-17T14:00")]


async def test_jitter_delays_the_run_and_not_its_name(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(jitter="15m")
    world.now = START + HOUR
    decision = await operator.look()
    assert START + HOUR < decision.wake <= START + HOUR + 900
    world.now = decision.wake - 1
    await operator.settle()
    assert world.snapshots() == []
    world.now = decision.wake
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00")]


async def test_what_is_gone_is_dropped(world: World, operator: Operator) -> None:
    """Handles and UIDs never come again: an index that kept one for each that ever was would grow until the process ends."""
    two_runs(world, grouped=False)
    world.schedule("pairs", grouped=True, retention={"keepLast": 1})
    for hour in range(13, 17):
        world.pass_to(17, hour)
        await operator.settle("s")
        await operator.settle("pairs")
    world.snapshotter()
    await operator.see()
    view, there = operator.reconciler.view, len(world.fake.all(SNAPSHOTS))
    assert there == 6, "three single ones and three members of two groups"
    assert (len(view._of_handle), len(view._members)) == (6, 2)
    for kind in (SCHEDULES, GROUP_SNAPSHOTS, SNAPSHOTS):
        for obj in world.fake.all(kind):
            world.fake.remove(kind, obj["metadata"]["name"])
    world.snapshotter()
    await operator.see()
    assert (view._of_handle, view._contents, view._members) == ({}, {}, {})


async def test_a_deletion_that_is_refused_stops_nothing_else_and_is_told(world: World, operator: Operator) -> None:
    """By an admission policy, say: the run is complete all the same, and the schedule's events say what stays, and why."""

    def policy(call: Call) -> None:
        if (call.verb, call.kind) == ("delete", SNAPSHOTS) and call.name.startswith("a-"):
            raise Fault(403, "Forbidden", "denied by policy")

    world.fake.hooks.append(policy)
    two_runs(world, grouped=False)
    for hour in (13, 14):
        world.pass_to(17, hour)
        await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T14:00"), ("b", "06-17T14:00"), ("c", "06-17T14:00")]
    assert world.status()["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"
    assert "DeleteFailed" in world.reasons()


async def test_a_label_that_is_refused_keeps_its_group_alone_from_being_made(world: World, operator: Operator) -> None:
    def policy(call: Call) -> None:
        if (call.verb, call.kind, call.name) == ("patch", PVCS, "a"):
            raise Fault(403, "Forbidden", "denied by policy")

    world.fake.hooks.append(policy)
    two_runs(world, grouped=True)
    world.pass_to(17, 13)
    await operator.settle()
    (group,) = world.fake.all(GROUP_SNAPSHOTS)
    assert group["metadata"]["annotations"]["tidemark.dev/node"] == "n2"
    assert world.status()["run"]["waiting"] == ["a", "b"]
    assert "LabelFailed" in world.reasons()


async def test_a_claim_that_is_replaced_before_its_snapshot_is_bound(world: World, operator: Operator) -> None:
    """The snapshot is the new disk's, whatever was meant: it counts for that one, and stays as long as that one lives."""
    world.claim("a", disk="first")
    world.schedule(retention={"keepLast": 1}, deleteWithClaim=True)
    world.pass_to(17, 13)
    await operator.settle()
    world.slow = True
    world.pass_to(17, 14)
    await operator.look()
    world.fake.remove(PVS, "first")
    world.claim("a", disk="second")
    world.slow = False
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T14:00")], "the first disk's is gone with it, by deleteWithClaim"
    (said,) = world.status()["claims"]
    assert (said["kept"], world.status()["orphanedSnapshots"]) == (1, 0)

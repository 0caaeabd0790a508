"""The controller of schedules in real time: it wakes by the clock, by changes, and by a clock that was set."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.schedule_rig import DRIVER, Counts, World

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.events import Events
from csi_driver.kube.resources import SCHEDULES, SNAPSHOTS
from csi_driver.operator.schedule import controller
from csi_driver.operator.schedule.controller import ScheduleController
from csi_driver.operator.schedule.dependencies import ScheduleDependencies


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    made = World(fake)
    yield made
    await made.close()


@asynccontextmanager
async def running(
    world: World, counts: Counts, limit: int = 4, now: Callable[[], float] = time.time
) -> AsyncIterator[None]:
    operator = await world.operator()
    api = await world.fake.connect()
    dependencies = ScheduleDependencies(api, operator.informers, Events(api, "t"), DRIVER, counts, limit, 1, now)
    schedules = ScheduleController(dependencies)
    before = [len(informer._handlers) for informer in operator.informers.values()]
    task = asyncio.create_task(schedules.run())
    try:
        async with asyncio.timeout(60):
            yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert schedules._reconciler is None
    after = [len(informer._handlers) for informer in operator.informers.values()]
    assert after == before, "the next leader has handlers of its own"


def schedule_since(world: World, seconds: int, name: str = "s", **spec: object) -> None:
    world.schedule(name, **spec)
    created = format_timestamp(int(time.time()) - seconds)
    world.fake.change(SCHEDULES, name, {"metadata": {"creationTimestamp": created}})


async def test_it_wakes_by_the_clock_and_by_changes(world: World) -> None:
    """Every two seconds: a value that only tests may give."""
    counts = Counts()
    world.claim("a")
    schedule_since(world, 1, every="2s", retention={"keepLast": 2})
    async with running(world, counts):
        while counts.deleted_ < 2:
            world.snapshotter()
            await asyncio.sleep(0.05)
        world.fake.change(SCHEDULES, "s", {"spec": {"suspend": True}})
        while world.condition("Ready")["reason"] != "Suspended":
            await asyncio.sleep(0.05)
        world.fake.remove(SCHEDULES, "s")
        while counts.late_:
            await asyncio.sleep(0.05)
    created = Counter(
        change.new["metadata"]["name"]
        for change in world.fake._history
        if change.old is None and change.new is not None and change.kind is SNAPSHOTS
    )
    assert len(created) >= 4
    assert set(created.values()) == {1}


async def test_a_wall_clock_that_is_set_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "CLOCK_SECONDS", 0.1)
    ahead = 1800.0 - time.time() % 3600  # half past, by the clock that the controller sees
    world.claim("a")
    schedule_since(world, int(1 - ahead), every="1h")
    async with running(world, Counts(), now=lambda: time.time() + ahead):
        while "nextScheduleTime" not in world.status():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert world.snapshots() == []
        ahead += 1805.0
        while not world.snapshots():
            await asyncio.sleep(0.05)


async def test_one_that_waits_for_capacity_goes_on_when_another_is_ready(world: World) -> None:
    """Nothing of the waiting one itself changes: it may be of another namespace than what is ready now."""
    world.claim("a")
    world.claim("b", namespace="elsewhere")
    schedule_since(world, 7200, every="1h", startingDeadline="30m")
    there = world.fake.get(SCHEDULES, "s")
    assert there is not None
    meta = there["metadata"] | {"namespace": "elsewhere", "uid": "uid-elsewhere"}
    world.fake.put(SCHEDULES, {"metadata": meta, "spec": there["spec"]})
    async with running(world, Counts(), limit=1, now=lambda: time.time() // 3600 * 3600 + 7):
        while len(world.fake.all(SNAPSHOTS)) != 1:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        assert len(world.fake.all(SNAPSHOTS)) == 1
        world.snapshotter()
        while len(world.fake.all(SNAPSHOTS)) != 2:
            await asyncio.sleep(0.05)


async def test_what_fails_is_not_tried_with_each_change(world: World) -> None:
    """A run of many PVCs makes a hundred changes; an API server that is overloaded must not get a try for each."""
    tries: list[float] = []

    def overloaded(call: Call) -> None:
        if (call.verb, call.kind) == ("patch", SCHEDULES):
            tries.append(time.monotonic())
            raise Fault(503, "ServiceUnavailable", "away")

    world.fake.hooks.append(overloaded)
    world.claim("a")
    schedule_since(world, 1, every="1h")
    async with running(world, Counts()):
        for i in range(60):
            world.claim(f"b{i}")
            await asyncio.sleep(0.04)
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert tries
    assert all(gap > 0.9 * 2**i for i, gap in enumerate(gaps)), "after one second, two more, four more"

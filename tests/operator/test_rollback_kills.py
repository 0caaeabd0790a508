"""The operator killed before and after everything that it changes, in any order of events: never twice, nothing lost."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rollback_rig import World

from csi_driver.domain.errors import DriverError
from csi_driver.kube.resources import PODS, PVS, ROLLBACKS, SNAPSHOTS
from csi_driver.operator.rollback.completed import read_completed
from csi_driver.service.holds import HOLD_SECONDS


async def prepared(world: World) -> None:
    await world.written_since_s1()
    world.changes, world.kill_at = 0, None
    await world.start()


def came_to_its_end(world: World) -> None:
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
    uid = world.got(ROLLBACKS, "back")["metadata"]["uid"]
    assert [r.name for r in world.disk_now.rollbacks] == [uid]
    assert world.bytes_of(world.disk_now) == b"1"
    assert world.holder == ""
    assert not world.got(ROLLBACKS, "back")["metadata"].get("finalizers")
    assert read_completed(world.got(PVS, world.pv))["shop/back"].uid == uid
    safety = world.agent.pool.snapshots[world.disk_now.rollbacks[0].safety.rsplit(":", 1)[1]]
    assert world.bytes_of(safety) == b"2"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("lapse", [False, True], ids=["at-once", "after-a-lapse"])
async def test_killed_at_each_change_in_turn(world: World, moment: str, lapse: bool) -> None:
    """Between two changes nothing is different, so these are all the places where a process can end."""
    await prepared(world)
    world.ask()
    await world.run()
    came_to_its_end(world)
    points = world.changes
    assert points >= 9, "record, guard, hold, safety snapshot, announce, roll back, spend, release, tell, let go"
    for point in range(1, points + 1):
        await prepared(world)
        world.kill_at = (point, moment)
        world.ask()
        kills = world.kills
        while world.kills == kills:
            wait = await world.step()
            if wait:
                world.offset += wait
                await world.snapshotter()
            assert wait is not None, f"change {point} of {points} did not come"
        if lapse:
            # A rollback that had not begun may time out then; this one has the time.
            world.fake.put(ROLLBACKS, _patient(world.got(ROLLBACKS, "back")))
            world.offset += 2 * HOLD_SECONDS
        await world.run()
        came_to_its_end(world)


def _patient(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"spec": made["spec"] | {"timeout": "2h"}}


async def test_two_controllers_at_once_do_it_once(world: World) -> None:
    """For a moment after a lost lease two may be at work; each step of one meets the other's."""
    await prepared(world)
    world.ask()
    first = world.reconciler
    await world.start()
    second = world.reconciler
    for turn in range(60):
        world.reconciler = first if turn % 2 else second
        wait = await world.step()
        if wait is None:
            break
        if wait:
            world.offset += wait
            await world.snapshotter()
    came_to_its_end(world)


async def test_a_controller_that_wakes_up_late_rolls_nothing_away(world: World) -> None:
    """It saw RollingBack, and sends its Rollback when another has ended the matter and pods have written since."""
    await prepared(world)
    world.ask()
    await world.run(until="RollingBack")
    sleeper = world.reconciler
    agents, sent = sleeper._agents, []

    class Sleeping:
        def __getattr__(self, name: str) -> Any:
            if name != "roll_back":
                return getattr(agents, name)

            async def late(request: Any) -> None:
                await world.start()
                await world.run()
                came_to_its_end(world)
                assert await world.write(b"3")
                sent.append(request)
                await agents.roll_back(request)

            return late

    sleeper._executor._agents = Sleeping()  # type: ignore[assignment]
    await sleeper.reconcile(("shop", "back"))
    assert len(sent) == 1
    assert world.bytes_of(world.disk_now) == b"3"


async def test_a_rollback_that_arrives_after_the_release_is_refused(world: World) -> None:
    await prepared(world)
    world.ask()
    await world.run(until="RollingBack")
    sleeper = world.reconciler
    agents = sleeper._agents

    class Sleeping:
        def __getattr__(self, name: str) -> Any:
            if name != "roll_back":
                return getattr(agents, name)

            async def late(request: Any) -> None:
                await world.start()
                world.fake.remove(SNAPSHOTS, "s1", "shop")
                await world.run()
                assert world.status()["phase"] == "Failed"
                await agents.roll_back(request)

            return late

    sleeper._executor._agents = Sleeping()  # type: ignore[assignment]
    with suppress(DriverError):
        await sleeper.reconcile(("shop", "back"))
    assert world.disk_now.rollbacks == ()
    assert world.bytes_of(world.disk_now) == b"2"
    assert "not changed" in world.status()["message"]


# ---- any order of events

EVENTS = st.one_of(
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("finish")),
    st.tuples(st.just("kill"), st.integers(1, 4), st.sampled_from(["before", "after"])),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 30.0, 200.0, 400.0])),
    st.tuples(st.just("write")),
    st.tuples(st.just("snapshotter")),
    st.tuples(st.just("pod")),
    st.tuples(st.just("no pod")),
    st.tuples(st.just("delete")),
    st.tuples(st.just("again")),
    st.tuples(st.just("lose safety")),
)


class Model:
    """What the disk must hold, whatever happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen = 0
        self.wrote = 0

    def check(self) -> None:
        """After each event: a rollback that was made took away nothing that its safety snapshot has not."""
        world = self.world
        made = world.disk_now.rollbacks
        assert self.seen <= len(made) <= self.seen + 1
        if len(made) > self.seen:
            self.seen = len(made)
            safety = world.agent.pool.snapshots[made[-1].safety.rsplit(":", 1)[1]]
            assert world.bytes_of(safety) == world.model, (
                "written between the safety snapshot and the exchange, and lost"
            )
            world.model = b"1"
        assert world.bytes_of(world.disk_now) == world.model
        status = (world.fake.get(ROLLBACKS, "back", "shop") or {}).get("status") or {}
        if status.get("phase") == "Failed":
            uid = world.got(ROLLBACKS, "back")["metadata"]["uid"]
            assert all(r.name != uid for r in made), "called untouched, and it was not"

    async def happen(self, event: tuple[Any, ...]) -> None:
        world = self.world
        match event:
            case ("step", count):
                for _ in range(count):
                    wait = await world.step()
                    world.offset += wait or 0.0
                    self.check()
            case ("finish",) if world.there():
                await world.run()
            case ("kill", ahead, moment):
                world.kill_at = (world.changes + ahead, moment)
            case ("wait", seconds):
                world.offset += seconds
            case ("write",):
                self.wrote += 1
                await world.write(b"%c" % (65 + self.wrote % 26))
            case ("snapshotter",):
                await world.snapshotter()
            case ("pod",):
                world.run_pod()
            case ("no pod",) if world.fake.all(PODS):
                world.end_pod()
            case ("delete",) if world.there():
                await world.ask_to_go()
            case ("again",) if not world.there():
                world.ask()
            case ("lose safety",):
                for made in world.fake.all(SNAPSHOTS):
                    if made["metadata"]["name"].startswith("safety-"):
                        world.fake.remove(SNAPSHOTS, made["metadata"]["name"], "shop")
        self.check()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(EVENTS, max_size=15), st.booleans(), st.lists(EVENTS, max_size=10))
async def test_any_order_of_events(
    world: World, before: list[tuple[Any, ...]], made_again: bool, after: list[tuple[Any, ...]]
) -> None:
    await prepared(world)
    world.ask()
    model = Model(world)
    # As GitOps does it: whatever came of the object, it is made again.
    again = [("no pod",), ("finish",), ("delete",), ("step", 2), ("again",), ("write",)] if made_again else []
    for event in [*before, *again, *after]:
        await model.happen(event)
    world.kill_at = None
    await model.happen(("no pod",))
    if world.there():
        await world.run()
        model.check()
    assert world.holder == ""
    assert len(world.disk_now.rollbacks) <= 1, "the same name, made again or not, never rolls back twice"
    if world.there():
        assert world.status()["phase"] in ("Completed", "Failed")
        assert not world.got(ROLLBACKS, "back")["metadata"].get("finalizers")
    assert await world.write(b"z")
    assert world.bytes_of(world.disk_now) == b"z"

"""The reconciler as it runs: on a watch, with many at once, and with an API server that goes away."""

from __future__ import annotations

import pytest
from support.fake_api import Call, Fault
from support.rollback_rig import NAMESPACE, World, reconciling
from support.waiting import until

from csi_driver.kube import informer as informer_module
from csi_driver.kube.resources import EVENTS, ROLLBACKS, SNAPSHOTS
from csi_driver.operator.rollback import controller, reconciler
from csi_driver.operator.rollback.actions import AddFinalizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(informer_module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(controller, "FIRST_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(controller, "LONGEST_BACKOFF_SECONDS", 0.05)


def ended(world: World, name: str) -> bool:
    meta = world.got(ROLLBACKS, name)["metadata"]
    return world.status(name).get("phase") in ("Completed", "Failed") and not meta.get("finalizers")


async def test_those_that_were_there_and_those_that_come(world: World) -> None:
    await world.written_since_s1()
    world.ask("before")
    async with reconciling(world) as made:
        await until(lambda: ended(world, "before"))
        assert world.bytes_of(world.disk_now) == b"1"
        await world.cut("s2")
        for i in range(4):
            world.ask(f"r{i}", "s2" if i % 2 else "s1")
        world.ask("never", "another-name", timeout="1s")
        world.offset += 2
        await until(lambda: all(ended(world, name) for name in ("r0", "r1", "r2", "r3", "never")))
        await until(lambda: made.phases()["Completed"] == 5)
        assert {k: v for k, v in made.phases().items() if v} == {"Completed": 5, "Failed": 1}
    assert len(world.disk_now.rollbacks) == 5


async def test_a_deleted_one_lets_go_at_once(world: World) -> None:
    """No wait is slept through: the deletion is seen by the watch."""
    await world.disk()
    await world.cut("s1")
    world.run_pod()
    async with reconciling(world):
        world.ask()
        await until(lambda: world.status().get("reason") == "VolumeInUse")
        await world.ask_to_go()
        await until(lambda: not world.there())
        world.end_pod()
        world.ask()
        await until(lambda: ended(world, "back"))
    assert world.status()["phase"] == "Completed", "made again under the same name, it is seen as another one"


class Outage:
    """A hook of the API: while `away`, every call is refused."""

    def __init__(self) -> None:
        self.away = False
        self.refused = 0

    def __call__(self, call: Call) -> None:
        if self.away:
            self.refused += 1
            raise Fault(503, "ServiceUnavailable", "away")

    async def happen(self, world: World) -> None:
        self.away, self.refused = True, 0
        world.fake.cut_watches()
        await until(lambda: self.refused > 2)
        self.away = False


@pytest.mark.parametrize("phase", ["WaitingForRelease", "SafetySnapshot", "RollingBack"])
async def test_an_api_server_that_goes_away_and_comes_back(world: World, phase: str) -> None:
    await world.written_since_s1()
    outage = Outage()
    world.fake.hooks.append(outage)
    async with reconciling(world):
        world.ask()
        await until(lambda: world.status().get("phase") in (phase, "Completed"))
        await outage.happen(world)
        await until(lambda: ended(world, "back"))
        assert world.status()["phase"] == "Completed"
    assert len(world.disk_now.rollbacks) == 1
    assert world.bytes_of(world.disk_now) == b"1"


async def test_one_that_cannot_be_read_keeps_no_other_from_going_on(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    world.fake.put(ROLLBACKS, {"metadata": {"name": "strange", "namespace": NAMESPACE}, "spec": {"timeout": "soon"}})
    async with reconciling(world):
        world.ask()
        await until(lambda: ended(world, "back"))
    assert world.status()["phase"] == "Completed"


async def test_a_leader_that_has_ended_is_told_nothing_any_more(world: World) -> None:
    """The informer stays for the next one: whatever still hung on it would pile up with each lease."""
    async with reconciling(world) as made:
        await until(lambda: bool(made._informer._handlers))
    assert made._informer._handlers == []


async def test_what_the_api_refuses_is_told_once_and_tried_again(world: World) -> None:
    """The right to read snapshots is missing, say: without an event nobody but the log would know why nothing happens."""

    def forbid(call: Call) -> None:
        if (call.verb, call.kind) == ("get", SNAPSHOTS):
            raise Fault(403, "Forbidden", "volumesnapshots is forbidden")

    await world.disk()
    await world.cut("s1")
    world.ask()
    world.fake.hooks.append(forbid)
    for _ in range(3):
        await world.step()
    (event,) = [event for event in world.fake.all(EVENTS) if event["reason"] == "RequestRejected"]
    assert "volumesnapshots is forbidden" in event["message"]
    assert event["count"] == 1
    world.fake.hooks.remove(forbid)
    await world.run()
    assert world.status()["phase"] == "Completed"


async def test_a_deletion_is_seen_at_once_also_after_failures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "FIRST_BACKOFF_SECONDS", 300.0)
    monkeypatch.setattr(controller, "LONGEST_BACKOFF_SECONDS", 300.0)
    outage = Outage()
    await world.disk()
    await world.cut("s1")
    world.run_pod()

    def forbid(call: Call) -> None:
        if (call.verb, call.kind) == ("get", SNAPSHOTS) and outage.away:
            outage.refused += 1
            raise Fault(503, "ServiceUnavailable", "away")

    world.fake.hooks.append(forbid)
    async with reconciling(world):
        outage.away = True
        world.ask()
        await until(lambda: outage.refused)
        outage.away = False
        await world.ask_to_go()
        await until(lambda: not world.there())


async def test_one_that_goes_in_circles_is_slowed_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions that undo what the other does, say: no bug of that kind may occupy the API server."""
    await world.disk()
    await world.cut("s1")
    world.ask()
    monkeypatch.setattr(reconciler, "next_action", lambda _: AddFinalizer())
    waits = [await world.step() for _ in range(reconciler.MOST_IN_A_ROW + 3)]
    assert waits == [0.0] * reconciler.MOST_IN_A_ROW + [reconciler.CIRCLE_SECONDS] * 3


async def test_nothing_is_kept_of_what_is_gone(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    world.ask()
    await world.run(until="RollingBack")
    assert world.reconciler._memories
    world.fake.remove(ROLLBACKS, "back", NAMESPACE)
    await world.step()
    assert world.reconciler._memories == {}

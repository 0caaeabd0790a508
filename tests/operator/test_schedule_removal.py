"""Before a snapshot is deleted the API itself is asked: what the schedule wants by now, and what is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_api import Call, FakeApi, Fault
from schedule_rig import Operator, World

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.errors import Conflict
from csi_driver.kube.kinds import CLAIMS, CONTENTS, GROUP_SNAPSHOTS, ROLLBACKS, SCHEDULES, SNAPSHOTS

KEY = ("default", "s")
SPARED = [("a", "06-17T13:00"), ("a", "06-17T14:00")]
GONE = [("a", "06-17T14:00")]


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    made = World(fake)
    made.claim("a")
    yield made
    await made.close()


async def about_to_delete(world: World, **spec: Any) -> tuple[Operator, str]:
    """An operator that sees two snapshots and keeps one, and no change from now on; and the one that is to go."""
    world.schedule(retention={"keepLast": 1}, **spec)
    operator = await world.operator()
    world.pass_to(17, 13)
    await operator.settle()
    (first,) = world.fake.all(SNAPSHOTS)
    world.pass_to(17, 14)
    await operator.look()
    world.snapshotter()
    await operator.see()
    assert not world.fake.asked("get", SCHEDULES), "where nothing is to go, nothing is asked"
    world.fake.silent = True
    return operator, first["metadata"]["name"]


def rollback(world: World, snapshot: str, phase: str = "Pending") -> None:
    spec = {"claimName": "a", "snapshotName": snapshot}
    world.fake.put(ROLLBACKS, {"metadata": {"name": "back"}, "spec": spec, "status": {"phase": phase}})


def restore(world: World, snapshot: str, phase: str = "Pending") -> None:
    source = {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": snapshot}
    meta = {"name": "restored", "namespace": "default"}
    world.fake.put(CLAIMS, {"metadata": meta, "spec": {"dataSource": source}, "status": {"phase": phase}})


async def test_nothing_has_changed_and_it_goes(world: World) -> None:
    operator, _ = await about_to_delete(world)
    await operator.looks.look(KEY)
    assert world.snapshots() == GONE


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"retention": {"keepLast": 5}}, "metadata": {"generation": 2}},
        {"metadata": {"uid": "another of its name"}},
        {"metadata": {"deletionTimestamp": "2026-06-17T14:00:00Z", "generation": 2}},
    ],
    ids=["keeps more", "made again", "terminating"],
)
async def test_a_schedule_that_has_changed_deletes_nothing_by_what_it_was(world: World, change: Any) -> None:
    operator, _ = await about_to_delete(world)
    world.fake.change(SCHEDULES, "s", change)
    with pytest.raises(Conflict):
        await operator.looks.look(KEY)
    assert world.snapshots() == SPARED


async def test_a_schedule_that_is_gone_deletes_nothing(world: World) -> None:
    operator, _ = await about_to_delete(world)
    world.fake.remove(SCHEDULES, "s")
    with pytest.raises(Conflict):
        await operator.looks.look(KEY)
    assert world.snapshots() == SPARED


async def test_a_schedule_that_is_long_terminating_deletes_nothing_and_does_not_go_in_circles(world: World) -> None:
    """A finalizer of somebody else's may hold it for days."""
    await about_to_delete(world)
    world.fake.silent = False
    going = {"deletionTimestamp": "2026-06-17T14:00:00Z", "generation": 2, "finalizers": ["example.com/hold"]}
    world.fake.change(SCHEDULES, "s", {"metadata": going})
    fresh = await world.operator()
    await fresh.settle()
    assert world.snapshots() == SPARED
    assert world.status()["lastSuccessful"] == "2026-06-17T14:00:00Z"


@pytest.mark.parametrize("read", [rollback, restore])
@pytest.mark.parametrize("over", [False, True], ids=["in use", "over"])
async def test_what_has_come_to_be_in_use_stays(world: World, read: Callable[..., None], over: bool) -> None:
    operator, first = await about_to_delete(world)
    read(world, first, *(["Completed" if read is rollback else "Bound"] if over else []))
    await operator.looks.look(KEY)
    assert world.snapshots() == (GONE if over else SPARED)
    assert world.status()["lastSuccessful"] == "2026-06-17T14:00:00Z"


async def test_what_is_in_use_under_another_name_stays(world: World) -> None:
    """A second VolumeSnapshot, with a content of its own and the same snapshot on the disk."""
    operator, first = await about_to_delete(world)
    world.fake.silent = False
    snapshot = world.fake.get(SNAPSHOTS, first)
    assert snapshot is not None
    content = world.fake.get(CONTENTS, snapshot["status"]["boundVolumeSnapshotContentName"])
    assert content is not None
    handle = content["status"]["snapshotHandle"]
    bound = {"volumeSnapshotRef": {"namespace": "default", "name": "alias"}, "source": {"snapshotHandle": handle}}
    world.fake.put(CONTENTS, content | {"metadata": {"name": "of-alias"}, "spec": content["spec"] | bound})
    status = {"boundVolumeSnapshotContentName": "of-alias", "readyToUse": True}
    world.fake.put(SNAPSHOTS, {"metadata": {"name": "alias"}, "spec": {}, "status": status})
    await operator.see()
    world.fake.silent = True
    rollback(world, "alias")
    await operator.looks.look(KEY)
    assert world.snapshots() == SPARED


async def test_a_group_stays_for_a_member_that_has_come_to_be_in_use(world: World) -> None:
    operator, member = await about_to_delete(world, grouped=True)
    restore(world, member)
    await operator.looks.look(KEY)
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 2


@pytest.mark.parametrize("kind", [CLAIMS, ROLLBACKS], ids=str)
async def test_an_api_that_cannot_say_what_is_in_use_costs_nothing(world: World, kind: Any) -> None:
    operator, _ = await about_to_delete(world)
    status = 503

    def fail(call: Call) -> None:
        if (call.verb, call.kind) == ("list", kind):
            raise Fault(status, "No", "not now")

    world.fake.hooks.append(fail)
    with pytest.raises(Unavailable):
        await operator.looks.look(KEY)
    assert world.snapshots() == SPARED
    # A right that is missing may be missing for long: the run goes on without, and somebody is told.
    status = 403
    await operator.looks.look(KEY)
    assert world.snapshots() == SPARED
    assert "NotDeleted" in world.reasons()
    assert world.status()["lastSuccessful"] == "2026-06-17T14:00:00Z"


async def test_without_rollbacks_in_the_cluster(fake: FakeApi, world: World) -> None:
    fake.unserved.add(ROLLBACKS)
    operator = Operator(world, *[await fake.connect()] * 2, 4)
    del operator.mirrors[ROLLBACKS]
    await operator.start()
    world.schedule(retention={"keepLast": 1})
    for hour in (13, 14):
        world.pass_to(17, hour)
        await operator.settle()
    assert world.snapshots() == GONE
    await operator.stop()

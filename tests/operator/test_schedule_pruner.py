"""Before a snapshot is deleted the API itself is asked: what the schedule wants by now, and what is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.schedule_rig import START, Operator, World

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.errors import Conflict
from csi_driver.kube.resources import GROUP_SNAPSHOTS, PVCS, ROLLBACKS, SCHEDULES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.schedule.naming import SCHEDULED_FOR
from csi_driver.operator.schedule.pruner import BATCH_SIZE

KEY = ("default", "s")
TERMINATING = {"deletionTimestamp": "2026-06-17T14:00:00Z", "finalizers": ["example.com/hold"]}
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


def age(snapshot: dict[str, Any]) -> str:
    return str(snapshot["metadata"]["annotations"][SCHEDULED_FOR])


def rollback(world: World, snapshot: str, phase: str = "Pending") -> None:
    spec = {"claimName": "a", "snapshotName": snapshot}
    world.fake.put(ROLLBACKS, {"metadata": {"name": "back"}, "spec": spec, "status": {"phase": phase}})


def restore(world: World, snapshot: str, phase: str = "Pending") -> None:
    source = {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": snapshot}
    meta = {"name": "restored", "namespace": "default"}
    world.fake.put(PVCS, {"metadata": meta, "spec": {"dataSource": source}, "status": {"phase": phase}})


async def test_nothing_has_changed_and_it_goes(world: World) -> None:
    operator, _ = await about_to_delete(world)
    await operator.reconciler.plan_and_execute(KEY)
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
        await operator.reconciler.plan_and_execute(KEY)
    assert world.snapshots() == SPARED


async def test_a_schedule_that_is_gone_deletes_nothing(world: World) -> None:
    operator, _ = await about_to_delete(world)
    world.fake.remove(SCHEDULES, "s")
    with pytest.raises(Conflict):
        await operator.reconciler.plan_and_execute(KEY)
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
    assert world.status()["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"


@pytest.mark.parametrize("read", [rollback, restore])
@pytest.mark.parametrize("over", [False, True], ids=["in use", "over"])
async def test_what_has_come_to_be_in_use_stays(world: World, read: Callable[..., None], over: bool) -> None:
    operator, first = await about_to_delete(world)
    read(world, first, *(["Completed" if read is rollback else "Bound"] if over else []))
    await operator.reconciler.plan_and_execute(KEY)
    assert world.snapshots() == (GONE if over else SPARED)
    assert world.status()["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"


async def test_what_is_in_use_under_another_name_stays(world: World) -> None:
    """A second VolumeSnapshot, with a content of its own and the same snapshot on the disk."""
    operator, first = await about_to_delete(world)
    world.fake.silent = False
    snapshot = world.fake.get(SNAPSHOTS, first)
    assert snapshot is not None
    content = world.fake.get(SNAPSHOT_CONTENTS, snapshot["status"]["boundVolumeSnapshotContentName"])
    assert content is not None
    handle = content["status"]["snapshotHandle"]
    bound = {"volumeSnapshotRef": {"namespace": "default", "name": "alias"}, "source": {"snapshotHandle": handle}}
    world.fake.put(SNAPSHOT_CONTENTS, content | {"metadata": {"name": "of-alias"}, "spec": content["spec"] | bound})
    status = {"boundVolumeSnapshotContentName": "of-alias", "readyToUse": True}
    world.fake.put(SNAPSHOTS, {"metadata": {"name": "alias"}, "spec": {}, "status": status})
    await operator.see()
    world.fake.silent = True
    rollback(world, "alias")
    await operator.reconciler.plan_and_execute(KEY)
    assert world.snapshots() == SPARED


async def test_a_group_stays_for_a_member_that_has_come_to_be_in_use(world: World) -> None:
    operator, member = await about_to_delete(world, grouped=True)
    restore(world, member)
    await operator.reconciler.plan_and_execute(KEY)
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 2


@pytest.mark.parametrize("kind", [PVCS, ROLLBACKS], ids=str)
async def test_an_api_that_cannot_say_what_is_in_use_costs_nothing(world: World, kind: Any) -> None:
    operator, _ = await about_to_delete(world)
    status = 503

    def fail(call: Call) -> None:
        if (call.verb, call.kind) == ("list", kind):
            raise Fault(status, "No", "not now")

    world.fake.hooks.append(fail)
    with pytest.raises(Unavailable):
        await operator.reconciler.plan_and_execute(KEY)
    assert world.snapshots() == SPARED
    # A right that is missing may be missing for long: the run goes on without, and somebody is told.
    status = 403
    await operator.reconciler.plan_and_execute(KEY)
    assert world.snapshots() == SPARED
    assert "DeleteFailed" in world.reasons()
    assert world.status()["lastSuccessfulTime"] == "2026-06-17T14:00:00Z"


@pytest.mark.parametrize(
    "change",
    [
        lambda world, name: world.fake.remove(SNAPSHOTS, name),
        lambda world, name: world.fake.change(SNAPSHOTS, name, {"metadata": TERMINATING}),
        lambda world, name: world.fake.change(SNAPSHOTS, name, {"metadata": {"uid": "another of its name"}}),
    ],
    ids=["gone", "terminating", "made again"],
)
async def test_an_older_one_stays_where_the_younger_one_went(
    world: World, change: Callable[[World, str], object]
) -> None:
    """A person deletes the younger one, and the operator does not see it yet: else the disk would have none at all."""
    operator, first = await about_to_delete(world)
    (younger,) = [obj["metadata"]["name"] for obj in world.fake.all(SNAPSHOTS) if obj["metadata"]["name"] != first]
    change(world, younger)
    with pytest.raises(Conflict):
        await operator.reconciler.plan_and_execute(KEY)
    assert world.fake.get(SNAPSHOTS, first)


async def test_a_group_stays_where_the_younger_one_went(world: World) -> None:
    operator, _ = await about_to_delete(world, grouped=True)
    younger = max(world.fake.all(GROUP_SNAPSHOTS), key=lambda group: str(group["metadata"]["name"]))
    world.fake.remove(GROUP_SNAPSHOTS, younger["metadata"]["name"])
    with pytest.raises(Conflict):
        await operator.reconciler.plan_and_execute(KEY)
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 1


def lend(world: World, snapshot: str, phase: str) -> None:
    """What a snapshot holds under a name of another namespace, by a content made by hand; and a claim there that reads it."""
    own = world.fake.get(SNAPSHOTS, snapshot)
    assert own is not None
    content = world.fake.get(SNAPSHOT_CONTENTS, own["status"]["boundVolumeSnapshotContentName"])
    assert content is not None
    bound = {
        "volumeSnapshotRef": {"namespace": "elsewhere", "name": "lent"},
        "source": {"snapshotHandle": content["status"]["snapshotHandle"]},
    }
    world.fake.put(SNAPSHOT_CONTENTS, content | {"metadata": {"name": "of-lent"}, "spec": content["spec"] | bound})
    meta = {"name": "lent", "namespace": "elsewhere"}
    status = {"boundVolumeSnapshotContentName": "of-lent", "readyToUse": True}
    world.fake.put(SNAPSHOTS, {"metadata": meta, "spec": {}, "status": status})
    if phase:
        source = {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": "lent"}
        meta = {"name": "restored", "namespace": "elsewhere"}
        world.fake.put(PVCS, {"metadata": meta, "spec": {"dataSource": source}, "status": {"phase": phase}})


@pytest.mark.parametrize("known", [False, True], ids=["just now", "for long"])
@pytest.mark.parametrize("over", [False, True], ids=["in use", "over"])
async def test_what_is_read_from_another_namespace_stays(world: World, known: bool, over: bool) -> None:
    operator, first = await about_to_delete(world)
    phase = "Bound" if over else "Pending"
    world.fake.silent = False
    lend(world, first, phase if known else "")
    await operator.see()
    world.fake.silent = True
    if not known:
        lend(world, first, phase)
    await operator.reconciler.plan_and_execute(KEY)
    assert bool(world.fake.get(SNAPSHOTS, first)) is not over


async def test_of_many_that_are_to_go_a_change_of_mind_spares_the_rest(world: World) -> None:
    """Somebody lowers keepLast by mistake, and takes it back while the first ones go."""
    hours = BATCH_SIZE + 20
    world.schedule(every="1h")
    operator = await world.operator()
    for hour in range(1, hours + 1):
        world.now = START + hour * 3600 + 1
        await operator.settle()
    assert len(world.snapshots()) == hours
    asked = {"spec": {"retention": {"keepLast": 1}}, "metadata": {"generation": 2}}
    world.fake.change(SCHEDULES, "s", asked)
    await operator.look()
    assert len(world.snapshots()) == hours - BATCH_SIZE, "the first ones go"
    asked = {"spec": {"retention": {"keepLast": hours}}, "metadata": {"generation": 3}}
    world.fake.change(SCHEDULES, "s", asked)
    await operator.settle()
    assert len(world.snapshots()) == hours - BATCH_SIZE
    asked = {"spec": {"retention": {"keepLast": 2}}, "metadata": {"generation": 4}}
    world.fake.change(SCHEDULES, "s", asked)
    await operator.settle()
    assert len(world.snapshots()) == 2, "what is left of many is deleted in the reconciliations after"


async def test_those_that_the_api_refuses_keep_no_others_from_going(world: World) -> None:
    """A webhook may forbid some for ever."""
    world.schedule(every="1h")
    operator = await world.operator()
    for hour in range(1, BATCH_SIZE + 4):
        world.now = START + hour * 3600 + 1
        await operator.settle()
    oldest = {snapshot["metadata"]["name"] for snapshot in sorted(world.fake.all(SNAPSHOTS), key=age)[:BATCH_SIZE]}

    def forbid(call: Call) -> None:
        if call.verb == "delete" and call.name in oldest:
            raise Fault(403, "Forbidden", "not this one")

    world.fake.hooks.append(forbid)
    world.fake.change(SCHEDULES, "s", {"spec": {"retention": {"keepLast": 1}}, "metadata": {"generation": 2}})
    await operator.look()
    assert len(world.snapshots()) == BATCH_SIZE + 1

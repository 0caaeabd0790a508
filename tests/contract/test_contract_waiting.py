"""A call that meets a short one on the same object waits for it, and then goes by what that one left.

Only the memory pool can be told to stand still; the services are the same above every pool.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from contract_rig import SIZE, World, filled, piece
from faulty_rig import Faulty, standing

from csi_driver.backends.memory.backend import Faults
from csi_driver.domain.errors import Busy, InUse, NotFound
from csi_driver.domain.model import Snapshot, Volume

LONG = 3600.0
"""Seconds: nobody gives up waiting here. Whoever is not woken hangs, and the test fails."""

Call = Callable[[World, Volume], Awaitable[Any]]


@pytest_asyncio.fixture
async def patient(faulty: Faulty) -> AsyncIterator[Faulty]:
    faulty[0].pools.locks.patience = LONG
    yield faulty


async def waits(call: Awaitable[Any]) -> "asyncio.Future[Any]":
    """Begin a call that cannot go on."""
    waiting = asyncio.ensure_future(call)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def after(faults: Faults, method: str, first: Awaitable[object], second: Awaitable[Any]) -> Any:
    """What the second of two calls answers that comes while the first stands still inside `method`."""
    async with standing(faults, method, first):
        waiting = await waits(second)
    return await waiting


CREATIONS: dict[str, Call] = {
    "volume": lambda world, v: world.volume("x"),
    "copy": lambda world, v: world.volume("x", 0, source=v),
    "snapshot": lambda world, v: world.snapshot("x", v),
    "group": lambda world, v: world.group("x", v),
}
METHOD = {"copy": "create_volume"} | {kind: f"create_{kind}" for kind in ("volume", "snapshot", "group")}


@pytest.mark.parametrize("kind", CREATIONS)
async def test_two_that_make_the_same_get_one(patient: Faulty, kind: str) -> None:
    world, faults = patient
    v = await world.volume("v")
    pause = faults.pause(METHOD[kind])
    calls = [asyncio.ensure_future(CREATIONS[kind](world, v)) for _ in range(3)]
    await pause.reached.wait()
    pause.release()
    made = await asyncio.gather(*calls)
    assert made[0] == made[1] == made[2]
    assert not world.pools.locks._exclusive


@pytest.mark.parametrize("kind", CREATIONS)
async def test_what_is_being_made_is_deleted_after_that(patient: Faulty, kind: str) -> None:
    world, faults = patient
    v = await world.volume("v")
    digest = (await CREATIONS[kind](world, v)).id
    deletions: dict[str, Callable[[], Awaitable[None]]] = {
        "snapshot": lambda: world.snapshots.delete(str(digest)),
        "group": lambda: world.groups.delete(str(digest), []),
    }
    delete = deletions.get(kind, lambda: world.volumes.delete(str(digest)))
    await delete()
    await after(faults, METHOD[kind], CREATIONS[kind](world, v), delete())
    assert {found.name for found in world.volumes.list()[0]} == {"v"}
    assert world.snapshots.list()[0] == []
    assert not world.pool.groups


async def test_what_is_being_deleted_is_made_again_after_that(patient: Faulty) -> None:
    world, faults = patient
    old = await world.volume("x")
    new = await after(faults, "delete_volume", world.volumes.delete(str(old.id)), world.volume("x"))
    assert (new.id, new.uid != old.uid) == (old.id, True)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda world, v: world.expand(v, 2 * SIZE), NotFound),
        (lambda world, v: world.stage(v), NotFound),
        (lambda world, v: world.hold(v, "me"), NotFound),
        (lambda world, v: world.snapshot("late", v), NotFound),
        (lambda world, v: world.group("late", v), NotFound),
        (lambda world, v: world.volume("late", 0, source=v), NotFound),
        (lambda world, v: world.rollbacks.release(str(v.id), "me"), None),
        (lambda world, v: world.unpublish(v), None),
        (lambda world, v: world.unstage(v), None),
        (lambda world, v: world.volumes.delete(str(v.id)), None),
    ],
    ids=["expand", "stage", "hold", "snapshot", "group", "copy", "release", "unpublish", "unstage", "delete"],
)
async def test_what_was_looked_up_before_the_wait_may_be_gone(
    patient: Faulty, call: Call, told: type[Exception] | None
) -> None:
    world, faults = patient
    v = await world.volume("v")
    waiting = after(faults, "delete_volume", world.volumes.delete(str(v.id)), call(world, v))
    if told is None:
        await waiting
    else:
        with pytest.raises(told):
            await waiting
    assert world.volumes.list()[0] == []
    assert world.snapshots.list()[0] == []


async def test_a_source_that_is_gone_after_the_wait_is_no_source(patient: Faulty) -> None:
    world, faults = patient
    s = await world.snapshot("s", await world.volume("v"))
    with pytest.raises(NotFound):
        await after(faults, "delete_snapshot", world.snapshots.delete(str(s.id)), world.volume("copy", 0, source=s))


async def test_a_growth_goes_by_the_size_that_the_one_before_left(patient: Faulty) -> None:
    world, faults = patient
    v = await world.volume("v")
    grown = await after(faults, "expand_volume", world.expand(v, 4 * SIZE), world.expand(v, 2 * SIZE))
    assert grown.size == 4 * SIZE, "volumes never shrink"
    assert world.now(v).size == 4 * SIZE


async def test_the_same_rollback_twice_at_once_is_made_once(patient: Faulty) -> None:
    """A second one, late, would take away what was written after the first."""
    world, faults = patient
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    first: list[tuple[object, bool]] = []

    async def roll_back() -> None:
        first.append(await world.roll_back(v, s, "r", safety=""))

    rolled, before = await after(faults, "roll_back", roll_back(), world.roll_back(v, s, "r", safety=""))
    assert first == [(rolled, False)]
    assert before
    assert len(world.snapshots.list()[0]) == 2, "the snapshot, and one safety snapshot"
    await world.write(v, piece(0, "b"))
    assert (await world.roll_back(v, s, "r", safety=""))[1]
    assert await world.read(v) == filled("b")


async def test_a_snapshot_waits_for_an_unstage_and_is_none_of_its_business(patient: Faulty) -> None:
    world, faults = patient
    v = await world.volume("v")
    await world.stage(v)
    made: Snapshot = await after(faults, "detach", world.unstage(v), world.snapshot("s", v))
    assert world.snapshots.get(str(made.id)) == made


async def test_a_claim_that_is_deleted_with_its_pod(patient: Faulty) -> None:
    """The provisioner deletes the volume before, while and after the kubelet unstages it: it is told nothing but yes."""
    world, faults = patient
    for name, meets in (("before", False), ("while", True)):
        v = await world.volume(name)
        await world.stage(v)
        await world.publish(v)
        await world.unpublish(v)
        if meets:
            await after(faults, "detach", world.unstage(v), world.volumes.delete(str(v.id)))
        else:
            deletion = await waits(world.volumes.delete(str(v.id)))
            await world.snapshot(
                "in between", v
            )  # some other call: the volume is still staged, and the deletion waits on
            for _ in range(10):
                await asyncio.sleep(0)
            assert not deletion.done()
            await world.unstage(v)
            await deletion
        with pytest.raises(NotFound):
            world.now(v)


async def test_nobody_waits_for_a_pod_to_end(patient: Faulty) -> None:
    world, _ = patient
    v = await world.volume("v")
    await world.stage(v)
    await world.publish(v)
    with pytest.raises(InUse, match=r"is in use at"):
        await asyncio.wait_for(world.volumes.delete(str(v.id)), 60)


async def test_a_stage_that_nobody_ends_is_told_in_the_end(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    await world.stage(v)
    world.pools.locks.patience = 0.01
    with pytest.raises(InUse, match=r"is in use at"):
        await world.volumes.delete(str(v.id))
    async with standing(faults, "create_snapshot", world.snapshot("s", v)):
        with pytest.raises(Busy, match=r"CreateSnapshot 's' of .* is in progress"):
            await world.unstage(v)

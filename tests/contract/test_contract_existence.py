"""Whether something exists is not said while that is being decided: nobody is told that there is what then is gone.

Only the memory pool can be told to stand still; the services are the same above every pool.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import pytest
from contract_rig import OWNER, POOL, World
from faulty_rig import Faulty, safety_of_a_failed_try, standing

from csi_driver.domain.errors import Busy, InvalidRequest, Unavailable
from csi_driver.domain.ids import ObjectId, member_name, name_hash
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume


@dataclass(frozen=True)
class Kind:
    """How a thing of the name `x` is made of volume `v`, deleted, and counted; and the methods of a pool for that."""

    name: str
    make: Callable[[World, Volume], Awaitable[Volume | Snapshot | GroupSnapshot]]
    delete: Callable[[World, str], Awaitable[None]]
    there: Callable[[World], bool]

    @property
    def id(self) -> str:
        return str(ObjectId(OWNER, POOL, name_hash(self.name, "x")))


KINDS = [
    Kind(
        "volume",
        lambda world, v: world.volume("x"),
        lambda world, text: world.volumes.delete(text),
        lambda world: any(found.name == "x" for found in world.volumes.list()[0]),
    ),
    Kind(
        "snapshot",
        lambda world, v: world.snapshot("x", v),
        lambda world, text: world.snapshots.delete(text),
        lambda world: bool(world.snapshots.list()[0]),
    ),
    Kind(
        "group",
        lambda world, v: world.group("x", v),
        lambda world, text: world.groups.delete(text, []),
        lambda world: bool(world.pool.groups or world.snapshots.list()[0]),
    ),
]
EACH = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


@EACH
@pytest.mark.parametrize("point", ["before", "after"])
async def test_what_is_being_deleted_is_no_answer_to_its_creation(
    faulty: Faulty, kind: Kind, point: Literal["before", "after"]
) -> None:
    world, faults = faulty
    v = await world.volume("v")
    made = await kind.make(world, v)
    assert str(made.id) == kind.id
    pause = faults.pause(f"delete_{kind.name}", point)
    task = asyncio.ensure_future(kind.delete(world, kind.id))
    await asyncio.wait_for(pause.reached.wait(), 30)
    with pytest.raises(Busy, match=r"Delete.* is in progress"):
        await kind.make(world, v)
    pause.release()
    await task
    assert not kind.there(world)
    assert (await kind.make(world, v)).uid != made.uid


@EACH
async def test_what_could_not_be_deleted_is_an_answer_again(faulty: Faulty, kind: Kind) -> None:
    world, faults = faulty
    v = await world.volume("v")
    made = await kind.make(world, v)
    faults.fail(f"delete_{kind.name}", OSError(errno.EIO, "broken"))
    with pytest.raises(Unavailable):
        await kind.delete(world, kind.id)
    assert await kind.make(world, v) == made


@EACH
@pytest.mark.parametrize("point", ["before", "half", "after"])
async def test_what_is_being_made_is_not_gone(
    faulty: Faulty, kind: Kind, point: Literal["before", "half", "after"]
) -> None:
    world, faults = faulty
    v = await world.volume("v")
    pause = faults.pause(f"create_{kind.name}", point)
    task = asyncio.ensure_future(kind.make(world, v))
    await asyncio.wait_for(pause.reached.wait(), 30)
    with pytest.raises(Busy, match=r"Create.* is in progress"):
        await kind.delete(world, kind.id)
    pause.release()
    await task
    await kind.delete(world, kind.id)
    assert not kind.there(world)
    await kind.delete(world, kind.id)


async def test_a_member_that_is_being_made_is_not_gone(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    member = str(ObjectId(OWNER, POOL, name_hash("snapshot", member_name("x", str(v.id)))))
    async with standing(faults, "create_group", world.group("x", v)):
        with pytest.raises(Busy):
            await world.snapshots.delete(member)
    with pytest.raises(InvalidRequest):
        await world.snapshots.delete(member)


async def test_a_hold_that_is_being_made_is_not_released(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    async with standing(faults, "save_volume", world.hold(v, "me")):
        with pytest.raises(Busy, match="Hold"):
            await world.rollbacks.release(str(v.id), "me")
    assert world.now(v).hold is not None
    await world.rollbacks.release(str(v.id), "me")
    assert world.now(v).hold is None


async def test_a_safety_snapshot_that_is_being_replaced_is_no_answer(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    safety = await safety_of_a_failed_try(world, faults, v, s)
    async with standing(faults, "delete_snapshot", world.roll_back(v, s, "r", safety="")):
        with pytest.raises(Busy, match="Rollback"):
            await world.snapshot(safety.name, v)
    assert world.snapshots.get(str(safety.id)).uid != safety.uid


async def test_what_is_merely_worked_on_is_an_answer(faulty: Faulty) -> None:
    """A retry is told what it made, whoever reads or changes it meanwhile."""
    world, faults = faulty
    v = await world.volume("v")
    s, g = await world.snapshot("s", v), await world.group("g", v)
    for source in (s, g.members[0]):
        async with standing(faults, "create_volume", world.volume(f"of {source.id.hash}", 0, source=source)):
            assert await world.snapshot("s", v) == s
            assert await world.group("g", v) == g
    async with standing(faults, "create_volume", world.volume("copy", 0, source=v)):
        assert await world.volume("v") == world.now(v)
        assert await world.snapshot("s", v) == s
    async with standing(faults, "delete_snapshot", world.snapshots.delete(str(s.id))):
        assert await world.volume("v") == world.now(v)

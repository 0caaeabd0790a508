"""What goes wrong half-way leaves nothing behind; what takes long keeps others off its objects, and nobody else.

Only the memory pool can be told to fail and to stand still; the services are the same above every pool.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import pytest
from contract_rig import SIZE, World, filled, piece
from faulty_rig import Faulty, images, safety_of_a_failed_try, standing

from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import Busy, DriverError, InUse, OutOfSpace, Precondition, Unavailable
from csi_driver.service.holds import HOLD_SECONDS


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "full"), OutOfSpace),
        (OSError(errno.EIO, "broken"), Unavailable),
        (Precondition("as it is"), Precondition),
    ],
)
@pytest.mark.parametrize("point", ["before", "half"])
@pytest.mark.parametrize("method", ["create_volume", "create_snapshot", "create_group", "roll_back"])
async def test_nothing_half_made_stays(
    faulty: Faulty, method: str, point: str, error: Exception, told: type[DriverError]
) -> None:
    world, faults = faulty
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "b"))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create_volume": lambda: world.volume("copy", 0, source=s),
        "create_snapshot": lambda: world.snapshot("t", v),
        "create_group": lambda: world.group("g", v, w),
        "roll_back": lambda: world.roll_back(v, s, "r"),
    }
    before = world.volumes.list(), world.snapshots.list(), await images(world)
    free = await world.volumes.capacity({}, [])
    faults.fail(method, error, point, times=2)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(told):
            await calls[method]()
        assert (world.volumes.list(), world.snapshots.list(), await images(world)) == before
        assert (await world.volumes.capacity({}, [])) == free
        assert await world.read(v) == filled("b")
        await world.reopen()
    assert (world.volumes.list(), world.snapshots.list(), await images(world)) == before
    assert not world.pool.groups
    await calls[method]()
    assert await world.content(s) == filled("a")


@pytest.mark.parametrize("method", ["create_volume", "create_snapshot", "create_group", "roll_back", "delete_volume"])
async def test_an_answer_that_was_lost(faulty: Faulty, method: str) -> None:
    """Everything happened, then the agent died: its successor finds the object, and the retry gets it."""
    world, faults = faulty
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "b"))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create_volume": lambda: world.volume("copy", 0, source=s),
        "create_snapshot": lambda: world.snapshot("t", v),
        "create_group": lambda: world.group("g", v),
        "roll_back": lambda: world.roll_back(v, s, "r"),
        "delete_volume": lambda: world.volumes.delete(str(v.id)),
    }
    faults.fail(method, Unavailable("gone"), "after")
    with pytest.raises(Unavailable):
        await calls[method]()
    await world.reopen()
    before = world.volumes.list(), world.snapshots.list()
    answer = await calls[method]()
    assert (world.volumes.list(), world.snapshots.list()) == before
    if method == "roll_back":
        assert isinstance(answer, tuple)
        assert answer[1] is True
        assert await world.read(v) == filled("a")


async def test_a_hold_that_could_not_be_written_is_none(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    faults.fail("save_volume", OSError(errno.EIO, "broken"))
    with pytest.raises(Unavailable):
        await world.hold(v, "me")
    assert world.now(v).hold is None
    async with world.shown(v):
        pass


@pytest.mark.parametrize("method", ["attach", "stage_block", "save_volume"])
async def test_nothing_half_staged_stays(faulty: Faulty, method: str) -> None:
    world, faults = faulty
    v = await world.volume("v")
    faults.fail(method, OSError(errno.EIO, "broken"))
    with pytest.raises(Unavailable):
        await world.stage(v)
    use = await world.backend.access.use(v)
    assert (use.device, use.paths) == ("", ())
    assert os.listdir(world.staging(v)) == []
    await world.stage(v)
    # A second stage that fails takes nothing from the first.
    faults.fail("attach", OSError(errno.EIO, "broken"))
    with pytest.raises(Unavailable):
        await world.stage(v)
    assert (await world.backend.access.use(v)).paths
    await world.publish(v)


async def test_a_pool_that_went_away(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    faults.fail("check", Unavailable("its disk is away"), times=None)
    for call in (
        lambda: world.volumes.get(str(v.id)),
        world.volumes.list,
        world.snapshots.list,
    ):
        with pytest.raises(Unavailable):
            call()
    for waiting in (
        world.volumes.capacity({}, []),
        world.volume("v"),
        world.volumes.delete(str(v.id)),
        world.stage(v),
        world.publish(v),
    ):
        with pytest.raises(Unavailable):
            await waiting
    faults.clear()
    assert world.volumes.list() == ([v], "")


async def test_pods_end_while_their_pool_is_away(faulty: Faulty) -> None:
    """Taking a volume away needs nothing of the pool; and a volume that was not shown is fine."""
    world, faults = faulty
    v, idle = await world.volume("v"), await world.volume("idle")
    await world.stage(v)
    target = await world.publish(v)
    faults.fail("check", Unavailable("its disk is away"), times=None)
    for _ in range(2):
        await world.unpublish(v)
        await world.unstage(v)
        await world.unpublish(idle)
    assert not os.path.lexists(target)
    assert os.listdir(world.staging(v)) == []
    faults.clear()
    assert (await world.backend.access.use(v)).paths == ()


async def test_a_pool_that_cannot_be_opened_says_why(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    await world.backend.close()
    faults.fail("open", Precondition("made by another agent"))
    with pytest.raises(Precondition):
        await world.open()
    with pytest.raises(Unavailable, match="made by another agent"):
        world.pool.ensure_available()
    await world.open()
    assert world.volumes.list() == ([v], "")


async def test_a_growth_whose_device_does_not_follow_is_known(faulty: Faulty) -> None:
    """A restart would find the image's size; until then, too, nothing may be made of a smaller one."""
    world, faults = faulty
    v = await world.volume("v")
    async with world.shown(v):
        faults.fail("attach", OSError(errno.EIO, "injected"))
        with pytest.raises(Unavailable):
            await world.expand(v, 2 * SIZE)
        assert world.volumes.get(str(v.id)).size == 2 * SIZE
        assert (await world.expand(v, 2 * SIZE)).size == 2 * SIZE
        assert (await world.snapshot("s", v)).size == 2 * SIZE


# ---- locks: (what stands still, in which method) against what others want meanwhile

EXCLUSIVE = {
    "snapshot": ("create_snapshot", lambda world, v, s: world.snapshot("new", v)),
    "group": ("create_group", lambda world, v, s: world.group("new", v)),
    "copy of the volume": ("create_volume", lambda world, v, s: world.volume("new", 0, source=v)),
    "expansion": ("expand_volume", lambda world, v, s: world.expand(v, 2 * SIZE)),
    "rollback": ("roll_back", lambda world, v, s: world.roll_back(v, s, "r")),
    "hold": ("save_volume", lambda world, v, s: world.hold(v, "me")),
    "stage": ("stage_block", lambda world, v, s: world.stage(v)),
}


@pytest.mark.parametrize("running", EXCLUSIVE)
async def test_who_works_on_a_volume_works_alone(faulty: Faulty, running: str) -> None:
    world, faults = faulty
    v, other = await world.volume("v"), await world.volume("other")
    s = await world.snapshot("s", v)
    method, call = EXCLUSIVE[running]
    async with standing(faults, method, call(world, v, s)):
        for wanted in (
            world.snapshot("another", v),
            world.group("another", other, v),
            world.volume("another", 0, source=v),
            world.expand(v, 2 * SIZE),
            world.volumes.delete(str(v.id)),
            world.roll_back(v, s, "another"),
            world.hold(v, "another"),
            world.stage(v),
            world.publish(v),
            world.unpublish(v),
            world.unstage(v),
        ):
            with pytest.raises(Busy):
                await wanted
        # Looking never waits.
        assert world.now(v).id == v.id
        assert len(world.volumes.list()[0]) == 2
        assert world.snapshots.get(str(s.id)) == s
        assert world.snapshots.list()[0] == [s]
        assert await world.volume("v") == world.now(v)
        (await world.volumes.capacity({}, []))
        # Nor do others.
        await world.write(other, piece(0, "o"))
        await world.snapshot("of another", other)
        await world.volume("third")
    await world.reopen()
    assert await world.read(other) == filled("o")


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("create_volume", lambda world, v: world.volume("new")),
        ("create_snapshot", lambda world, v: world.snapshot("new", v)),
        ("create_group", lambda world, v: world.group("new", v)),
    ],
)
async def test_the_same_creation_twice_at_once(
    faulty: Faulty, method: str, call: Callable[[World, object], Awaitable[object]]
) -> None:
    world, faults = faulty
    v = await world.volume("v")
    task = asyncio.ensure_future(call(world, v))
    pause = faults.pause(method)
    await asyncio.wait_for(pause.reached.wait(), 30)
    with pytest.raises(Busy, match="in progress"):
        await call(world, v)
    pause.release()
    assert await task == await call(world, v)


async def test_sources_are_shared(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    s, t = await world.snapshot("s", v), await world.snapshot("t", v)
    g = await world.group("g", v)
    async with standing(faults, "create_volume", world.volume("a", 0, source=s)):
        await world.volume("b", 0, source=s)
        with pytest.raises(Busy):
            await world.snapshots.delete(str(s.id))
        await world.snapshots.delete(str(t.id))
        await world.roll_back(v, s, "r")
        await world.snapshot("u", v)
    async with standing(faults, "create_volume", world.volume("c", 0, source=g.members[0])):
        with pytest.raises(Busy):
            await world.groups.delete(str(g.id), [])
    async with standing(faults, "roll_back", world.roll_back(v, s, "r2")):
        await world.volume("d", 0, source=s)
        with pytest.raises(Busy):
            await world.snapshots.delete(str(s.id))
    async with standing(faults, "delete_snapshot", world.snapshots.delete(str(s.id))):
        for wanted in (world.volume("e", 0, source=s), world.roll_back(v, s, "r3"), world.snapshots.delete(str(s.id))):
            with pytest.raises(Busy):
                await wanted
    assert {v.name for v in world.volumes.list()[0]} == {"v", "a", "b", "c", "d"}


async def test_a_safety_snapshot_is_not_replaced_under_its_reader(faulty: Faulty) -> None:
    world, faults = faulty
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    safety = await safety_of_a_failed_try(world, faults, v, s)
    async with standing(faults, "create_volume", world.volume("copy", 0, source=safety)):
        with pytest.raises(Busy):
            await world.roll_back(v, s, "r", safety="")
    await world.roll_back(v, s, "r", safety="")


async def test_space_is_reserved_once(faulty: Faulty) -> None:
    """Two callers at once, and room for one."""
    world, faults = faulty
    total = (await world.backend.space()).total
    world.pool.policy = CapacityPolicy(overcommit=1.0, reserve=0)
    async with standing(faults, "create_volume", world.volume("a", total // 2 + SIZE)):
        with pytest.raises(OutOfSpace):
            await world.volume("b", total // 2)
    assert (await world.volumes.capacity({}, []))[0] == total // 2 - SIZE


async def test_real_space_is_reserved_once(faulty: Faulty) -> None:
    world, faults = faulty
    mega = 1 << 20
    world.pool.policy = CapacityPolicy(overcommit=100.0, reserve=(await world.backend.space()).total - 10 * mega)
    async with standing(faults, "create_volume", world.volume("a", 6 * mega, provisioning="thick")):
        with pytest.raises(OutOfSpace):
            await world.volume("b", 6 * mega, provisioning="thick")
        await world.volume("thin", 60 * mega)
        assert (await world.volumes.capacity({"provisioning": "thick"}, []))[0] == 4 * mega
    async with standing(faults, "create_volume", world.volume("thin 2", 60 * mega)):
        assert (await world.volumes.capacity({"provisioning": "thick"}, []))[0] == 4 * mega, (
            "a thin one was promised nothing"
        )


async def test_who_gives_up_waiting_leaves_nothing(faulty: Faulty) -> None:
    """A call that is cancelled before it has done anything."""
    world, faults = faulty
    v = await world.volume("v")
    pause = faults.pause("create_snapshot", "half")
    task = asyncio.ensure_future(world.snapshot("s", v))
    await pause.reached.wait()
    count = await images(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await images(world) == count - 1
    assert world.snapshots.list() == ([], "")
    await world.snapshot("s", v)


@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("method", ["create_snapshot", "create_group", "create_volume", "roll_back"])
async def test_work_that_takes_longer_than_a_hold_lasts(faulty: Faulty, method: str, ends: str) -> None:
    """Nobody can renew the hold meanwhile: it must not look lapsed, which proves that a rollback was not begun."""
    world, faults = faulty
    v, w = await world.volume("v"), await world.volume("w")
    s = await world.snapshot("s", v)
    world.clock.go_back(5 * HOLD_SECONDS)
    hold = await world.hold(v, "me")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create_snapshot": lambda: world.snapshot("t", v),
        "create_group": lambda: world.group("g", v, w),
        "create_volume": lambda: world.volume("copy", 0, source=v),
        "roll_back": lambda: world.roll_back(v, s, "r", "me"),
    }
    if ends == "badly":
        faults.fail(method, Precondition("as it is"), "half")

    async def call() -> None:
        with nullcontext() if ends == "well" else pytest.raises(Precondition):
            await calls[method]()

    async with standing(faults, method, call()):
        world.clock.forward(2 * HOLD_SECONDS)
        with pytest.raises(Busy):
            await world.hold(v, "me")
        assert world.context.holds.current_holder(world.now(v)) == "me"
    with pytest.raises(InUse, match="me"):
        await world.stage(v)
    now = world.now(v).hold
    assert now is not None
    assert now.since == hold.since, "one unbroken hold"
    assert now.expires == pytest.approx(hold.expires + 2 * HOLD_SECONDS * 1e9, abs=20e9), "it has lost no time"
    await world.reopen()
    assert world.now(v).hold == now, "kept"
    world.clock.forward(HOLD_SECONDS + 30)
    await world.stage(v)
    await world.unstage(v)

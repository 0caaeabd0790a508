"""The memory pool's own: what its images, links and faults promise besides the contract of all backends."""

import inspect
import os

import pytest
from contract_rig import MOUNTED, RAW_BLOCK, SIZE, InMemory, World, filled, piece
from faulty_rig import Faulty, images

from csi_driver.backends.memory.backend import Faults, MemoryBackend
from csi_driver.backends.memory.faults import METHODS, WHOLE
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import Damaged, InvalidRequest, OutOfSpace, Precondition, Unavailable


async def test_snapshots_are_sealed_by_the_kernel(faulty: Faulty) -> None:
    world, _ = faulty
    assert isinstance(world.backend, MemoryBackend)
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    path = world.backend._image(s).path
    fd = os.open(path, os.O_RDWR)
    try:
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, 2 * SIZE),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


async def test_descriptors_are_given_back(faulty: Faulty) -> None:
    world, _ = faulty
    empty = await images(world)
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    g = await world.group("g", v)
    for i in range(3):
        await world.roll_back(v, s, f"r{i}")
    assert await images(world) == empty + 3
    await world.groups.delete(str(g.id), [])
    await world.snapshots.delete(str(s.id))
    await world.volumes.delete(str(v.id))
    assert await images(world) == empty


async def test_what_is_written_past_the_end_is_no_part_of_the_volume(faulty: Faulty) -> None:
    world, _ = faulty
    v = await world.volume("v")
    async with world.shown(v) as path:
        with pytest.raises(PermissionError):
            os.truncate(path, 0)
        with open(path, "r+b") as file:
            file.seek(SIZE)
            file.write(b"x" * SIZE)
        s = await world.snapshot("s", v)
        assert s.size == SIZE
    await world.reopen()
    assert world.now(v).size == SIZE
    assert await world.content(s) == filled()
    await world.expand(v, 2 * SIZE)
    assert await world.read(v) == filled(size=2 * SIZE)


async def test_a_dead_link_of_another_agent_is_replaced_and_a_living_one_is_not(faulty: Faulty) -> None:
    world, _ = faulty
    v = await world.volume("v")
    await world.stage(v)
    target = world.target(v)
    os.symlink("/proc/4194304/fd/7", target)
    await world.publish(v)
    await world.unpublish(v)
    os.symlink("/proc/4194304/fd/7", target)
    await world.unpublish(v)
    assert not os.path.lexists(target)


async def test_a_link_that_was_removed_from_outside_does_not_count(faulty: Faulty) -> None:
    world, _ = faulty
    v = await world.volume("v")
    await world.stage(v)
    os.unlink(await world.publish(v))
    assert len((await world.backend.access.use(v)).paths) == 1
    await world.unstage(v)
    await world.volumes.delete(str(v.id))


async def test_no_file_systems(faulty: Faulty) -> None:
    world, _ = faulty
    for capabilities in ((MOUNTED,), (RAW_BLOCK, MOUNTED)):
        with pytest.raises(InvalidRequest, match="raw block"):
            await world.volume("v", capabilities=capabilities)
    assert world.volumes.list() == ([], "")


async def test_one_user_at_a_time(faulty: Faulty) -> None:
    world, _ = faulty
    with pytest.raises(Precondition):
        await world.backend.open()


async def test_a_full_pool(faulty: Faulty) -> None:
    world, _ = faulty
    mega = 1 << 20
    pool = MemoryBackend("contract", "node-1", 4 * mega)
    small = World(SmallRig(pool), world.directory)
    await small.open(CapacityPolicy(reserve=0))
    a = await small.volume("a", 4 * mega)
    await small.write(a, (0, os.urandom(3 * mega)))
    assert (await pool.space()).free == mega
    for attempt in (small.snapshot("s", a), small.volume("b", 0, source=a), small.group("g", a)):
        with pytest.raises(OutOfSpace):
            await attempt
    assert small.snapshots.list() == ([], "")
    await small.clean()
    pool.discard()


class SmallRig(InMemory):
    def __init__(self, pool: MemoryBackend) -> None:
        super().__init__()
        self._pool = pool

    async def backend(self) -> MemoryBackend:
        return self._pool


async def test_objects_that_are_not_there(faulty: Faulty) -> None:
    world, _ = faulty
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    g = await world.group("g", v)
    await world.groups.delete(str(g.id), [])
    await world.snapshots.delete(str(s.id))
    await world.volumes.delete(str(v.id))
    backend = world.backend
    for call in (
        backend.delete_volume(v),
        backend.delete_snapshot(s),
        backend.delete_group(g),
        backend.save_volume(v),
        backend.usage(g.members[0]),
        backend.roll_back(v, s),
    ):
        with pytest.raises(Damaged):
            await call


def test_every_method_can_be_made_to_fail() -> None:
    from csi_driver.backends.base import Backend, VolumeAccess

    port = {name for kind in (Backend, VolumeAccess) for name, what in vars(kind).items() if inspect.isfunction(what)}
    port = {name for name in port if not name.startswith("_")}
    assert port == set(METHODS) - WHOLE


def test_faults_that_cannot_happen_are_refused() -> None:
    faults = Faults()
    with pytest.raises(ValueError, match="is not a method"):
        faults.fail("create_volumes", Unavailable("x"))
    with pytest.raises(ValueError, match="no point"):
        faults.fail("delete_volume", Unavailable("x"), "half")
    with pytest.raises(ValueError, match="cannot pause"):
        faults.pause("check")


async def test_faults_happen_in_the_order_in_which_they_were_asked_for() -> None:
    faults = Faults()
    faults.fail("usage", Unavailable("first"))
    faults.fail("usage", Unavailable("second"), times=2)
    faults.fail("usage", Unavailable("ever after"), times=None)
    for word in ("first", "second", "second", "ever after", "ever after"):
        with pytest.raises(Unavailable, match=word):
            await faults.reach("usage", "before")
    faults.clear()
    await faults.reach("usage", "before")

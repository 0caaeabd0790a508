"""Room for thick volumes: whoever needs more than there is, is refused before he takes any; nobody is refused for less."""

import errno
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import pytest
from contract_rig import World, filled, piece
from faulty_rig import Faulty, images, standing

from csi_driver.domain.capacity import CapacityPolicy, Space
from csi_driver.domain.errors import Busy, OutOfRange, OutOfSpace, Unavailable
from csi_driver.domain.model import Snapshot, Volume

MEGA = 1 << 20
THICK = 4 * MEGA
LARGE = 32 * MEGA


async def answering(space: Space) -> Space:
    return space


async def limit_space(world: World, available: int) -> None:
    """Let thick volumes have so much from now on."""
    world.pool.policy = CapacityPolicy(overcommit=100.0, reserve=(await world.backend.space()).free - available)


async def thick_capacity(world: World) -> int:
    return (await world.volumes.capacity({"provisioning": "thick"}, []))[0]


async def pool_contents(world: World) -> object:
    return world.volumes.list(), world.snapshots.list(), dict(world.pool.groups), (await thick_capacity(world))


async def test_a_thin_copy_of_a_thick_volume_is_not_begun_without_space_for_its_source(world: World) -> None:
    """The source is given blocks of its own again, as after a snapshot; the copy itself takes none."""
    if not world.traits.thick_copies:
        return  # refused: test_contract_traits.py
    v = await world.volume("v", LARGE, provisioning="thick")
    await world.write(v, piece(0, "a"))
    await limit_space(world, LARGE // 2)
    needs = r"clone of a thick volume must set aside \d+ bytes \([^;]+; the larger of .*\), .* delete something first"
    with pytest.raises(OutOfSpace, match=needs):
        await world.volume("copy", 0, source=v)
    assert world.volumes.list() == ([world.now(v)], "")
    await limit_space(world, LARGE + LARGE // 2)
    copy = await world.volume("copy", 0, source=v)
    assert not copy.thick
    assert await world.read(copy) == filled("a", size=LARGE)


async def test_a_rollback_of_a_thick_volume_is_not_begun_without_space_for_it(world: World) -> None:
    """Old and new content are there at the same time, and a safety snapshot comes on top of both."""
    if not world.traits.thick_copies:
        return  # refused: test_contract_traits.py
    v = await world.volume("v", LARGE, provisioning="thick")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "b"))
    await limit_space(world, LARGE // 2)
    needs = r"rollback of a thick volume must set aside \d+ bytes \([^;]+; the volume's size: old and new content are"
    for safety in (None, ""):
        with pytest.raises(OutOfSpace, match=needs):
            await world.roll_back(v, s, "r", safety=safety)
    await limit_space(world, LARGE + LARGE // 2)
    needs = r"snapshot of a thick volume must set aside \d+ bytes \([^;]+; as much again as each thick volume that is"
    with pytest.raises(OutOfSpace, match=needs):
        await world.roll_back(v, s, "r", safety="")
    assert world.snapshots.list() == ([s], ""), "no safety snapshot for nothing"
    assert world.now(v).rollbacks == ()
    assert await world.read(v) == filled("b", size=LARGE)
    await world.roll_back(v, s, "r")
    assert await world.read(v) == filled("a", size=LARGE)
    await limit_space(world, 2 * LARGE + LARGE // 2)
    await world.roll_back(v, s, "with a safety snapshot", safety="")


class Disks:
    """Two thick volumes and a thin one, all written in full since its snapshot."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def make(self) -> "Disks":
        self.v, self.vs = await self._pair("v", provisioning="thick")
        self.w, self.ws = await self._pair("w", provisioning="thick")
        self.thin, self.thin_s = await self._pair("thin")
        return self

    async def _pair(self, name: str, **parameters: str) -> tuple[Volume, Snapshot]:
        volume = await self.world.volume(name, THICK, **parameters)
        snapshot = await self.world.snapshot(f"{name}-s", volume)
        await self.world.write(volume, (0, b"b" * THICK))
        return self.world.now(volume), snapshot


Call = Callable[[World, Disks], Awaitable[object]]

NEEDED: dict[str, tuple[int, Call]] = {
    "creation": (THICK, lambda world, d: world.volume("new", THICK, provisioning="thick")),
    "growth": (THICK, lambda world, d: world.expand(d.v, 2 * THICK)),
    "snapshot": (THICK, lambda world, d: world.snapshot("new", d.v)),
    "group": (2 * THICK, lambda world, d: world.group("new", d.v, d.w)),
    "group of both kinds": (THICK, lambda world, d: world.group("new", d.v, d.thin)),
    "thin copy": (THICK, lambda world, d: world.volume("new", 2 * THICK, source=d.v)),
    "thick copy": (THICK, lambda world, d: world.volume("new", 0, source=d.v, provisioning="thick")),
    "larger copy": (2 * THICK, lambda world, d: world.volume("new", 2 * THICK, source=d.v, provisioning="thick")),
    "thick copy of thin": (THICK, lambda world, d: world.volume("new", 0, source=d.thin, provisioning="thick")),
    "thick from snapshot": (THICK, lambda world, d: world.volume("new", 0, source=d.vs, provisioning="thick")),
    "rollback": (THICK, lambda world, d: world.roll_back(d.v, d.vs, "r")),
    "rollback with safety": (2 * THICK, lambda world, d: world.roll_back(d.v, d.vs, "r", safety="")),
}


@pytest.mark.parametrize("name", NEEDED)
async def test_just_enough_is_enough_and_a_byte_less_is_not(faulty: Faulty, name: str) -> None:
    world, _ = faulty
    disks = await Disks(world).make()
    needed, call = NEEDED[name]
    await limit_space(world, needed - 1)
    before, count = (await pool_contents(world)), await images(world)
    with pytest.raises((OutOfSpace, OutOfRange)):
        await call(world, disks)
    assert ((await pool_contents(world)), await images(world)) == (before, count)
    assert await world.read(disks.v) == b"b" * THICK
    await limit_space(world, needed)
    await call(world, disks)
    assert (world.pool.pending, world.pool.pending_thick) == (0, 0)


THIN: list[Call] = [
    lambda world, d: world.volume("thin new"),
    lambda world, d: world.snapshot("thin new", d.thin),
    lambda world, d: world.group("thin new", d.thin),
    lambda world, d: world.volume("thin copy", 0, source=d.thin),
    lambda world, d: world.volume("thin from thick snapshot", 0, source=d.vs),
    lambda world, d: world.roll_back(d.thin, d.thin_s, "thin r", safety=""),
    lambda world, d: world.expand(d.thin, 2 * THICK),
]


async def test_thin_volumes_need_no_space_for_thick_ones(faulty: Faulty) -> None:
    """Not even where thick volumes were promised more than there is."""
    world, _ = faulty
    disks = await Disks(world).make()
    await limit_space(world, 16 * THICK)
    world.pool.pending_thick += 32 * THICK
    for call in THIN:
        await call(world, disks)


@pytest.mark.parametrize("took", [False, True], ids=["has taken none", "has taken all"])
@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("creation", "create_volume"),
        ("snapshot", "create_snapshot"),
        ("group of both kinds", "create_group"),
        ("thin copy", "create_volume"),
        ("rollback", "roll_back"),
        ("rollback with safety", "create_snapshot"),
    ],
)
async def test_the_same_space_is_not_reserved_for_two(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, name: str, method: str, ends: str, took: bool
) -> None:
    """One stands still, and all that is there is his, until his call ends."""
    world, faults = faulty
    disks = await Disks(world).make()
    needed, call = NEEDED[name]
    await limit_space(world, needed + THICK // 2)
    before = await thick_capacity(world)
    if ends == "badly":
        faults.fail(method, OSError(errno.EIO, "broken"), "half")

    async def work() -> None:
        with nullcontext() if ends == "well" else pytest.raises(Unavailable):
            await call(world, disks)

    free = (await world.backend.space()).free
    async with standing(faults, method, work()):
        if took:
            monkeypatch.setattr(world.backend, "space", lambda: answering(Space(1 << 40, free - needed)))
        with pytest.raises(OutOfSpace):  # final: the scheduler tries another node
            await world.volume("more", THICK, provisioning="thick")
        for wanted in (
            world.snapshot("more", disks.w),
            world.group("more", disks.w),
            world.volume("more", 0, source=disks.w),
            world.roll_back(disks.w, disks.ws, "more"),
            world.expand(disks.w, 2 * THICK),
        ):
            # Not for good: what is being done may fail, or give back as much as it takes.
            with pytest.raises(Busy, match="try again"):
                await wanted
        with pytest.raises(OutOfSpace):  # there is no room for this one even if all is given back
            await world.volume("too much", 3 * needed, source=disks.ws, provisioning="thick")
        with pytest.raises(OutOfRange):
            await world.expand(disks.w, THICK + 3 * needed)
        assert (await thick_capacity(world)) == (0 if took else THICK // 2)
        monkeypatch.undo()
    assert (world.pool.pending, world.pool.pending_thick) == (0, 0)
    if ends == "badly":
        assert (await thick_capacity(world)) == before
        await call(world, disks)
    elif name == "rollback":
        await world.roll_back(disks.w, disks.ws, "more")  # what the first one gave back is enough


async def test_a_safety_snapshot_that_was_made_is_promised_no_more(faulty: Faulty) -> None:
    """Its bytes are taken: counted as promised too, they would keep others from what is there."""
    world, faults = faulty
    disks = await Disks(world).make()
    await limit_space(world, 3 * THICK)
    async with standing(faults, "roll_back", world.roll_back(disks.v, disks.vs, "r", safety="")):
        assert (await thick_capacity(world)) == THICK
        await world.snapshot("of another", disks.w)

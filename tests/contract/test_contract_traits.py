"""What a technology does not offer, or offers otherwise: the services ask its traits, and say by name what they refuse."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from contract_rig import BLOCK, MOUNTED, OWNER, POOL, RAW_BLOCK, MemoryRig, World
from support.sizes import GIB, MIB

from csi_driver.backends.base import Traits
from csi_driver.backends.memory.backend import TRAITS, MemoryBackend
from csi_driver.domain.errors import InvalidRequest, OutOfRange, OutOfSpace, Precondition, Unavailable
from csi_driver.domain.model import SizeRange, Volume
from csi_driver.rpc import convert
from csi_driver.service.holds import HOLD_SECONDS

GRANULE = 4 * MIB
WorldOf = Callable[[Traits], Awaitable[World]]


@pytest.fixture
async def world_of(tmp_path: Path) -> AsyncIterator[WorldOf]:
    """Makes a world over a memory pool with traits of some other technology."""
    worlds = []

    async def make(traits: Traits) -> World:
        rig = MemoryRig()
        rig.pool = MemoryBackend(POOL, OWNER, traits=traits)
        world = World(rig, tmp_path)
        worlds.append((rig, world))
        await world.open()
        return world

    yield make
    for rig, world in worlds:
        await world.clean()
        rig.pool.discard()


async def test_sizes_are_multiples_of_the_granule(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, granule=GRANULE))
    v = await world.volume("v", 5 * MIB)
    assert v.size == 2 * GRANULE
    assert (await world.volume("v", 5 * MIB)).id == v.id, "the same again"
    assert (await world.volume("least", 1)).size == GRANULE
    with pytest.raises(OutOfRange, match=f"multiples of {GRANULE} bytes"):
        await world.volume("between", 5 * MIB, limit=7 * MIB)
    assert (await world.expand(v, 9 * MIB)).size == 3 * GRANULE
    with pytest.raises(OutOfRange, match=f"multiples of {GRANULE}"):
        await world.volumes.expand(str(v.id), SizeRange(13 * MIB, 14 * MIB))
    assert world.now(v).size == 3 * GRANULE


async def test_a_snapshot_is_restored_by_what_was_asked_for_of_its_disk(world_of: WorldOf) -> None:
    """Also where the granule made the disk larger by megabytes; and after a restart."""
    world = await world_of(replace(TRAITS, granule=GRANULE))
    v = await world.volume("v", 5 * MIB)
    s = await world.snapshot("s", v)
    await world.reopen()
    reported_size = convert.snapshot(s, world.snapshots.granule(s)).size_bytes
    assert reported_size == 5 * MIB
    assert (await world.volume("copy", reported_size, source=s)).size == s.size == 2 * GRANULE
    with pytest.raises(OutOfRange, match=f"ask for {5 * MIB} or more"):
        await world.volume("less", 3 * MIB, source=s)
    g = await world.group("g", v)
    assert convert.group(g, world.groups.granule(g)).snapshots[0].size_bytes == 5 * MIB
    grown = await world.expand(v, 11 * MIB)
    t = await world.snapshot("t", grown)
    assert convert.snapshot(t, world.snapshots.granule(t)).size_bytes == 11 * MIB


async def test_capacity_is_told_in_granules(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, granule=32 * MIB))
    await world.volume("v")
    world.pool.policy = replace(world.pool.policy, overcommit=0.0123)
    available, largest, least = await world.volumes.capacity({}, [])
    assert least == 32 * MIB
    assert largest % (32 * MIB) == 0
    assert 0 <= available - largest < 32 * MIB
    await world.volume("all", largest)
    with pytest.raises(OutOfSpace):
        await world.volume("one more", 1)


async def test_a_pool_without_thick_volumes(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, thick=False))
    with pytest.raises(
        InvalidRequest, match=f"pool {POOL} .memory. serves no thick volumes.*without provisioning: thick"
    ):
        await world.volume("v", provisioning="thick")
    assert world.volumes.list() == ([], "")
    assert (await world.volumes.capacity({"provisioning": "thick"}, []))[:2] == (0, 0)
    assert (await world.volumes.capacity({}, []))[0] >= GIB
    await world.volume("v")


async def test_thick_volumes_that_cannot_be_copied(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, thick_copies=False))
    thick, thin = await world.volume("thick", provisioning="thick"), await world.volume("thin")
    s = await world.snapshot("s", thin)
    for refused in (
        world.snapshot("t", thick),
        world.group("g", thin, thick),
        world.volume("clone", 0, source=thick),
        world.volume("thick clone", 0, source=thick, provisioning="thick"),
        world.volume("thick copy", 0, source=s, provisioning="thick"),
        world.volume("thick clone of thin", 0, source=thin, provisioning="thick"),
    ):
        with pytest.raises(Precondition, match="thick"):
            await refused
    assert {volume.name for volume in world.volumes.list()[0]} == {"thick", "thin"}
    assert world.snapshots.list()[0] == [s]
    await world.volume("copy", 0, source=s)


async def test_a_technology_may_bound_the_snapshots_of_a_volume(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, max_relatives=2))
    v, w = await world.volume("v"), await world.volume("w")
    await world.snapshot("a", v)
    b = await world.snapshot("b", v)
    with pytest.raises(Precondition, match=r"has 2 snapshots.*more than 2.*delete some first"):
        await world.snapshot("c", v)
    with pytest.raises(Precondition, match="more than 2"):
        await world.group("g", w, v)
    await world.snapshot("of another", w)
    await world.snapshots.delete(str(b.id))
    await world.snapshot("c", v)


async def test_extents_are_none_where_they_are_not_counted(world_of: WorldOf) -> None:
    world = await world_of(replace(TRAITS, counts_extents=False))
    v = await world.volume("v")
    await world.write(v, (0, b"x" * BLOCK))
    assert (await world.backend.usage(v)).extents is None
    scan = await world.services.usage_scanner.scan(world.pool, 0)
    assert (scan.exclusive, scan.extents) == (BLOCK, None)


class _Formats(MemoryBackend):
    """A pool whose volumes can be formatted and mounted, as far as records are concerned; notes what is saved, and formatted."""

    def __init__(self, traits: Traits) -> None:
        super().__init__(POOL, OWNER, traits=traits)
        self.done: list[str] = []
        self._access.make_file_system = self._make_file_system  # type: ignore[method-assign]
        self._access.mount = self._mount  # type: ignore[method-assign]

    def _refuse_new(self, target: object) -> None:
        """Of anything, that it is to be mounted."""

    async def save_volume(self, volume: Volume) -> None:
        await super().save_volume(volume)
        self.done.append(f"{volume.format}, {'held' if volume.hold else 'free'}")

    async def _make_file_system(self, volume: Volume, fs_type: str) -> None:
        self.done.append("mkfs")

    async def _mount(self, volume: Volume, point: str, fs_type: str, flags: Sequence[str]) -> bool:
        self.done.append("mount")
        await self._access.stage_block(volume, point)
        return False


@pytest.mark.parametrize(
    ("cost", "raw", "mounted"),
    [
        (0.002, ["blank, free", "raw, free"], ["blank, free", "formatting(xfs), free", "mkfs", "xfs, free", "mount"]),
        (0.4, ["raw, free"], ["formatting(xfs), free", "mkfs", "xfs, free", "mount"]),
    ],
)
async def test_where_records_are_dear_a_stage_writes_fewer(
    tmp_path: Path, cost: float, raw: list[str], mounted: list[str]
) -> None:
    """But each before what it must come before: the intent to format, and that nobody holds the volume before a pod writes."""
    rig = MemoryRig()
    backend = _Formats(replace(TRAITS, record_cost=cost))
    rig.pool = backend
    world = World(rig, tmp_path)
    await world.open()
    try:
        for capability, expected in ((RAW_BLOCK, raw), (replace(MOUNTED, fs_type="xfs"), mounted)):
            world.clock.go_back(10 * HOLD_SECONDS)
            v = await world.volume(f"v {capability.access}", 300 * MIB, capabilities=(capability,))
            await world.hold(v, "somebody")
            world.clock.forward(2 * HOLD_SECONDS)
            backend.done.clear()
            await world.stage(v, capability)
            assert backend.done == expected
            await world.reopen()
            assert world.now(v).hold is None
            backend.done.clear()
            await world.unstage(v)
            await world.stage(v, capability)
            assert [step for step in backend.done if step != "mount"] == [], "nothing is new"
    finally:
        await world.clean()
        backend.discard()


async def test_a_hold_that_has_expired_is_gone_before_a_volume_that_has_a_format_is_staged(tmp_path: Path) -> None:
    rig = MemoryRig()
    backend = _Formats(replace(TRAITS, record_cost=0.4))
    rig.pool = backend
    world = World(rig, tmp_path)
    await world.open()
    try:
        world.clock.go_back(10 * HOLD_SECONDS)
        v = await world.volume("v")
        await world.stage(v)
        await world.unstage(v)
        await world.hold(v, "somebody")
        world.clock.forward(2 * HOLD_SECONDS)
        backend.done.clear()
        backend.faults.fail("stage_block", Unavailable("injected"))
        with pytest.raises(Unavailable):
            await world.stage(v)
        assert backend.done == ["raw, free"]
    finally:
        await world.clean()
        backend.discard()

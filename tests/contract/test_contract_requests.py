"""What was asked for of a disk goes with it: a snapshot can be restored by the request that made its disk, whatever became of it."""

from dataclasses import replace

import pytest
from contract_rig import BLOCK, SIZE, World, filled, piece
from faulty_rig import Faulty

from csi_driver.domain.errors import OutOfRange, OutOfSpace
from csi_driver.domain.model import SizeRange, Snapshot, Volume
from csi_driver.domain.sizes import least_request
from csi_driver.rpc import convert

UNEVEN = SIZE - 1000


def asked(item: Volume | Snapshot) -> int:
    return least_request(item.requested, item.size)


async def reported_size(world: World, name: str, volume: Volume) -> int:
    """What CSI says of the size of a new snapshot; the same after a restart of the agent, and in every list."""
    snapshot = await world.snapshot(name, world.now(volume))
    size = convert.snapshot(snapshot).size_bytes
    await world.reopen()
    assert world.snapshots.get(str(snapshot.id)) == snapshot
    assert size == asked(snapshot)
    return int(size)


async def test_a_snapshot_is_restored_by_the_request_that_made_its_disk(world: World) -> None:
    v = await world.volume("v", UNEVEN)
    await world.write(v, piece(15, "z"))
    assert (v.size, await reported_size(world, "s", v)) == (SIZE, UNEVEN)
    s = world.snapshots.list()[0][0]
    copy = await world.volume("copy", UNEVEN, source=s)
    assert copy.size == s.size == SIZE
    assert await world.read(copy) == filled(*"." * 15, "z"), "blocks are copied by the image's size"
    with pytest.raises(OutOfRange, match=f"ask for {UNEVEN} or more"):
        await world.volume("less", UNEVEN - BLOCK, source=s)
    # And so on, through as many generations as there are.
    assert await reported_size(world, "of the copy", copy) == UNEVEN
    with_no_size = await world.volume("with no size", 0, source=s)
    assert await reported_size(world, "of that", with_no_size) == UNEVEN
    clone = await world.volume("clone", UNEVEN, source=v)
    assert await reported_size(world, "of the clone", clone) == UNEVEN
    larger = await world.volume("larger", 2 * SIZE - 7, source=s)
    assert await reported_size(world, "of the larger", larger) == 2 * SIZE - 7


async def test_it_stays_through_a_rollback_and_in_a_group(world: World) -> None:
    v, w = await world.volume("v", UNEVEN), await world.volume("w", SIZE)
    s = await world.snapshot("s", v)
    await world.roll_back(v, s, "r", safety="")
    assert await reported_size(world, "after", v) == UNEVEN
    assert {asked(snapshot) for snapshot in world.snapshots.list()[0]} == {UNEVEN}, "the safety snapshot too"
    g = await world.group("g", world.now(v), w)
    await world.reopen()
    found = world.groups.get(str(g.id), [])
    assert {m.source_id: asked(m) for m in found.members} == {str(v.id): UNEVEN, str(w.id): SIZE}


async def test_after_an_expansion_the_larger_request_counts(world: World) -> None:
    v = await world.volume("v", UNEVEN)
    before = await world.snapshot("before", v)
    grown = await world.expand(v, 2 * SIZE - 1)
    assert await world.expand(v, 2 * SIZE - 1) == grown
    assert await world.expand(v, BLOCK) == grown, "what is enough already changes nothing"
    assert await reported_size(world, "s", v) == 2 * SIZE - 1
    await world.expand(v, 4 * SIZE)
    assert await reported_size(world, "even", v) == 4 * SIZE
    # The disk keeps its size in the rollback, and so does what was asked for of it.
    await world.roll_back(v, before, "r")
    assert await reported_size(world, "back", v) == 4 * SIZE
    assert asked(world.snapshots.get(str(before.id))) == UNEVEN


async def test_what_an_older_driver_left_is_as_large_as_its_image(world: World) -> None:
    """Its records have no such key; and it grows an image without a word about it."""
    v = await world.volume("v", UNEVEN)
    await world.backend.expand_volume(replace(v, size=3 * SIZE))
    await world.reopen()
    assert world.now(v).size == 3 * SIZE
    assert await reported_size(world, "s", v) == 3 * SIZE
    await world.volumes.expand(str(v.id), SizeRange(3 * SIZE - 5))
    assert await reported_size(world, "said again", v) == 3 * SIZE - 5


async def test_a_growth_that_could_not_be_written_down_is_known_by_its_size(faulty: Faulty) -> None:
    """Until the caller comes again, as it does: then by what was asked for."""
    world, faults = faulty
    v = await world.volume("v", UNEVEN)
    faults.fail("save_volume", OSError(28, "injected"))
    with pytest.raises(OutOfSpace):
        await world.expand(v, 2 * SIZE - 1)
    assert await reported_size(world, "s", v) == 2 * SIZE
    await world.expand(v, 2 * SIZE - 1)
    assert await reported_size(world, "t", v) == 2 * SIZE - 1

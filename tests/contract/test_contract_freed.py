"""What deleting several objects together would free."""

import re

import pytest
from contract_rig import BLOCK, World, piece

from csi_driver.domain.errors import InvalidRequest, NotFound
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume


async def freed(world: World, *items: Volume | Snapshot | GroupSnapshot) -> int:
    return await world.services.deletion_estimates.freed_together([str(item.id) for item in items])


async def test_blocks_that_only_the_chosen_ones_share_are_freed(world: World) -> None:
    """Sixteen blocks; the model is who has which version of which block."""
    v = await world.volume("v")
    await world.write(v, *(piece(i, "a") for i in range(8)))
    s1 = await world.snapshot("s1", v)
    await world.write(v, piece(0, "b"), piece(1, "b"))
    s2 = await world.snapshot("s2", v)
    await world.write(v, piece(1, "c"), piece(9, "c"))
    clone = await world.volume("clone", 0, source=s1)
    await world.write(clone, piece(2, "d"))

    has = {
        "v": {(0, "b"), (1, "c"), (9, "c"), *((i, "a") for i in range(2, 8))},
        "s1": {(i, "a") for i in range(8)},
        "s2": {(0, "b"), (1, "b"), *((i, "a") for i in range(2, 8))},
        "clone": {(2, "d"), *((i, "a") for i in range(8) if i != 2)},
    }
    items: dict[str, Volume | Snapshot] = {"v": v, "s1": s1, "s2": s2, "clone": clone}
    for number in range(1, 16):
        chosen = [name for bit, name in enumerate(has) if number >> bit & 1]
        gone = set[tuple[int, str]]().union(*(has[name] for name in chosen))
        kept = set[tuple[int, str]]().union(*(has[name] for name in has if name not in chosen))
        assert await freed(world, *(items[name] for name in chosen)) == len(gone - kept) * BLOCK, chosen
    for name, item in items.items():
        assert await freed(world, item) == (await world.backend.usage(item)).exclusive, name


async def test_a_group_stands_for_its_members_and_nothing_counts_twice(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "v"))
    await world.write(w, piece(0, "w"), piece(1, "w"))
    g = await world.group("g", v, w)
    assert await freed(world, g) == 0
    assert await freed(world, g, v) == BLOCK
    assert await freed(world, g, v, w, v, g) == 3 * BLOCK
    assert await freed(world, v, w) == 0


async def test_thick_volumes_give_back_what_was_set_aside(world: World) -> None:
    if not world.traits.thick:
        return  # refused: test_contract_backend.py
    v = await world.volume("v", provisioning="thick")
    assert await freed(world, v) == v.size


async def test_nothing_is_deleted_and_the_unknown_is_named(world: World) -> None:
    v = await world.volume("v")
    gone = await world.volume("gone")
    await world.volumes.delete(str(gone.id))
    assert await freed(world, v) == 0
    assert world.now(v).uid == v.uid
    with pytest.raises(NotFound, match=re.escape(str(gone.id))):
        await freed(world, v, gone)
    with pytest.raises(InvalidRequest, match="no id"):
        await freed(world)

"""Group snapshots: one moment, all or none, deleted only together."""

import re

import pytest
from contract_rig import POOL, SIZE, World, filled, piece

from csi_driver.domain.errors import AlreadyExists, InvalidRequest, NotFound, Precondition, Unavailable
from csi_driver.domain.records import dump_group


async def test_a_group_holds_all_its_volumes(world: World) -> None:
    v, w, x = [await world.volume(name, (i + 1) * SIZE) for i, name in enumerate("vwx")]
    for volume, letter in ((v, "v"), (w, "w"), (x, "x")):
        await world.write(volume, piece(0, letter))
    g = await world.group("g", w, x, v)
    await world.write(v, piece(0, "!"))
    assert g.source_ids == tuple(sorted(str(volume.id) for volume in (v, w, x)))
    assert len({m.created for m in g.members} | {g.created}) == 1
    await world.reopen()
    assert world.groups.get(str(g.id), []) == g
    sizes = {str(v.id): SIZE, str(w.id): 2 * SIZE, str(x.id): 3 * SIZE}
    letters = {str(v.id): "v", str(w.id): "w", str(x.id): "x"}
    for member in g.members:
        assert member.group == g.id.hash
        assert member.size == sizes[member.source_id]
        assert world.snapshots.get(str(member.id)) == member
        assert await world.content(member) == filled(letters[member.source_id], size=member.size)


async def test_a_member_lives_and_dies_with_its_group(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "a"))
    g = await world.group("g", v, w)
    with pytest.raises(InvalidRequest, match=re.escape(str(g.id))):
        await world.snapshots.delete(str(g.members[0].id))
    assert world.groups.get(str(g.id), []) == g
    copy = await world.volume("copy", 0, source=next(m for m in g.members if m.source_uid == v.uid))
    await world.volumes.delete(str(v.id))
    await world.groups.delete(str(g.id), [str(m.id) for m in g.members])
    await world.groups.delete(str(g.id), [])
    assert world.snapshots.list() == ([], "")
    await world.reopen()
    assert world.snapshots.list() == ([], "")
    assert await world.read(copy) == filled("a")
    with pytest.raises(NotFound):
        world.groups.get(str(g.id), [])


async def test_a_volume_is_rolled_back_to_a_member(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "a"))
    g = await world.group("g", v, w)
    await world.write(v, piece(0, "b"))
    member = next(m for m in g.members if m.source_uid == v.uid)
    await world.roll_back(v, member, "r")
    assert await world.read(v) == filled("a")


async def test_the_same_request_gets_the_same_answer(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    g = await world.group("g", v, w)
    for _ in range(2):
        again = await world.group("g", w, v)
        assert again == g
        assert dump_group(again) == dump_group(g)
        await world.reopen()
    with pytest.raises(AlreadyExists):
        await world.group("g", v)
    assert await world.group("g2", v) != g
    await world.volumes.delete(str(v.id))
    assert await world.group("g", w, v) == g
    await world.volume("v")
    with pytest.raises(AlreadyExists):
        await world.group("g", w, v)


async def test_a_group_and_a_snapshot_of_the_same_name(world: World) -> None:
    v = await world.volume("same")
    s, g = await world.snapshot("same", v), await world.group("same", v)
    assert len({v.id.hash, s.id.hash, g.id.hash, g.members[0].id.hash}) == 4


async def test_all_or_none(world: World) -> None:
    v = await world.volume("v")
    with pytest.raises(NotFound):
        await world.groups.create("g", [str(v.id), world.unknown], {})
    for unreachable in (f"{world.rig.owner}:other:{'0' * 32}",):
        with pytest.raises(Unavailable):
            await world.groups.create("g", [str(v.id), unreachable], {})
    with pytest.raises(Precondition):
        await world.groups.create("g", [str(v.id), f"node-2:{POOL}:{'0' * 32}"], {})
    assert world.snapshots.list() == ([], "")


async def test_a_raw_block_volume_in_use_is_snapshotted_alone_or_not_at_all(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    async with world.shown(v):
        if world.traits.suspends:  # it stands still for the moment, like a file system that is frozen
            await world.group("both", v, w)
            await world.groups.delete(world.id_of("group", "both"), [])
        else:
            with pytest.raises(Precondition, match=re.escape(str(v.id))):
                await world.group("g", v, w)
        assert world.snapshots.list() == ([], "")
        await world.group("alone", v)
    await world.group("g", v, w)


async def test_requests_that_can_never_be_served(world: World) -> None:
    v = await world.volume("v")
    with pytest.raises(InvalidRequest):
        await world.groups.create("g", [], {})
    with pytest.raises(InvalidRequest):
        await world.groups.create("", [str(v.id)], {})
    with pytest.raises(InvalidRequest):
        await world.group("g", v, v)
    with pytest.raises(InvalidRequest):
        await world.groups.create("g", [str(v.id)], {"speed": "fast"})
    g = await world.group("g", v)
    with pytest.raises(InvalidRequest):
        world.groups.get(str(g.id), ["nonsense"])
    with pytest.raises(InvalidRequest):
        await world.groups.delete(str(g.id), [str(v.id)])
    assert world.groups.get(str(g.id), [str(g.members[0].id)]) == g
    await world.groups.delete("nonsense", ["nonsense"])
    with pytest.raises(NotFound):
        world.groups.get("nonsense", [])

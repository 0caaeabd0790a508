"""The Backend port itself: what it answers to the service, and what it must not do."""

import asyncio
import os
import subprocess
from dataclasses import replace

import pytest
from contract_rig import (
    BLOCK,
    OWNER,
    POOL,
    RAW_BLOCK,
    SIZE,
    Rig,
    World,
    filled,
    piece,
    read_all,
    request,
)
from support.files import write_pieces

from csi_driver.backends.snapshots import take
from csi_driver.domain.errors import AlreadyExists, Damaged, InUse, InvalidRequest, NotFound, Precondition, Unavailable
from csi_driver.domain.ids import ObjectId, member_name, name_hash
from csi_driver.domain.model import RAW, CompletedRollback, GroupSnapshot, Hold, Snapshot, Volume


def volume(name: str, size: int = SIZE, thick: bool = False) -> Volume:
    return Volume(
        id=ObjectId(OWNER, POOL, name_hash("volume", name)),
        name=name,
        uid=f"uid-{name}",
        created=1,
        size=size,
        request=request(name, size),
        thick=thick,
    )


def snapshot(name: str, of: Volume, group: str = "") -> Snapshot:
    return Snapshot(
        id=ObjectId(OWNER, POOL, name_hash("snapshot", name)),
        name=name,
        uid=f"uid-{name}",
        created=0,
        size=of.size,
        source_id=str(of.id),
        source_uid=of.uid,
        format=RAW,
        labels={"csi.storage.k8s.io/volumesnapshot/name": "ä"},
        group=group,
    )


def group(name: str, *of: Volume) -> GroupSnapshot:
    digest = name_hash("group", name)
    return GroupSnapshot(
        id=ObjectId(OWNER, POOL, digest),
        name=name,
        uid=f"uid-{name}",
        created=0,
        source_ids=tuple(str(v.id) for v in of),
        members=tuple(snapshot(member_name(name, str(v.id)), v, digest) for v in of),
    )


async def test_a_new_pool_is_empty_and_says_who_it_is(rig: Rig) -> None:
    backend = await rig.backend()
    contents = await backend.open()
    assert (contents.volumes, contents.snapshots, contents.groups) == ((), (), ())
    first = backend.identity
    assert (first.name, first.owner, first.kind) == (POOL, rig.owner, rig.kind)
    assert first.uuid
    await backend.close()
    backend = await rig.backend()
    await backend.open()
    assert backend.identity == first
    await backend.close()


async def test_a_closed_pool_is_not_served(world: World) -> None:
    world.backend.check()
    await world.backend.close()
    if world.rig.knows_when_closed:
        with pytest.raises(Unavailable):
            world.backend.check()
    await world.open()


async def test_what_open_finds_is_what_was_made(world: World) -> None:
    backend = world.backend
    a, b = volume("a ✓ \U0001f4be"), volume("b", 3 * BLOCK)
    for made in (a, b):
        await backend.create_volume(made, None)
    cut, _ = await take(backend, snapshot("s", a), [a])
    both, _ = await take(backend, group("g", a, b), [a, b])
    c = replace(volume("c"), request=request("c", 0, source=cut), source_uid=a.uid)
    await backend.create_volume(c, cut)
    b = replace(
        b,
        format=RAW,
        hold=Hold("someone", 5, 4),
        rollbacks=(CompletedRollback("r", str(cut.id), 7, ""), CompletedRollback("r2", str(cut.id), 8, str(cut.id))),
    )
    await backend.save_volume(b)
    a = replace(a, size=2 * SIZE)
    await backend.expand_volume(a)
    await backend.close()

    world.backend = backend = await world.rig.backend()
    contents = await backend.open()
    assert set(map(str, contents.volumes)) == {str(a), str(b), str(c)}
    assert contents.snapshots == (cut,)
    assert contents.groups == (both,)


async def test_a_snapshot_fills_in_moment_and_size(world: World) -> None:
    v = volume("v", 5 * BLOCK)
    await world.backend.create_volume(v, None)
    before = world.clock()
    cut, report = await take(world.backend, replace(snapshot("s", v), size=1), [v])
    assert cut.size == v.size
    assert before <= cut.created <= world.clock()
    assert report.frozen == 0.0
    both, _ = await take(world.backend, group("g", v), [v])
    assert both.created
    assert {m.created for m in both.members} == {both.created}


async def test_what_exists_is_never_overwritten(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "x"))
    with pytest.raises(Damaged):
        await world.backend.create_volume(v, None)
    s = await world.snapshot("s", v)
    with pytest.raises(Damaged):
        await take(world.backend, s, [v])
    g = await world.group("g", v)
    with pytest.raises(Damaged):
        await take(world.backend, g, [v])
    assert await world.read(v) == filled("x")
    assert await world.content(s) == filled("x")


async def test_one_device_for_a_volume(world: World) -> None:
    v, access = await world.volume("v"), world.backend.access
    assert (await access.use(v)).device == ""
    device = await access.attach(v)
    assert await access.attach(v) == device
    assert (await access.use(v)).device == device
    assert (await access.use(v)).paths == ()
    await access.detach(v)
    await access.detach(v)
    assert (await access.use(v)).device == ""


async def test_use_names_every_path_and_detach_refuses(world: World) -> None:
    v, access = await world.volume("v"), world.backend.access
    staging, target = world.staging(v), world.target(v)
    await access.attach(v)
    for _ in range(2):
        await access.stage_block(v, staging)
        await access.bind(v, staging, target, RAW_BLOCK, False)
    use = await access.use(v)
    assert len(use.paths) == 2
    assert target in use.paths
    assert any(os.path.dirname(path) == staging for path in use.paths)
    with pytest.raises(InUse, match=target):
        await access.detach(v)
    await access.unmount(v, target)
    await access.unmount(v, staging)
    await access.unmount(v, staging)
    assert (await access.use(v)).paths == ()
    assert os.listdir(staging) == []
    await access.detach(v)


async def test_nothing_of_others_is_covered_or_removed(world: World) -> None:
    v, access = await world.volume("v"), world.backend.access
    staging, target = world.staging(v), world.target(v)
    os.mkdir(target)
    await access.attach(v)
    await access.stage_block(v, staging)
    with pytest.raises(AlreadyExists):
        await access.bind(v, staging, target, RAW_BLOCK, False)
    for volume_or_none in (v, None):
        await access.unmount(volume_or_none, target)
    assert os.path.isdir(target)


async def test_empty_and_erased(world: World) -> None:
    v, backend = await world.volume("v"), world.backend
    assert await backend.is_empty(v)
    await world.write(v, piece(3, "x"))
    assert not await backend.is_empty(v)
    await backend.erase(v)
    assert await backend.is_empty(v)
    assert world.backend.allocated(v) == 0
    assert await world.read(v) == filled()


async def test_allocation_follows_what_is_written(world: World) -> None:
    v = await world.volume("v")
    assert world.backend.allocated(v) == 0
    await world.write(v, piece(0, "x"), piece(7, "y"))
    assert 2 * BLOCK <= world.backend.allocated(v) <= SIZE
    space = await world.backend.space()
    assert 0 < space.free < space.total


async def test_a_thick_volume_has_its_space_from_the_start(world: World) -> None:
    if not world.traits.thick:
        with pytest.raises(InvalidRequest, match="thick"):
            await world.volume("v", provisioning="thick")
        return
    v = await world.volume("v", provisioning="thick")
    assert v.thick
    assert world.backend.allocated(v) >= SIZE
    assert await world.backend.is_empty(v)
    v = await world.expand(v, 2 * SIZE)
    assert world.backend.allocated(v) >= 2 * SIZE
    if not world.traits.thick_copies:
        with pytest.raises(Precondition, match="thick"):
            await world.snapshot("s", v)
        return
    s = await world.snapshot("s", v)
    copy = await world.volume("copy", 0, source=s, provisioning="thick")
    assert world.backend.allocated(copy) >= 2 * SIZE
    assert await world.read(copy) == filled(size=2 * SIZE)


async def test_stats_of_a_block_volume_are_its_size(world: World) -> None:
    v, access = await world.volume("v"), world.backend.access
    async with world.shown(v) as path:
        assert (await access.stats(v, path)).total == SIZE
        found, stats = await world.nodes.stats(str(v.id), path)
        assert (found.id, stats.total) == (v.id, SIZE)
        assert (await world.nodes.stats(str(v.id), world.staging(v)))[1].total == SIZE
        for wrong in ("some/path", "", "/", os.path.dirname(path), world.target(v, "b")):
            with pytest.raises(NotFound):
                await world.nodes.stats(str(v.id), wrong)


async def test_usage_after_one_block_is_overwritten(world: World) -> None:
    v = await world.volume("v")
    letters = [chr(ord("a") + i) for i in range(16)]
    await world.write(v, *(piece(i, letter) for i, letter in enumerate(letters)))
    backend = world.backend
    alone = await backend.usage(v)
    assert (alone.exclusive, alone.shared) == (SIZE, 0)
    assert (alone.extents is not None and alone.extents >= 1) == world.traits.counts_extents

    s = await world.snapshot("s", v)
    for item in (v, s):
        usage = await backend.usage(item)
        assert (usage.exclusive, usage.shared) == (0, SIZE)

    await world.write(v, piece(5, "!"))
    for item in (v, s):
        usage = await backend.usage(item)
        assert (usage.exclusive, usage.shared) == (BLOCK, SIZE - BLOCK)
    usage = await backend.usage(v)
    # XFS also counts what it set aside for the next overwriting.
    assert usage.exclusive + usage.shared <= backend.allocated(v) <= usage.exclusive + usage.shared + (128 << 10)

    copy = await world.volume("copy", 0, source=s)
    usage = await backend.usage(s)
    assert (usage.exclusive, usage.shared) == (0, SIZE), "block 5 is shared with the copy now"
    await world.volumes.delete(str(copy.id))
    await world.snapshots.delete(str(s.id))
    for _ in range(600):  # space comes back soon after a deletion, not with it
        usage = await backend.usage(v)
        if not usage.shared:
            break
        await asyncio.sleep(0.05)
    assert (usage.exclusive, usage.shared) == (SIZE, 0)


async def test_a_groups_members_have_usage_too(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "x"))
    g = await world.group("g", v)
    usage = await world.backend.usage(g.members[0])
    assert (usage.exclusive, usage.shared) == (0, BLOCK)


async def test_published_bytes_reach_another_process(world: World) -> None:
    v = await world.volume("v")
    async with world.shown(v) as path:
        subprocess.run(
            ["dd", "if=/dev/stdin", f"of={path}", "bs=4096", "seek=2", "conv=notrunc,fsync", "status=none"],
            input=b"z" * BLOCK,
            check=True,
            timeout=10,
        )
        assert read_all(path) == filled(".", ".", "z")
        write_pieces(path, piece(0, "y"))
        found = subprocess.run(["head", "-c", "4096", path], check=True, capture_output=True, timeout=10).stdout
        assert found == b"y" * BLOCK


async def test_a_change_token_changes_with_the_image_and_not_otherwise(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    first = world.backend.change_token(v), world.backend.change_token(s)
    assert len(set(first)) == 2
    await asyncio.sleep(0.02)  # a file's times move with the clock's tick
    await world.read(v)
    assert (world.backend.change_token(v), world.backend.change_token(s)) == first
    await world.write(v, piece(0, "b"))
    second = world.backend.change_token(v)
    assert second != first[0]
    assert world.backend.change_token(s) == first[1]
    await world.roll_back(v, s, "r")
    assert world.backend.change_token(v) != second

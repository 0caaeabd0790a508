"""Snapshots: a relation to data, not a copy that follows it; immutable; nobody's death harms another."""

import os
import re

import pytest
from contract_rig import BLOCK, SIZE, World, filled, piece

from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import (
    AlreadyExists,
    BadToken,
    InvalidRequest,
    NotFound,
    Precondition,
)
from csi_driver.domain.records import dump_snapshot
from csi_driver.service.snapshots import SnapshotRequest


async def test_the_snapshot_principle(world: World) -> None:
    """The example that the product's description gives."""
    v1 = await world.volume("v1")
    await world.write(v1, piece(0, "1"), piece(1, "2"))
    s1 = await world.snapshot("s1", v1)
    await world.write(v1, piece(2, "3"), piece(1, "4"))
    s2 = await world.snapshot("s2", v1)

    assert await world.content(s1) == filled("1", "2")
    assert await world.content(s2) == filled("1", "4", "3")
    assert await world.read(v1) == filled("1", "4", "3")

    await world.reopen()
    assert await world.content(s1) == filled("1", "2")
    await world.snapshots.delete(str(s1.id))
    assert await world.content(s2) == filled("1", "4", "3")
    await world.volumes.delete(str(v1.id))
    assert await world.content(s2) == filled("1", "4", "3")


async def test_what_a_snapshot_says(world: World) -> None:
    v = await world.volume("v")
    before = world.clock()
    s = await world.snapshot("s", v)
    assert (s.name, s.size, s.source_id, s.source_uid) == ("s", SIZE, str(v.id), v.uid)
    assert before <= s.created <= world.clock()
    await world.expand(v, 2 * SIZE)
    assert world.snapshots.get(str(s.id)) == s


async def test_a_snapshot_of_a_volume_in_use_holds_what_was_synced(world: World) -> None:
    v = await world.volume("v")
    async with world.shown(v) as path:
        fd = os.open(path, os.O_RDWR)
        try:
            made = []
            for letter in "abc":
                os.pwrite(fd, letter.encode() * BLOCK, 0)
                os.fsync(fd)
                made.append(await world.snapshot(letter, v))
        finally:
            os.close(fd)
    for s in made:
        assert await world.content(s) == filled(s.name)


async def test_snapshots_do_not_change(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    clone = await world.volume("clone", 0, source=s)
    await world.write(clone, piece(0, "x"))
    await world.write(v, *(piece(i, "y") for i in range(16)))
    await world.expand(v, 2 * SIZE)
    await world.roll_back(v, s, "r")
    await world.write(v, piece(0, "z"))
    assert await world.content(s) == filled("a")


async def test_a_chain_of_snapshots_and_clones(world: World) -> None:
    """Each generation adds a block; then the ancestors go, in an order of their own."""
    v = await world.volume("g0")
    snapshots, volumes = [], [v]
    for i in range(5):
        await world.write(volumes[-1], piece(i, str(i)))
        snapshots.append(await world.snapshot(f"s{i}", volumes[-1]))
        volumes.append(await world.volume(f"g{i + 1}", 0, source=snapshots[-1]))
    for i in (2, 0, 3, 1):
        await world.volumes.delete(str(volumes[i].id))
        await world.snapshots.delete(str(snapshots[i].id))
    assert await world.content(snapshots[4]) == filled(*"01234")
    assert await world.read(volumes[5]) == filled(*"01234")
    assert await world.read(volumes[4]) == filled(*"01234")


async def test_the_same_request_gets_the_same_answer(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.write(v, piece(0, "later"[0]))
    for _ in range(2):
        again = await world.snapshot("s", v)
        assert again == s
        assert dump_snapshot(again) == dump_snapshot(s)
        await world.reopen()
    assert await world.content(s) == filled()
    await world.volumes.delete(str(v.id))
    assert await world.snapshot("s", v) == s, "also when its source is gone"


async def test_another_request_under_the_same_name(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    s = await world.snapshot("s", v)
    with pytest.raises(AlreadyExists, match=re.escape(str(v.id))):
        await world.snapshot("s", w)
    assert world.snapshots.list() == ([s], "")


async def test_a_name_made_again_has_no_claim_on_the_old_ones_snapshots(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    await world.volumes.delete(str(v.id))
    again = await world.volume("v")
    assert again.id == v.id
    with pytest.raises(InvalidRequest):
        await world.roll_back(again, s, "r")
    with pytest.raises(AlreadyExists):
        await world.snapshot("s", again)
    assert world.pool.snapshots_of(again.uid) == []
    await world.reopen()
    with pytest.raises(InvalidRequest):
        await world.roll_back(again, s, "r")
    assert await world.read(again) == filled()
    assert await world.content(s) == filled("a")


async def test_delete_may_be_repeated_and_unknown_is_fine(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    for text in (str(s.id), str(s.id), "", "nonsense", str(v.id), world.unknown):
        await world.snapshots.delete(text)
    with pytest.raises(NotFound):
        world.snapshots.get(str(s.id))
    assert world.volumes.get(str(v.id)) == v
    again = await world.snapshot("s", v)
    assert again.id == s.id
    assert again.uid != s.uid


async def test_requests_that_can_never_be_served(world: World) -> None:
    v = await world.volume("v")
    for bad in (
        SnapshotRequest("", str(v.id)),
        SnapshotRequest("s", ""),
        SnapshotRequest("x" * 129, str(v.id)),
        SnapshotRequest("s\0", str(v.id)),
        SnapshotRequest("s", str(v.id), {"speed": "fast"}),
        SnapshotRequest("s", str(v.id), {"csi.storage.k8s.io/x": "x" * 5000}),
    ):
        with pytest.raises(InvalidRequest):
            await world.snapshots.create(bad)
    with pytest.raises(NotFound):
        await world.snapshots.create(SnapshotRequest("s", "nonsense"))
    labels = {"csi.storage.k8s.io/volumesnapshot/name": "n"}
    s = await world.snapshots.create(SnapshotRequest("s", str(v.id), labels))
    assert s.labels == labels
    assert await world.snapshot("s", v) == s


async def test_the_cap(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    world.pool.policy = CapacityPolicy(reserve=0, max_snapshots=3)
    made = [await world.snapshot(f"s{i}", v) for i in range(2)]
    g = await world.group("g", v, w)
    with pytest.raises(Precondition, match="limit is 3"):
        await world.snapshot("s3", v)
    with pytest.raises(Precondition, match="limit is 3"):
        await world.group("g2", w, v)
    assert await world.snapshot("s0", v) == made[0], "what exists is still answered"
    await world.snapshot("w1", w)
    await world.snapshots.delete(str(made[0].id))
    await world.snapshot("s3", v)
    with pytest.raises(Precondition):
        await world.snapshot("s4", v)
    await world.groups.delete(str(g.id), [])
    await world.snapshot("s4", v)


async def test_lists(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    made = [await world.snapshot(f"s{i}", v) for i in range(5)] + [await world.snapshot(f"t{i}", w) for i in range(2)]
    g = await world.group("g", v, w)
    every = sorted([*made, *g.members], key=lambda s: str(s.id))
    assert world.snapshots.list() == (every, "")
    found, token = [], ""
    for _ in range(9):
        items, token = world.snapshots.list(2, token, source_id=str(v.id))
        found += items
        if not token:
            break
    assert found == [s for s in every if s.source_id == str(v.id)]
    assert len(found) == 6
    assert world.snapshots.list(snapshot_id=str(made[0].id)) == ([made[0]], "")
    assert world.snapshots.list(snapshot_id=str(made[0].id), source_id=str(w.id)) == ([], "")
    assert world.snapshots.list(snapshot_id="nonsense") == ([], "")
    assert world.snapshots.list(source_id="nonsense") == ([], "")
    await world.volumes.delete(str(w.id))
    assert len(world.snapshots.list(source_id=str(w.id))[0]) == 3, "its snapshots outlive a volume"
    with pytest.raises(BadToken):
        world.snapshots.list(2, "x")
    with pytest.raises(InvalidRequest):
        world.snapshots.list(-1)

"""Disks: what is in them, how they are made, copied, grown, listed, counted and deleted."""

import os

import pytest
from contract_rig import BLOCK, MOUNTED, OWNER, POOL, RAW_BLOCK, SIZE, World, block, filled, piece, read_all, request

from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import (
    AlreadyExists,
    BadToken,
    InUse,
    InvalidRequest,
    NotFound,
    OutOfRange,
    OutOfSpace,
    Precondition,
    Unavailable,
)
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.model import AccessMode, SizeRange, Snapshot, Source, Volume, VolumeRequest
from csi_driver.domain.records import dump_volume


async def test_an_empty_volume_reads_as_zeroes(world: World) -> None:
    v = await world.volume("v", 3 * BLOCK)
    assert v.size == 3 * BLOCK
    assert await world.read(v) == bytes(3 * BLOCK)


@pytest.mark.parametrize(
    ("required", "limit", "size"),
    [(1, 0, BLOCK), (BLOCK + 1, 0, 2 * BLOCK), (SIZE, SIZE, SIZE), (0, 5 * BLOCK + 7, 5 * BLOCK), (0, 0, 1 << 30)],
)
async def test_sizes(world: World, required: int, limit: int, size: int) -> None:
    assert (await world.volume("v", required, limit=limit)).size == size


async def test_sizes_that_cannot_be(world: World) -> None:
    with pytest.raises(OutOfRange):
        await world.volume("v", 2 * BLOCK, limit=BLOCK)
    with pytest.raises(OutOfRange):
        await world.volume("v", 1, limit=2)
    with pytest.raises(OutOfRange):
        await world.volume("v", 1 << 62)
    assert world.volumes.list() == ([], "")


async def test_writes_stay(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"), (5 * BLOCK + 17, b"odd"), (SIZE - 1, b"!"))
    model = bytearray(filled("a"))
    model[5 * BLOCK + 17 : 5 * BLOCK + 20] = b"odd"
    model[-1:] = b"!"
    assert await world.read(v) == model
    await world.reopen()
    assert await world.read(v) == model


async def test_a_volume_from_a_snapshot(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"), piece(15, "z"))
    model = await world.read(v)
    s = await world.snapshot("s", v)
    same = await world.volume("same", 0, source=s)
    larger = await world.volume("larger", 3 * SIZE, source=s)
    assert (same.size, larger.size) == (SIZE, 3 * SIZE)
    assert await world.read(same) == model
    assert await world.read(larger) == model + bytes(2 * SIZE)
    with pytest.raises(OutOfRange):
        await world.volume("smaller", SIZE - BLOCK, source=s)
    with pytest.raises(OutOfRange):
        await world.volume("smaller", 0, source=s, limit=SIZE - BLOCK)


async def test_a_copy_of_a_volume(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(1, "a"))
    copy = await world.volume("copy", 2 * SIZE, source=v)
    await world.write(v, piece(1, "b"))
    assert await world.read(copy) == filled(".", "a", size=2 * SIZE)
    await world.write(copy, piece(2, "c"))
    assert await world.read(v) == filled(".", "b")


async def test_a_copy_of_a_volume_in_use_holds_what_was_synced(world: World) -> None:
    v = await world.volume("v")
    async with world.shown(v) as path:
        fd = os.open(path, os.O_RDWR)
        try:
            os.pwrite(fd, b"k" * BLOCK, 0)
            os.fsync(fd)
            copy = await world.volume("copy", 0, source=v)
            os.pwrite(fd, b"l" * BLOCK, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    assert await world.read(copy) == filled("k")
    assert await world.read(v) == filled("l")


async def test_the_same_request_for_a_copy_of_an_odd_size(world: World) -> None:
    """A claim cloned with its own request: 5000 bytes became 8192, and 5000 are enough again."""
    v = await world.volume("v", 5000)
    assert (await world.volume("copy", 5000, source=v)).size == v.size == 2 * BLOCK


async def test_many_volumes_from_one_snapshot(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"), piece(1, "b"))
    s = await world.snapshot("s", v)
    copies = [await world.volume(f"c{i}", 0, source=s) for i in range(12)]
    for i, copy in enumerate(copies):
        await world.write(copy, piece(1, str(i)[-1]))
    for i, copy in enumerate(copies):
        assert await world.read(copy) == filled("a", str(i)[-1])
    assert await world.content(s) == filled("a", "b")
    assert await world.read(v) == filled("a", "b")


async def test_deleting_the_source_harms_nothing_made_from_it(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    from_snapshot = await world.volume("from-snapshot", 0, source=s)
    from_volume = await world.volume("from-volume", 0, source=v)
    await world.volumes.delete(str(v.id))
    assert await world.content(s) == filled("a")
    await world.snapshots.delete(str(s.id))
    for left in (from_snapshot, from_volume):
        assert await world.read(left) == filled("a")
    await world.reopen()
    for left in (from_snapshot, from_volume):
        assert await world.read(left) == filled("a")


async def test_deleting_what_was_made_harms_no_source(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    for source in (s, v):
        copy = await world.volume("copy", 0, source=source)
        await world.write(copy, piece(0, "x"))
        await world.volumes.delete(str(copy.id))
    await world.snapshots.delete(str((await world.snapshot("t", v)).id))
    assert await world.read(v) == filled("a")
    assert await world.content(s) == filled("a")


async def test_space_comes_back(world: World) -> None:
    v = await world.volume("v", 8 << 20)
    await world.write(v, (0, os.urandom(8 << 20)))
    if world.rig.frees_at_once:
        full = (await world.backend.space()).free
        await world.volumes.delete(str(v.id))
        assert (await world.backend.space()).free >= full + (8 << 20)
    else:
        await world.volumes.delete(str(v.id))
    assert world.volumes.list() == ([], "")


async def test_the_same_request_gets_the_same_answer(world: World) -> None:
    v = await world.volume("v", 1000, limit=SIZE)
    for _ in range(3):
        again = await world.volume("v", 1000, limit=SIZE)
        assert again == v
        assert dump_volume(again) == dump_volume(v)
    await world.reopen()
    assert await world.volume("v", 1000, limit=SIZE) == v
    assert await world.volume("v", BLOCK, limit=SIZE) == v, "another range that the size serves"
    labelled = VolumeRequest("v", SizeRange(1000, SIZE), (RAW_BLOCK,), {}, {"csi.storage.k8s.io/pvc/name": "x"})
    assert await world.volumes.create(labelled) == v, "labels take no part"


async def test_the_same_request_after_an_expansion(world: World) -> None:
    v = await world.volume("v", SIZE, limit=SIZE)
    grown = await world.expand(v, 2 * SIZE)
    assert await world.volume("v", SIZE, limit=SIZE) == grown


async def test_another_request_under_the_same_name(world: World) -> None:
    v = await world.volume("v")
    with pytest.raises(AlreadyExists, match="size"):
        await world.volume("v", 2 * SIZE)
    with pytest.raises(AlreadyExists, match="source"):
        await world.volume("v", SIZE, source=v)
    with pytest.raises(AlreadyExists, match="capabilities"):
        await world.volume("v", capabilities=(block(AccessMode.MULTI_WRITER),))
    with pytest.raises(AlreadyExists, match="provisioning"):
        await world.volume("v", provisioning="thick")
    assert world.volumes.list() == ([v], "")


async def test_a_name_made_again_is_another_volume(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    await world.volumes.delete(str(v.id))
    again = await world.volume("v")
    assert again.id == v.id
    assert again.uid != v.uid
    assert await world.read(again) == filled()


async def test_a_copy_is_answered_when_its_source_is_gone(world: World) -> None:
    v = await world.volume("v")
    copy = await world.volume("copy", 0, source=v)
    await world.volumes.delete(str(v.id))
    assert await world.volume("copy", 0, source=v) == copy


async def test_delete_may_be_repeated_and_unknown_is_fine(world: World) -> None:
    v = await world.volume("v")
    for text in (
        str(v.id),
        str(v.id),
        "",
        "nonsense",
        "a:b",
        world.unknown.replace("0" * 32, "../../etc"),
        world.unknown,
    ):
        await world.volumes.delete(text)
    with pytest.raises(NotFound):
        world.volumes.get(str(v.id))


async def test_what_belongs_to_others_is_not_unknown(world: World) -> None:
    digest = "0" * 32
    nobodys = f"{OWNER if world.rig.owner == ANY_OWNER else ANY_OWNER}:{POOL}:{digest}"
    for text in (f"node-2:{POOL}:{digest}", nobodys, f"{world.rig.owner}:other:{digest}"):
        for call in (world.volumes.delete(text), world.volumes.expand(text, SizeRange(SIZE)), world.stage_id(text)):
            with pytest.raises(Unavailable):
                await call
        with pytest.raises(Unavailable):
            world.volumes.get(text)
        with pytest.raises(Unavailable):
            world.snapshots.list(source_id=text)


async def test_a_volume_in_use_is_not_deleted(world: World) -> None:
    v = await world.volume("v")
    await world.stage(v)
    with pytest.raises(InUse, match=world.staging(v)):
        await world.volumes.delete(str(v.id))
    target = await world.publish(v)
    with pytest.raises(InUse, match=target):
        await world.volumes.delete(str(v.id))
    await world.unpublish(v)
    await world.unstage(v)
    await world.volumes.delete(str(v.id))
    assert world.volumes.list() == ([], "")


async def test_an_unused_device_goes_with_its_volume(world: World) -> None:
    v = await world.volume("v")
    await world.backend.access.attach(v)
    await world.volumes.delete(str(v.id))
    assert world.backend.attached_devices == 0


async def test_expansion(world: World) -> None:
    v = await world.volume("v")
    await world.write(v, piece(15, "z"))
    grown = await world.expand(v, 2 * SIZE - 1)
    assert grown.size == 2 * SIZE
    assert await world.expand(v, 2 * SIZE) == grown
    assert await world.expand(v, SIZE) == grown, "what is enough already stays"
    with pytest.raises(OutOfRange):
        await world.volumes.expand(str(v.id), SizeRange(0, SIZE))
    with pytest.raises(InvalidRequest):
        await world.volumes.expand(str(v.id), SizeRange())
    with pytest.raises(NotFound):
        await world.volumes.expand("nonsense", SizeRange(SIZE))
    assert await world.read(v) == filled(*"." * 15, "z", size=2 * SIZE)
    await world.reopen()
    assert world.now(v) == grown
    assert await world.read(v) == filled(*"." * 15, "z", size=2 * SIZE)


async def test_expansion_is_seen_where_the_volume_is_published(world: World) -> None:
    v = await world.volume("v")
    async with world.shown(v) as path:
        fd = os.open(path, os.O_RDWR)
        try:
            os.pwrite(fd, b"a" * BLOCK, 0)
            await world.expand(v, 2 * SIZE)
            assert (await world.nodes.expand(str(v.id), path, SizeRange(2 * SIZE))).size == 2 * SIZE
            await world.nodes.expand(str(v.id), path, SizeRange())
            with pytest.raises(OutOfRange):
                await world.nodes.expand(str(v.id), path, SizeRange(3 * SIZE))
            assert os.lseek(fd, 0, os.SEEK_END) == 2 * SIZE
            os.pwrite(fd, b"b" * BLOCK, 2 * SIZE - BLOCK)
            os.fsync(fd)
        finally:
            os.close(fd)
        assert read_all(path) == filled("a", *"." * 30, "b", size=2 * SIZE)
    assert await world.read(v) == filled("a", *"." * 30, "b", size=2 * SIZE)


async def test_sources_that_are_not_there(world: World) -> None:
    v = await world.volume("v")
    s = await world.snapshot("s", v)
    await world.snapshots.delete(str(s.id))
    await world.volumes.delete(str(v.id))
    for gone in (v, s):
        with pytest.raises(NotFound):
            await world.volume("copy", 0, source=gone)
    with pytest.raises(NotFound):
        await world.volumes.create(VolumeRequest("copy", SizeRange(), (RAW_BLOCK,), source=Source("snapshot", "../x")))
    with pytest.raises(InvalidRequest):
        await world.volumes.create(VolumeRequest("copy", SizeRange(), (RAW_BLOCK,), source=Source("volume", "")))


async def test_requests_that_can_never_be_served(world: World) -> None:
    for bad in (
        VolumeRequest("", SizeRange(SIZE), (RAW_BLOCK,)),
        VolumeRequest("x" * 129, SizeRange(SIZE), (RAW_BLOCK,)),
        VolumeRequest("v", SizeRange(SIZE), ()),
        request("v", pool="No!"),
        request("v", speed="fast"),
        request("v", provisioning="fat"),
    ):
        with pytest.raises(InvalidRequest):
            await world.volumes.create(bad)
    assert (await world.volume("x" * 128)).name == "x" * 128


async def test_placement(world: World) -> None:
    assert (await world.volume("here", pool=POOL)).id.pool == POOL
    with pytest.raises(OutOfSpace):
        await world.volume("v", pool="elsewhere")
    if world.traits.shared:
        assert (await world.volumes.create(request("far"), ["node-2"])).id.owner == ANY_OWNER
    else:
        with pytest.raises(OutOfSpace):
            await world.volumes.create(request("v"), ["node-2"])
    assert (await world.volumes.create(request("v"), ["node-2", OWNER])).id.owner == world.rig.owner
    v = await world.volume("here", pool=POOL)
    with pytest.raises(InvalidRequest, match="elsewhere"):
        await world.volume("copy", 0, source=v, pool="elsewhere")


async def test_pages(world: World) -> None:
    made = [await world.volume(f"v{i}") for i in range(7)]
    expected = sorted(made, key=lambda v: str(v.id))
    assert world.volumes.list() == (expected, "")
    found, token = [], ""
    while True:
        items, token = world.volumes.list(3, token)
        assert len(items) <= 3
        found += items
        if not token:
            break
    assert found == expected
    items, token = world.volumes.list(3)
    await world.volumes.delete(str(items[-1].id))
    assert world.volumes.list(0, token) == (expected[3:], ""), "a page stays right while what it ended with goes"
    assert world.volumes.list(7)[1] == ""
    for bad in ("x", "after=", "after=a:b:c", "3"):
        with pytest.raises(BadToken):
            world.volumes.list(0, bad)
    with pytest.raises(InvalidRequest):
        world.volumes.list(-1)


async def test_committed_space_and_overcommit(world: World) -> None:
    total = (await world.backend.space()).total
    world.pool.policy = CapacityPolicy(overcommit=2.0, reserve=0)

    async def room() -> int:
        available, largest, least = await world.volumes.capacity({}, [RAW_BLOCK])
        assert (available, least) == (largest, BLOCK)
        return available

    assert await room() == 2 * total
    a = await world.volume("a", total)
    assert await room() == total
    s = await world.snapshot("s", a)
    assert await room() == total, "snapshots are not counted"
    with pytest.raises(OutOfRange):
        await world.volume("b", 2 * total + BLOCK)
    with pytest.raises(OutOfSpace):
        await world.volume("b", total + BLOCK)
    with pytest.raises(OutOfSpace):
        await world.volume("b", total + BLOCK, source=s)
    with pytest.raises(OutOfRange):
        await world.expand(a, 2 * total + BLOCK)
    b = await world.volume("b", total // BLOCK * BLOCK)
    assert await room() < BLOCK
    with pytest.raises(OutOfSpace):
        await world.volume("c", BLOCK)
    await world.volumes.delete(str(b.id))
    await world.expand(a, total + SIZE)
    await world.reopen()
    assert await room() == total - SIZE
    await world.volumes.delete(str(a.id))
    assert await room() == 2 * total
    assert (await world.volumes.capacity({"pool": "elsewhere"}, [])) == (0, 0, BLOCK)
    elsewhere = 2 * total if world.traits.shared else 0  # a shared pool has the same capacity at every node
    assert (await world.volumes.capacity({}, [], "node-2")) == (elsewhere, elsewhere, BLOCK)
    assert (await world.volumes.capacity({}, [MOUNTED]))[2] == 16 << 20


async def test_below_the_reserve_nothing_is_made(world: World) -> None:
    a = await world.volume("a")
    s = await world.snapshot("s", a)
    world.pool.policy = CapacityPolicy(reserve=(await world.backend.space()).total + 1)
    for attempt in (
        world.volume("b"),
        world.volume("b", 0, source=s),
        world.volume("b", 0, source=a),
        world.snapshot("t", a),
        world.group("g", a),
    ):
        with pytest.raises(OutOfSpace):
            await attempt
    assert (await world.volumes.capacity({}, []))[0] == 0
    assert await world.volume("a") == a, "what exists is still answered"
    assert await world.snapshot("s", a) == s
    await world.snapshots.delete(str(s.id))
    await world.volumes.delete(str(a.id))


async def test_thick_volumes_are_promised_real_space(world: World) -> None:
    free = (await world.backend.space()).free
    megabyte = 1 << 20
    world.pool.policy = CapacityPolicy(overcommit=100.0, reserve=free - 64 * megabyte)
    thick = {"provisioning": "thick"}
    if not world.traits.thick:
        assert (await world.volumes.capacity(thick, []))[0] == 0
        return
    room = (await world.volumes.capacity(thick, []))[0]
    assert 32 * megabyte < room < 65 * megabyte, "a little, for what earlier deletions still give back"
    assert (await world.volumes.capacity({}, []))[0] > room
    with pytest.raises(OutOfSpace):
        await world.volume("a", 66 * megabyte, **thick)
    a = await world.volume("a", 8 * megabyte, **thick)
    after = (await world.volumes.capacity(thick, []))[0]
    assert room - 9 * megabyte < after < room - 7 * megabyte
    await world.write(a, (0, os.urandom(8 * megabyte)))
    if not world.traits.thick_copies:
        with pytest.raises(Precondition, match="thick"):
            await world.snapshot("s", a)
        return
    await world.snapshot("s", a)
    shared = (await world.volumes.capacity(thick, []))[0]
    assert after - 9 * megabyte < shared < after - 7 * megabyte, "a snapshot sets aside what overwriting can cost"
    with pytest.raises(OutOfRange):
        await world.expand(a, a.size + shared + BLOCK)


async def test_validation(world: World) -> None:
    v = await world.volume("v")
    assert world.volumes.validate(str(v.id), [RAW_BLOCK, block(AccessMode.MULTI_WRITER)], {}) == ""
    assert "mount" in world.volumes.validate(str(v.id), [MOUNTED], {})
    assert "provisioning" in world.volumes.validate(str(v.id), [RAW_BLOCK], {"provisioning": "thick"})
    with pytest.raises(NotFound):
        world.volumes.validate("x", [RAW_BLOCK], {})
    with pytest.raises(InvalidRequest):
        world.volumes.validate(str(v.id), [], {})


@pytest.mark.parametrize("kind", ["snapshot", "volume"])
async def test_a_copy_is_no_answer_once_its_source_was_made_again(world: World, kind: str) -> None:
    async def make() -> Volume | Snapshot:
        v = await world.volume("v")
        s = await world.snapshot("s", v)
        return s if kind == "snapshot" else v

    source = await make()
    copy = await world.volume("copy", 0, source=source)
    await world.volumes.delete(str(next(v for v in world.pool.volumes.values() if v.name == "v").id))
    await world.snapshots.delete(str(next(iter(world.pool.snapshots.values())).id))
    assert await world.volume("copy", 0, source=source) == copy
    again = await make()
    assert again.id == source.id
    with pytest.raises(AlreadyExists, match="created again"):
        await world.volume("copy", 0, source=again)

"""Stage, publish and back, with raw block access."""

import os

import pytest
from contract_rig import MOUNTED, POOL, RAW_BLOCK, SIZE, World, block, filled, piece, read_all
from support.files import write_pieces

from csi_driver.domain.errors import (
    AlreadyExists,
    InUse,
    InvalidRequest,
    NotFound,
    Precondition,
    Unavailable,
    Unsupported,
)
from csi_driver.domain.model import AccessMode, Capability


async def test_the_whole_way_ten_times_each(world: World) -> None:
    v = await world.volume("v")
    for _ in range(10):
        await world.stage(v)
    for _ in range(10):
        target = await world.publish(v)
    write_pieces(target, piece(0, "a"))
    for _ in range(10):
        await world.unpublish(v)
        assert not os.path.lexists(target)
    for _ in range(10):
        await world.unstage(v)
    assert os.listdir(world.staging(v)) == []
    assert (await world.backend.access.use(v)).device == ""
    assert await world.read(v) == filled("a")


@pytest.mark.parametrize("mode", [AccessMode.WRITER, AccessMode.SINGLE_WRITER, AccessMode.MULTI_WRITER])
async def test_a_second_target(world: World, mode: AccessMode) -> None:
    v = await world.volume("v", capabilities=(block(mode),))
    await world.stage(v, block(mode))
    first = await world.publish(v, "a", block(mode))
    await world.publish(v, "a", block(mode))
    if mode is AccessMode.MULTI_WRITER:
        second = await world.publish(v, "b", block(mode))
        write_pieces(first, piece(0, "x"))
        write_pieces(second, piece(1, "y"))
        assert read_all(first) == read_all(second) == filled("x", "y")
        await world.unpublish(v, "a")
        assert read_all(second) == filled("x", "y")
        with pytest.raises(Precondition, match=second):
            await world.unstage(v)
    else:
        with pytest.raises(Precondition, match=first):
            await world.publish(v, "b", block(mode))
        assert not os.path.lexists(world.target(v, "b"))
        await world.unpublish(v, "a")
        await world.publish(v, "b", block(mode))
    await world.unpublish(v, "b")
    await world.unstage(v)


async def test_a_single_writer_comes_to_a_volume_that_many_use(world: World) -> None:
    v = await world.volume("v", capabilities=(block(AccessMode.MULTI_WRITER),))
    await world.stage(v, block(AccessMode.MULTI_WRITER))
    await world.publish(v, "a", block(AccessMode.MULTI_WRITER))
    with pytest.raises(Precondition):
        await world.publish(v, "b", block(AccessMode.SINGLE_WRITER))


@pytest.mark.parametrize("how", ["flag", "mode"])
async def test_read_only(world: World, how: str) -> None:
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    capability, flag = (RAW_BLOCK, True) if how == "flag" else (block(AccessMode.READER), False)
    await world.stage(v)
    if not world.traits.read_only:
        with pytest.raises(Unsupported, match="read-only"):
            await world.publish(v, "a", capability, flag)
        assert not os.path.lexists(world.target(v))
        return
    target = await world.publish(v, "a", capability, flag)
    await world.publish(v, "a", capability, flag)
    assert read_all(target) == filled("a")
    with pytest.raises(OSError):  # noqa: PT011 - EROFS, EPERM or EACCES
        write_pieces(target, piece(0, "b"))
    with pytest.raises(AlreadyExists):
        await world.publish(v)
    await world.unpublish(v)
    target = await world.publish(v)
    write_pieces(target, piece(0, "b"))
    with pytest.raises(AlreadyExists):
        await world.publish(v, "a", capability, flag)


async def test_order_is_kept(world: World) -> None:
    v = await world.volume("v")
    with pytest.raises(Precondition, match="stage it"):
        await world.publish(v)
    with pytest.raises(Precondition):
        await world.nodes.publish(str(v.id), "", world.target(v), RAW_BLOCK)
    await world.stage(v)
    other = str(world.directory / "another-staging")
    os.mkdir(other)
    with pytest.raises(Precondition):
        await world.nodes.publish(str(v.id), other, world.target(v), RAW_BLOCK)
    with pytest.raises(Precondition, match=world.staging(v)):
        await world.nodes.stage(str(v.id), other, RAW_BLOCK)
    target = await world.publish(v)
    with pytest.raises(Precondition, match=target):
        await world.unstage(v)
    with pytest.raises(InUse):
        await world.volumes.delete(str(v.id))
    assert read_all(target) == filled()
    assert os.listdir(other) == []


async def test_another_volume_takes_no_path_that_is_taken(world: World) -> None:
    v, w = await world.volume("v"), await world.volume("w")
    await world.write(v, piece(0, "v"))
    await world.stage(v)
    await world.stage(w)
    target = await world.publish(v)
    with pytest.raises(AlreadyExists):
        await world.nodes.publish(str(w.id), world.staging(w), target, RAW_BLOCK)
    with pytest.raises(AlreadyExists):
        await world.nodes.stage(str((await world.volume("x")).id), world.staging(v), RAW_BLOCK)
    assert read_all(target) == filled("v")
    assert (await world.backend.access.use(await world.volume("x"))).device == "", "nothing half-staged stays"
    assert len((await world.backend.access.use(v)).paths) == 2, "both of its places stay"


async def test_what_is_published_survives_a_restart(world: World) -> None:
    v = await world.volume("v")
    await world.stage(v)
    target = await world.publish(v)
    await world.reopen()
    write_pieces(target, piece(0, "a"))
    use = await world.backend.access.use(v)
    assert target in use.paths
    with pytest.raises(InUse, match=target):
        await world.volumes.delete(str(v.id))
    await world.stage(v)
    await world.publish(v)
    await world.unpublish(v)
    await world.unstage(v)
    assert await world.read(v) == filled("a")


async def test_a_volume_used_otherwise_than_it_was_made_for(world: World) -> None:
    v = await world.volume("v")
    with pytest.raises(Precondition, match="mount"):
        await world.stage(v, MOUNTED)
    await world.stage(v)
    with pytest.raises(Precondition):
        await world.publish(v, capability=MOUNTED)


async def test_the_first_stage_as_block_settles_the_format(world: World) -> None:
    v = await world.volume("v")
    assert v.format == "blank"
    await world.stage(v)
    await world.unstage(v)
    assert world.now(v).format == "raw"
    await world.reopen()
    assert world.now(v).format == "raw"
    s = await world.snapshot("s", v)
    assert (s.format, (await world.volume("copy", 0, source=s)).format) == ("raw", "raw")


async def test_unknown_volumes(world: World) -> None:
    staging, target = str(world.directory / "staging"), str(world.directory / "target")
    os.mkdir(staging)
    for text in ("nonsense", "", world.unknown):
        with pytest.raises(NotFound):
            await world.nodes.stage(text, staging, RAW_BLOCK)
        with pytest.raises(NotFound):
            await world.nodes.publish(text, staging, target, RAW_BLOCK)
        with pytest.raises(NotFound):
            await world.nodes.stats(text, staging)
        await world.nodes.unstage(text, staging)
        await world.nodes.unpublish(text, target)
    with pytest.raises(Unavailable):
        await world.nodes.unstage(f"node-2:{POOL}:{'0' * 32}", staging)


async def test_a_volume_that_was_deleted_from_outside_is_still_cleaned_up(world: World) -> None:
    v = await world.volume("v")
    await world.stage(v)
    target = await world.publish(v)
    world.pool.drop_volume(v.id.hash)
    await world.unpublish(v)
    await world.unstage(v)
    assert not os.path.lexists(target)
    assert os.listdir(world.staging(v)) == []


async def test_unpublish_removes_only_what_holds_nothing(world: World) -> None:
    v = await world.volume("v")
    target = world.target(v)
    for make in (lambda: open(target, "w").close(), lambda: os.mkdir(target)):
        make()
        await world.unpublish(v)
        assert not os.path.lexists(target)
    os.makedirs(os.path.join(target, "full"))
    with pytest.raises(AlreadyExists):
        await world.unpublish(v)
    assert os.path.isdir(os.path.join(target, "full"))
    os.rmdir(os.path.join(target, "full"))
    os.rmdir(target)
    with open(target, "w") as file:
        file.write("somebody's")
    with pytest.raises(AlreadyExists):
        await world.unpublish(v)
    with open(target) as file:
        assert file.read() == "somebody's"


async def test_paths_that_are_none(world: World) -> None:
    v = await world.volume("v")
    await world.stage(v)
    for bad in ("", "relative", "/a/../b", "/nul\0", "/" + "x" * 5000):
        with pytest.raises(InvalidRequest):
            await world.nodes.stage(str(v.id), bad, RAW_BLOCK)
        with pytest.raises(InvalidRequest):
            await world.nodes.unstage(str(v.id), bad)
        with pytest.raises(InvalidRequest):
            await world.nodes.publish(str(v.id), world.staging(v), bad, RAW_BLOCK)
        with pytest.raises(InvalidRequest):
            await world.nodes.unpublish(str(v.id), bad)
    with pytest.raises(InvalidRequest):
        await world.stage(v, Capability("mount", AccessMode.WRITER, "btrfs"))


async def test_a_trailing_slash_is_the_same_path(world: World) -> None:
    """The kubelet cleans its paths, other callers need not."""
    v = await world.volume("v")
    await world.nodes.stage(str(v.id), world.staging(v) + "/", RAW_BLOCK)
    target = await world.publish(v)
    assert len(read_all(target)) == SIZE
    await world.nodes.stats(str(v.id), target)
    await world.unpublish(v)
    await world.nodes.unstage(str(v.id), world.staging(v) + "/")
    assert (await world.backend.access.use(v)).device == ""

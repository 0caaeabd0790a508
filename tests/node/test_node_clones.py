"""Copies beside their origin on one node."""

import asyncio
import os
from pathlib import Path

import pytest
from support.files import write_file
from support.node_rig import Rig, mounted
from support.sizes import MIB

from csi_driver.domain.errors import InvalidRequest
from csi_driver.host.fs import mountinfo


async def test_five_xfs_copies_beside_their_origin(rig: Rig) -> None:
    """All have one UUID: without nouuid the second could not be mounted, nor the origin after a copy."""
    origin = await rig.volume("v", "xfs")
    target = await rig.show(origin)
    write_file(f"{target}/data", b"shared")
    snapshot = await rig.snapshot("s", origin)
    copies = await asyncio.gather(*(rig.volume(f"copy-{i}", "xfs", source=snapshot) for i in range(5)))
    targets = await asyncio.gather(*(rig.show(copy) for copy in copies))
    for index, path in enumerate(targets):
        assert Path(path, "data").read_bytes() == b"shared"
        shown = mountinfo.at(path)
        assert shown is not None
        assert "nouuid" in shown.super_options
        write_file(f"{path}/data", b"copy %d" % index)
    assert Path(target, "data").read_bytes() == b"shared"
    assert [Path(path, "data").read_bytes() for path in targets] == [b"copy %d" % i for i in range(5)]
    assert await rig.read(snapshot) == b"shared"


async def test_a_snapshot_a_copy_and_a_rollback_copy_no_data(rig: Rig) -> None:
    """However large the disk is: so that none of them takes longer for a larger one, nor space."""
    volume = await rig.volume("v", "block", 256 * MIB)
    with rig.image(volume).open("r+b") as image:
        image.write(os.urandom(256 * MIB))
        os.fsync(image.fileno())
    before = rig.disk.free()
    snapshot = await rig.snapshot("s", volume)
    await rig.volume("copy", "block", source=snapshot)
    await rig.volume("clone", "block", source=volume)
    await rig.roll_back(volume, snapshot, "r", safety=True)
    assert before - rig.disk.free() < 8 * MIB


async def test_the_origin_is_mounted_after_its_copy(rig: Rig) -> None:
    origin = await rig.volume("v", "xfs")
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"1")
    copy = await rig.volume("copy", "xfs", source=origin)
    await rig.show(copy)
    target = await rig.show(origin)
    assert Path(target, "data").read_bytes() == b"1"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_copy_of_a_volume_in_use_with_a_dirty_log(rig: Rig, fs_type: str) -> None:
    """Mounted read-only, so that the log's replay has to be possible all the same."""
    origin = await rig.volume("v", fs_type)
    target = await rig.show(origin)
    write_file(f"{target}/data", b"1")
    Path(target, "unsynced").write_bytes(b"2")
    copy = await rig.volume("copy", fs_type, source=origin)
    await rig.stage(copy)
    shown = await rig.publish(copy, read_only=True)
    assert Path(shown, "data").read_bytes() == b"1"
    assert Path(shown, "unsynced").read_bytes() == b"2"


@pytest.mark.parametrize(("fs_type", "asked"), [("ext4", "xfs"), ("xfs", "ext4")])
async def test_the_sources_file_system_wins(rig: Rig, fs_type: str, asked: str) -> None:
    origin = await rig.volume("v", fs_type)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"1")
    snapshot = await rig.snapshot("s", origin)
    copy = await rig.volume("copy", source=snapshot, capabilities=(mounted(""),))
    await rig.stage(copy, mounted(""))
    shown = mountinfo.at(rig.staging(copy))
    assert shown is not None
    assert shown.fs_type == fs_type
    with pytest.raises(InvalidRequest, match=f"{fs_type}.*{asked}"):
        await rig.volume("other", source=snapshot, capabilities=(mounted(asked),))
    with pytest.raises(InvalidRequest, match=f"{fs_type}.*{asked}"):
        await rig.volume("other", source=origin, capabilities=(mounted(asked),))


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_deleting_either_side_harms_neither(rig: Rig, fs_type: str) -> None:
    origin = await rig.volume("v", fs_type)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"1" * 100_000)
    first, second = await rig.snapshot("s1", origin), await rig.snapshot("s2", origin)
    from_first = await rig.volume("from-first", source=first, capabilities=(mounted(""),))
    from_volume = await rig.volume("from-volume", source=origin, capabilities=(mounted(""),))
    await rig.delete(first)
    await rig.delete(origin)
    await rig.reopen()
    for item in (second, from_first, from_volume):
        assert await rig.read(item) == b"1" * 100_000
    await rig.delete(from_first)
    await rig.delete(from_volume)
    assert await rig.read(second) == b"1" * 100_000


async def test_btrfs_is_refused_as_a_file_system(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match=r"btrfs is refused"):
        await rig.volume("v", size=1 << 30, capabilities=(mounted("btrfs"),))

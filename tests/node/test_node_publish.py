"""Publish: in how many places, read-only or writable, and once more."""

import os
from pathlib import Path

import pytest
from support.files import write_at, write_file
from support.node_rig import Rig, block, mounted

from csi_driver.domain.errors import AlreadyExists, Precondition
from csi_driver.domain.model import AccessMode
from csi_driver.host.fs import mounts

KINDS = ["ext4", "xfs", "block"]


@pytest.mark.parametrize(
    ("mode", "second"),
    [
        (AccessMode.MULTI_WRITER, None),
        (AccessMode.SINGLE_WRITER, Precondition),
        (AccessMode.WRITER, Precondition),
        (AccessMode.READER, Precondition),
    ],
)
@pytest.mark.parametrize("access", ["mount", "block"])
async def test_the_second_publish(rig: Rig, mode: AccessMode, second: type[Exception] | None, access: str) -> None:
    """The specification's table for SINGLE_NODE_MULTI_WRITER drivers."""
    how = mounted("ext4", mode=mode) if access == "mount" else block(mode)
    volume = await rig.volume("v", capabilities=(how,))
    await rig.stage(volume, how)
    await rig.publish(volume, "a", how)
    await rig.publish(volume, "a", how)
    if second is None:
        await rig.publish(volume, "b", how)
    else:
        with pytest.raises(second, match=r"allows one path only"):
            await rig.publish(volume, "b", how)
        assert not os.path.lexists(rig.target(volume, "b"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False], ids=["read-only", "writable"])
async def test_the_same_target_with_another_mode(rig: Rig, kind: str, first: bool) -> None:
    volume = await rig.volume("v", kind)
    await rig.stage(volume)
    await rig.publish(volume, read_only=first)
    with pytest.raises(AlreadyExists, match=r"is published at .* (read-only|writable): unpublish"):
        await rig.publish(volume, read_only=not first)
    await rig.publish(volume, read_only=first)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_read_only_mount_is_read_only_for_its_pod_alone(rig: Rig, fs_type: str) -> None:
    volume = await rig.volume("v", fs_type)
    await rig.stage(volume)
    writable, read_only = await rig.publish(volume, "a"), await rig.publish(volume, "b", read_only=True)
    write_file(f"{writable}/data", b"1")
    assert Path(read_only, "data").read_bytes() == b"1"
    with pytest.raises(OSError, match=r"Read-only"):
        Path(read_only, "data").write_bytes(b"2")
    write_file(f"{writable}/data", b"3")


async def test_the_readers_mode_is_read_only_without_being_told(rig: Rig) -> None:
    how = mounted("ext4", mode=AccessMode.READER)
    volume = await rig.volume("v", capabilities=(how,))
    await rig.stage(volume, how)
    target = await rig.publish(volume, how=how)
    with pytest.raises(OSError, match=r"Read-only"):
        Path(target, "data").write_bytes(b"2")


async def test_a_read_only_block_device_refuses_every_write(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    await rig.stage(volume)
    target = await rig.publish(volume, "a", read_only=True)
    with pytest.raises(OSError, match=r"not permitted"):
        write_at(target, 0, b"x" * 4096)
    with pytest.raises(Precondition, match=r"read-only at .*one mode for all"):
        await rig.publish(volume, "b")
    await rig.publish(volume, "b", read_only=True)
    await rig.unpublish(volume, "a")
    await rig.unpublish(volume, "b")
    again = await rig.publish(volume, "a")
    write_at(again, 0, b"x" * 4096)
    with pytest.raises(Precondition, match=r"writable at .*one mode for all"):
        await rig.publish(volume, "b", read_only=True)


async def test_a_volume_that_was_read_only_is_writable_at_its_next_stage(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    await rig.stage(volume)
    await rig.publish(volume, read_only=True)
    await rig.hide(volume)
    async with rig.shown(volume) as target:
        write_at(target, 0, b"x" * 4096)


@pytest.mark.parametrize("access", ["mount", "block"])
async def test_what_the_kubelet_binds_of_a_publish_is_no_second_place(rig: Rig, access: str) -> None:
    """A raw block goes on to volumeDevices, a subPath to volume-subpaths; and after its restart the kubelet publishes again."""
    how = mounted("ext4", mode=AccessMode.SINGLE_WRITER) if access == "mount" else block(AccessMode.SINGLE_WRITER)
    volume = await rig.volume("v", capabilities=(how,))
    await rig.stage(volume, how)
    target = await rig.publish(volume, "a", how)
    own = rig.place / "kubelets-own"
    if access == "mount":
        own.mkdir()
        Path(target, "sub").mkdir()
        mounts.bind(f"{target}/sub", own, False)
    else:
        own.touch()
        mounts.bind(target, own, False)
    try:
        await rig.publish(volume, "a", how)
        with pytest.raises(Precondition, match="allows one path only"):
            await rig.publish(volume, "b", how)
    finally:
        mounts.umount(own)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_what_is_staged_read_only_may_be_published_again(rig: Rig, fs_type: str) -> None:
    how = mounted(fs_type, "ro")
    volume = await rig.volume("v", fs_type, capabilities=(how,))
    async with rig.shown(volume):
        pass  # formatted
    await rig.stage(volume, how)
    for _ in range(2):
        target = await rig.publish(volume, "a", how)
    with pytest.raises(OSError, match="Read-only"):
        Path(target, "data").touch()
    await rig.publish(volume, "a", how, read_only=True)

"""Larger than it was: at stage after a restore to a larger size, and while in use."""

import asyncio
import errno
import hashlib
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.files import read_at, write_at, write_file
from support.machine import CAP_SYS_RESOURCE, has_capability
from support.node_rig import SMALL, Rig, mounted
from support.sizes import MIB

from csi_driver.domain.errors import Busy, OutOfRange, Precondition
from csi_driver.domain.model import SizeRange, Volume
from csi_driver.host.block import loop
from csi_driver.host.fs import filesystems, mountinfo
from csi_driver.host.helper.client import JobFailed

GROWN = 700 * MIB


def whole(rig: Rig, volume: Volume) -> int:
    """Bytes that the file system takes of its device, as it says itself."""
    return filesystems.size_of_file_system(
        rig.staging(volume) if volume.format == "xfs" else str(loop.find(rig.image(volume)).path)  # type: ignore[union-attr]
    )


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kill_when_it_runs(server: int, tool: str, stage: "asyncio.Task[str]") -> None:
    """Kill the tool that a child of the fork server starts, as soon as it is there; or return when the stage has ended."""
    while not stage.done():
        with suppress(OSError):  # a process that has ended meanwhile
            for child in children_of(server):
                for pid in children_of(child):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == tool:
                        os.kill(pid, signal.SIGKILL)
                        return


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def fills(size: int, volume: Volume) -> bool:
    """Up to the last allocation group or block group, which may be too small to be of use."""
    return volume.size - size < 128 * MIB if volume.format == "ext4" else volume.size - size < MIB


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("source", ["snapshot", "volume"])
async def test_restored_to_a_larger_size(rig: Rig, fs_type: str, source: str) -> None:
    origin = await rig.volume("v", fs_type)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"kept" * 1024)
    made_from = await rig.snapshot("s", origin) if source == "snapshot" else origin
    copy = await rig.volume("copy", fs_type, GROWN, source=made_from)
    assert os.path.getsize(rig.image(copy)) == GROWN
    await rig.stage(copy)
    assert whole(rig, copy) == GROWN
    target = await rig.publish(copy)
    assert (await rig.nodes.stats(str(copy.id), target))[1].total > 0.9 * GROWN
    assert Path(target, "data").read_bytes() == b"kept" * 1024
    write_file(f"{target}/big", b"x" * (SMALL[fs_type] + 16 * MIB))
    async with rig.shown(origin):
        assert rig.now(origin).size == SMALL[fs_type]


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_expanded_while_it_was_not_staged(rig: Rig, fs_type: str) -> None:
    volume = await rig.volume("v", fs_type)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"1")
    assert (await rig.expand(volume, GROWN)).size == GROWN
    await rig.stage(volume)
    assert whole(rig, rig.now(volume)) == GROWN
    assert Path(rig.staging(volume), "data").read_bytes() == b"1"


async def test_an_xfs_grows_while_it_is_written_to(rig: Rig) -> None:
    volume = await rig.volume("v", "xfs")
    target = await rig.show(volume)
    with open(f"{target}/data", "wb") as file:
        file.write(b"x" * MIB)
        grown = await rig.expand(volume, GROWN)
        device = rig.device(volume)
        assert device is not None
        assert loop.size(device) == GROWN
        for _ in range(2):
            assert (await rig.nodes.expand(str(volume.id), target, SizeRange(GROWN))).size == GROWN
        assert whole(rig, grown) == GROWN
        file.write(b"x" * (350 * MIB))
        file.flush()
        os.fsync(file.fileno())
    assert (await rig.nodes.stats(str(volume.id), target))[1].total > 0.9 * GROWN


async def test_a_block_device_grows_in_use(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    target = await rig.show(volume)
    fd = os.open(target, os.O_RDWR)
    try:
        await rig.expand(volume, 32 * MIB)
        assert os.lseek(fd, 0, os.SEEK_END) == 32 * MIB
        assert os.pwrite(fd, b"end!" * 1024, 32 * MIB - 4096) == 4096
        for path in (target, rig.staging(volume)):
            assert (await rig.nodes.expand(str(volume.id), path, SizeRange(32 * MIB))).size == 32 * MIB
    finally:
        os.close(fd)
    await rig.hide(volume)
    assert read_at(rig.image(volume), 32 * MIB - 4096, 4) == b"end!"


async def test_a_mounted_ext4_grows_where_the_agent_may(rig: Rig) -> None:
    """The kernel asks for CAP_SYS_RESOURCE; without it the answer says so, and the next stage grows it."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    write_file(f"{target}/data", b"1")
    await rig.expand(volume, GROWN)
    if has_capability(CAP_SYS_RESOURCE):
        await rig.nodes.expand(str(volume.id), target, SizeRange(GROWN))
        assert whole(rig, rig.now(volume)) == GROWN
        return
    for _ in range(2):
        with pytest.raises(Precondition, match=r"CAP_SYS_RESOURCE"):
            await rig.nodes.expand(str(volume.id), target, SizeRange(GROWN))
    assert Path(target, "data").read_bytes() == b"1"
    await rig.hide(volume)
    await rig.stage(volume)
    assert whole(rig, rig.now(volume)) == GROWN


@pytest.mark.parametrize("tool", ["e2fsck", "resize2fs"])
async def test_a_growth_before_the_mount_that_is_killed_changes_nothing(rig: Rig, tool: str) -> None:
    """resize2fs that dies half-way leaves what no check mends by itself, so it never works on the volume."""
    if has_capability(CAP_SYS_RESOURCE):
        pytest.skip("this agent has CAP_SYS_RESOURCE: it grows ext4 when it is mounted, in the kernel")
    volume = await rig.volume("v", "ext4")
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"1" * 4096)
    await rig.expand(volume, GROWN)
    killed, size = 0, GROWN
    while killed < 2:
        before = sha256(rig.image(volume))
        stage = asyncio.create_task(rig.stage(volume))
        await asyncio.to_thread(kill_when_it_runs, rig.children.server_pid, tool, stage)
        (outcome,) = await asyncio.gather(stage, return_exceptions=True)
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, Precondition)
            assert tool in str(outcome)
            assert sha256(rig.image(volume)) == before
            assert os.listdir(rig.disk.point / ".new") == []
            killed += 1
        else:  # it was through before it was met
            await rig.hide(volume)
            size += MIB
            await rig.expand(volume, size)
    await rig.stage(volume)
    assert whole(rig, rig.now(volume)) == size
    assert Path(rig.staging(volume), "data").read_bytes() == b"1" * 4096


async def test_nothing_to_grow_is_fine(rig: Rig) -> None:
    for kind in ("ext4", "xfs", "block"):
        volume = await rig.volume(f"v-{kind}", kind)
        target = await rig.show(volume)
        assert (await rig.nodes.expand(str(volume.id), target, SizeRange())).size == volume.size
        assert (await rig.expand(volume, 4096)).size == volume.size


async def test_the_node_does_not_grow_what_the_controller_has_not(rig: Rig) -> None:
    volume = await rig.volume("v", "xfs")
    target = await rig.show(volume)
    with pytest.raises(OutOfRange, match=r"expand the volume itself first"):
        await rig.nodes.expand(str(volume.id), target, SizeRange(GROWN))
    with pytest.raises(OutOfRange, match=r"volumes never shrink"):
        await rig.nodes.expand(str(volume.id), target, SizeRange(0, volume.size - 4096))
    assert whole(rig, rig.now(volume)) == volume.size


async def test_new_space_reads_as_zeroes(rig: Rig) -> None:
    """Also where the image was longer once: a snapshot of a larger volume does not shine through."""
    volume = await rig.volume("v", "block", 32 * MIB)
    write_at(rig.image(volume), 32 * MIB - 4096, b"x" * 4096)
    snapshot = await rig.snapshot("s", volume)
    grown = await rig.volume("copy", "block", 64 * MIB, source=snapshot)
    assert read_at(rig.image(grown), 32 * MIB - 4096, 4) == b"xxxx"
    assert not any(read_at(rig.image(grown), 32 * MIB, 32 * MIB))
    with pytest.raises(OutOfRange, match=r"less than the source"):
        await rig.volume("smaller", "block", 16 * MIB, source=snapshot)


async def test_a_device_left_small_by_a_crash_follows_at_the_next_call(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await rig.volume("v", "block")
    await rig.show(volume)
    with rig.image(volume).open("r+b") as file:
        file.truncate(32 * MIB)
    await rig.reopen()
    assert rig.now(volume).size == 32 * MIB
    await rig.expand(volume, 32 * MIB)
    device = rig.device(volume)
    assert device is not None
    assert loop.size(device) == 32 * MIB


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_grown_copy_that_is_mounted_read_only_grows_at_its_next_writable_stage(rig: Rig, fs_type: str) -> None:
    """The room can wait, and the data are there."""
    origin = await rig.volume("v", fs_type)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"1")
    how, writable = mounted(fs_type, "ro"), mounted(fs_type)
    copy = await rig.volume("copy", fs_type, GROWN, await rig.snapshot("s", origin), capabilities=(how, writable))
    for _ in range(2):
        await rig.stage(copy, how)
    target = await rig.publish(copy, how=how)
    assert Path(target, "data").read_bytes() == b"1"
    if whole(rig, copy) < GROWN:  # an ext4 may have grown before its mount
        for path in (rig.staging(copy), target):
            with pytest.raises(Precondition, match=r"mounted read-only: it grows when the volume is staged writable"):
                await rig.nodes.expand(str(copy.id), path, SizeRange(GROWN))
    else:
        assert fs_type == "ext4"
    await rig.hide(copy)
    await rig.stage(copy, writable)
    assert whole(rig, copy) == GROWN
    assert Path(rig.staging(copy), "data").read_bytes() == b"1"


async def test_a_pod_that_reads_alone_does_not_keep_the_file_system_from_growing(rig: Rig) -> None:
    """Its own mount is read-only, the staged one is not: what NodeExpandVolume is given is the pod's."""
    volume = await rig.volume("v", "xfs")
    await rig.stage(volume)
    target = await rig.publish(volume, read_only=True)
    await rig.expand(volume, GROWN)
    await rig.nodes.expand(str(volume.id), target, SizeRange(GROWN))
    assert whole(rig, rig.now(volume)) == GROWN


CANNOT_GROW = {
    "it is refused": (errno.EIO, "CommandError"),
    "the tool is killed at its deadline": (errno.ETIMEDOUT, "CommandError"),
    "another growth goes on": (errno.EAGAIN, "BlockingIOError"),
}


@pytest.mark.parametrize("why", CANNOT_GROW)
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_volume_that_cannot_grow_is_staged_as_large_as_it_was(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str, why: str
) -> None:
    """To fill the volume is no part of showing the data, whatever keeps it from that."""
    volume = await rig.volume("v", fs_type)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"1")
    await rig.expand(volume, GROWN)
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        if job == "grow":
            raise JobFailed(job, CANNOT_GROW[why][0], "the file system cannot grow", CANNOT_GROW[why][1])
        if job == "grow_copy":
            number, kind = (errno.ENOSPC, "OSError") if why == "it is refused" else CANNOT_GROW[why]
            raise JobFailed(job, number, "no room, or no time, for a copy", kind)
        return await real(job, timeout, **args)

    with monkeypatch.context() as patch:
        patch.setattr(rig.children, "run", run_)
        for _ in range(2):
            await rig.stage(volume)
        assert Path(rig.staging(volume), "data").read_bytes() == b"1"
        assert whole(rig, rig.now(volume)) == SMALL[fs_type]
    await rig.unstage(volume)
    await rig.stage(volume)
    assert whole(rig, rig.now(volume)) == GROWN


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_stage_that_fails_after_its_mount_leaves_nothing_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str
) -> None:
    """A refusal is final for a kubelet: it would never unstage, and the volume could never be deleted."""
    volume = await rig.volume("v", fs_type)
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        result = await real(job, timeout, **args)
        if job == "mount":
            raise JobFailed(job, 0, "signal 9", "Crashed")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(rig.children, "run", run_)
        with pytest.raises(Busy, match="was interrupted"):
            await rig.stage(volume)
        assert mountinfo.at(rig.staging(volume)) is None
        assert rig.devices() == []
    await rig.stage(volume)
    with monkeypatch.context() as patch:
        patch.setattr(rig.children, "run", run_)
        with pytest.raises(Busy, match="was interrupted"):
            await rig.stage(volume)
    assert mountinfo.at(rig.staging(volume)) is not None, "the earlier stage was answered and stays"

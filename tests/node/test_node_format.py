"""mkfs runs once in a volume's life, on nothing: whatever a probe would say, what was ever formatted or written is not."""

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.files import read_at, write_at, write_file
from support.node_rig import Rig, block, mounted
from support.sizes import MIB

from csi_driver.domain.errors import AlreadyExists, Busy, DriverError, InvalidRequest, Precondition
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.host.fs import filesystems, mountinfo


def formats_of(rig: Rig, volume: Volume) -> str:
    """As it stands on the disk, not in memory."""
    found: dict[str, Any] = json.loads((rig.image(volume).parent / "record.json").read_bytes())
    assert rig.now(volume).format == found["format"]
    return str(found["format"])


def log_jobs(rig: Rig, monkeypatch: pytest.MonkeyPatch, look: Callable[[str], None] = lambda job: None) -> list[str]:
    """Names of the jobs that are run from now on; `look` is called before each."""
    done: list[str] = []
    real = rig.children.run

    async def run(job: str, timeout: float, **args: Any) -> Any:
        look(job)
        done.append(job)
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run)
    return done


async def refused_or_failed(call: Awaitable[object]) -> None:
    with pytest.raises(DriverError):
        await call


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_formatted_once_in_a_lifetime(rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str) -> None:
    volume = await rig.volume("v", fs_type)
    assert formats_of(rig, volume) == "blank"
    seen: list[tuple[str, str]] = []

    def look(job: str) -> None:
        # Others are about what the machine has, such as somebody else's loop devices, and come before the pool is open.
        if job in ("make_file_system", "mount"):
            seen.append((job, formats_of(rig, volume)))

    jobs = log_jobs(rig, monkeypatch, look)
    await rig.stage(volume)
    order = dict(seen)
    assert order["make_file_system"] == f"formatting({fs_type})"
    assert order["mount"] == fs_type
    assert formats_of(rig, volume) == fs_type
    await rig.unstage(volume)
    await rig.reopen()
    await rig.stage(volume)
    assert jobs.count("make_file_system") == 1


async def test_blank_but_written_is_refused_and_untouched(rig: Rig) -> None:
    """Bytes that no probe knows are data all the same."""
    volume = await rig.volume("v")
    write_at(rig.image(volume), 12 * MIB, b"\0" * 4096)
    before = rig.image(volume).read_bytes()
    for _ in range(2):
        with pytest.raises(Precondition, match=r"never formatted .* has data: it is not formatted"):
            await rig.stage(volume)
    assert rig.image(volume).read_bytes() == before
    assert formats_of(rig, volume) == "blank"
    assert rig.devices() == []


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("made", ["itself", "from snapshot", "from volume", "rolled back"])
async def test_formatted_before_is_never_formatted_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str, made: str
) -> None:
    """Even where its superblock is gone, so that every probe says: nothing here."""
    origin = await rig.volume("v", fs_type)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"precious" * 1000)
    snapshot = await rig.snapshot("s", origin)
    if made == "itself":
        volume = origin
    elif made == "rolled back":
        await rig.roll_back(origin, snapshot, "r")
        volume = rig.now(origin)
    else:
        source: Volume | Snapshot = snapshot if made == "from snapshot" else origin
        volume = await rig.volume("copy", fs_type, source=source, capabilities=(mounted(""),))
    assert formats_of(rig, volume) == fs_type
    image = rig.image(volume)
    saved = read_at(image, 0, 128 * 1024)
    write_at(image, 0, b"\0" * 128 * 1024)
    assert filesystems.probe(image) == ""
    jobs = log_jobs(rig, monkeypatch)
    before = image.read_bytes()
    for _ in range(2):
        await refused_or_failed(rig.stage(volume))
    await rig.reopen()
    await refused_or_failed(rig.stage(volume))
    assert "make_file_system" not in jobs
    assert image.read_bytes() == before
    assert rig.devices() == []
    write_at(image, 0, saved)
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == b"precious" * 1000


async def test_even_an_image_without_any_data_is_not_formatted_if_it_once_was(rig: Rig) -> None:
    """All blocks lost: an empty file system in place of the lost one would hide the loss."""
    volume = await rig.volume("v")
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"x")
    with rig.image(volume).open("r+b") as file:
        file.truncate(0)
        file.truncate(volume.size)
    await refused_or_failed(rig.stage(volume))
    assert not any(rig.image(volume).read_bytes())


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("thick", [False, True], ids=["thin", "thick"])
async def test_left_in_the_middle_of_formatting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str, thick: bool
) -> None:
    """It was never mounted: emptied, and formatted again."""
    volume = await rig.volume("v", fs_type, thick=thick)
    access, real = type(rig.backend.access), rig.backend.access.make_file_system

    async def half(self: Any, volume: Volume, fs_type: str) -> None:
        await real(volume, fs_type)
        device = rig.device(volume)
        assert device is not None
        write_at(device.path, 8 * MIB, b"left over")
        raise Busy("cut short")

    monkeypatch.setattr(access, "make_file_system", half)
    with pytest.raises(Busy):
        await rig.stage(volume)
    monkeypatch.undo()
    assert formats_of(rig, volume) == f"formatting({fs_type})"
    assert rig.devices() == []
    await rig.reopen()
    async with rig.shown(volume) as path:
        assert os.listdir(path) in ([], ["lost+found"])
    assert formats_of(rig, volume) == fs_type
    assert b"left over" not in rig.image(volume).read_bytes()
    if thick:
        assert rig.image(volume).stat().st_blocks * 512 >= volume.size


async def test_another_file_system_after_a_formatting_that_did_not_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await rig.volume("v", "xfs", capabilities=(mounted(""), block()))

    async def interrupted(self: Any, volume: Volume, fs_type: str) -> None:
        raise Busy("cut short")

    monkeypatch.setattr(type(rig.backend.access), "make_file_system", interrupted)
    with pytest.raises(Busy):
        await rig.stage(volume, mounted("xfs"))
    monkeypatch.undo()
    assert formats_of(rig, volume) == "formatting(xfs)"
    await rig.stage(volume, block())
    assert formats_of(rig, volume) == "raw"


async def test_raw_is_never_formatted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await rig.volume("v", "block", capabilities=(block(), mounted("ext4")))
    assert formats_of(rig, volume) == "blank"
    await rig.stage(volume, block())
    assert formats_of(rig, volume) == "raw"
    await rig.unstage(volume)
    jobs = log_jobs(rig, monkeypatch)
    await refused_or_failed(rig.stage(volume, mounted("ext4")))
    await rig.reopen()
    await refused_or_failed(rig.stage(volume, mounted("ext4")))
    snapshot = await rig.snapshot("s", volume)
    copy = await rig.volume("copy", source=snapshot, capabilities=(mounted("ext4"),))
    assert copy.format == "raw"
    await refused_or_failed(rig.stage(copy))
    assert "make_file_system" not in jobs
    assert not any(rig.image(volume).read_bytes())
    assert rig.devices() == []


def format_as(rig: Rig, volume: Volume, *argv: str) -> None:
    """As the user of a block device formats it, whatever was there."""
    device = rig.device(volume)
    assert device is not None
    filesystems.run((*argv, device.path), 30)


async def test_a_raw_volume_that_its_user_formatted_is_mounted(rig: Rig) -> None:
    volume = await rig.volume("v", size=64 * MIB, capabilities=(block(), mounted("ext4")))
    await rig.stage(volume, block())
    format_as(rig, volume, "mkfs.ext4", "-q")
    await rig.unstage(volume)
    await rig.stage(volume, mounted("ext4"))
    assert formats_of(rig, volume) == "ext4"
    await rig.unstage(volume)
    await rig.stage(volume, block())
    assert formats_of(rig, volume) == "raw", "from now on its user may change that"


@pytest.mark.parametrize(
    ("fs_type", "mkfs"),
    [("ext4", ("mkfs.ext4", "-q")), ("ext4", ("mkfs.ext4", "-q", "-t", "ext3")), ("xfs", ("mkfs.xfs", "-q"))],
    ids=["ext4", "ext3", "xfs"],
)
async def test_written_as_a_block_device_and_then_mounted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str, mkfs: tuple[str, ...]
) -> None:
    """As a backup is restored: a volume created for block access is written, and a new PersistentVolume of its handle mounts it."""
    volume = await rig.volume("v", "block", 320 * MIB)
    with pytest.raises(Precondition, match=r"created for block access, not for mount"):
        await rig.stage(volume, mounted(""))  # nobody has written it yet, and it was not made to be formatted
    assert formats_of(rig, volume) == "blank"
    await rig.stage(volume)
    format_as(rig, volume, *mkfs)
    await rig.unstage(volume)
    await rig.reopen()
    jobs = log_jobs(rig, monkeypatch)
    await rig.stage(volume, mounted(""))
    target = await rig.publish(volume, how=mounted(""))
    shown = mountinfo.at(target)
    assert shown is not None
    assert shown.fs_type == fs_type
    assert formats_of(rig, volume) == fs_type
    write_file(f"{target}/data", b"restored")
    await rig.hide(volume)
    await rig.reopen()
    await rig.stage(volume, mounted(fs_type))
    assert Path(rig.staging(volume), "data").read_bytes() == b"restored"
    assert "make_file_system" not in jobs
    await rig.unstage(volume)
    with pytest.raises(Precondition, match=f"file system is {fs_type}, not "):
        await rig.stage(volume, mounted("xfs" if fs_type == "ext4" else "ext4"))


@pytest.mark.parametrize("recorded", ["now", "by an older driver"])
async def test_a_block_copy_that_its_user_formatted_again_is_restored_as_what_it_is(rig: Rig, recorded: str) -> None:
    """Its record, and its snapshot's, named what the source held."""
    origin = await rig.volume("v", "ext4")
    async with rig.shown(origin):
        pass
    copy = await rig.volume("copy", "block", 320 * MIB, source=await rig.snapshot("s", origin))
    await rig.stage(copy)
    assert formats_of(rig, copy) == "raw"
    format_as(rig, copy, "mkfs.xfs", "-q", "-f")
    await rig.unstage(copy)
    if recorded == "by an older driver":
        old = replace(rig.now(copy), format="ext4")
        await rig.backend.save_volume(old)
        rig.pool.put_volume(old)
    snapshot = await rig.snapshot("of the copy", rig.now(copy))
    assert snapshot.format == ("raw" if recorded == "now" else "ext4")
    with pytest.raises(InvalidRequest, match=r"has xfs, ext4 was requested"):
        await rig.volume("as-ext4", source=snapshot, capabilities=(mounted("ext4"),))
    with pytest.raises(InvalidRequest, match=r"'data' is not allowed with xfs"):
        await rig.volume("with-a-flag", source=snapshot, capabilities=(mounted("", "data=ordered"),))
    back = await rig.volume("back", source=snapshot, capabilities=(mounted(""),))
    clone = await rig.volume("clone", source=rig.now(copy), capabilities=(mounted("xfs"),))
    for made in (back, clone):
        assert formats_of(rig, made) == "xfs"
        await rig.stage(made, mounted(""))
        shown = mountinfo.at(rig.staging(made))
        assert shown is not None
        assert shown.fs_type == "xfs"
    await rig.stage(rig.now(copy), mounted(""))
    assert formats_of(rig, copy) == "xfs"


async def test_what_is_no_file_system_is_said_and_not_mounted(rig: Rig) -> None:
    volume = await rig.volume("v", "block", 16 * MIB)
    for offset, magic, named in ((0, b"\0" * 8, "no known content"), (536, b"LVM2 001", "LVM2_member")):
        await rig.stage(volume)
        device = rig.device(volume)
        assert device is not None
        write_at(device.path, offset, magic)
        await rig.unstage(volume)
        before = rig.image(volume).read_bytes()
        with pytest.raises(Precondition, match=f"has {named}, not a file system that can be mounted"):
            await rig.stage(volume, mounted(""))
        assert rig.image(volume).read_bytes() == before
        assert formats_of(rig, volume) == "raw"
        assert rig.devices() == []


async def test_a_refused_stage_as_a_block_device_makes_nothing_raw(rig: Rig) -> None:
    """It is mounted there, and nobody gets the device."""
    volume = await rig.volume("v", capabilities=(mounted("ext4"), block()))
    await rig.stage(volume, mounted("ext4"))
    with pytest.raises(AlreadyExists, match=r"taken by a mount"):
        await rig.stage(volume, block())
    assert formats_of(rig, volume) == "ext4"


@pytest.mark.parametrize("thick", [False, True], ids=["thin", "thick"])
async def test_a_copy_of_a_blank_volume_is_blank_and_formatted(rig: Rig, thick: bool) -> None:
    """As it was at the snapshot; allocated space is no data."""
    origin = await rig.volume("v")
    snapshot = await rig.snapshot("s", origin)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"later")
    copy = await rig.volume("copy", source=snapshot, thick=thick, capabilities=(mounted("xfs"),), size=300 * MIB)
    assert copy.format == "blank"
    async with rig.shown(copy) as path:
        assert "data" not in os.listdir(path)
    assert formats_of(rig, copy) == "xfs"


async def test_rolled_back_to_before_its_first_format(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(mounted(""),))
    before = await rig.snapshot("before", volume)
    await rig.stage(volume, mounted("ext4"))
    await rig.unstage(volume)
    await rig.roll_back(volume, before, "r")
    assert formats_of(rig, volume) == "blank"
    await rig.stage(rig.now(volume), mounted("ext4"))
    assert formats_of(rig, volume) == "ext4"


async def test_the_format_is_on_the_disk_before_the_first_mount(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be recorded, nothing is mounted: a file system in use would be taken for a half-made one."""
    volume = await rig.volume("v")
    real = rig.backend.save_volume

    async def save(changed: Volume) -> None:
        if changed.format == "ext4":
            raise Busy("not recorded")
        await real(changed)

    monkeypatch.setattr(rig.backend, "save_volume", save)
    jobs = log_jobs(rig, monkeypatch)
    with pytest.raises(Busy):
        await rig.stage(volume)
    assert "mount" not in jobs
    monkeypatch.undo()
    async with rig.shown(volume):
        pass


async def test_an_error_of_looking_is_not_taken_for_empty(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await rig.volume("v")
    from csi_driver.host.fs import files

    def broken(fd: int) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "has_data", broken)
    jobs = log_jobs(rig, monkeypatch)
    await refused_or_failed(rig.stage(volume))
    assert "make_file_system" not in jobs
    assert formats_of(rig, volume) == "blank"

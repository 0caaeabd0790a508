"""Thick: a write never fails for want of space."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.files import allocated, read_at, write_at, write_file
from support.node_rig import Rig, mounted
from support.sizes import GIB, MIB

from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import OutOfSpace
from csi_driver.domain.model import SizeRange, Volume
from csi_driver.host import syscalls
from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import allocation, extents

SIZE = 320 * MIB


def exclusive(path: Path) -> int:
    with path.open("rb") as file:
        return extents.usage(file.fileno()).exclusive_bytes


def fill(directory: Path, keep: int = 0) -> int:
    """Take the pool's free space, but for `keep` bytes; returns what is left."""
    index = 0
    while (free := os.statvfs(directory).f_bavail * 4096) > keep + 4 * MIB:
        with (directory / f"filler-{index}").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, min(free - keep, 512 * MIB) - 2 * MIB)
        index += 1
    return free


def leave(rig: Rig, room: int) -> None:
    """Take the pool's space, or give it back, until about so much is free: at most 4 MiB more."""
    with (rig.disk.point / "filler").open("ab") as file:
        os.ftruncate(file.fileno(), 0)
        while (more := rig.disk.free() - room) > 4 * MIB:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(more - 2 * MIB, 256 * MIB))


def sync(rig: Rig, path: str) -> None:
    """Write back the file system at `path` and the pool below it: os.sync() waits for others' too, and some are frozen."""
    run(("sync", "--file-system", path, str(rig.disk.point)), 60)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_its_space_is_taken_and_stays_taken(rig: Rig, fs_type: str) -> None:
    """After creation, mkfs, a mount with discard, fstrim and a deletion of files: always the whole size."""
    how = mounted(fs_type, "discard")
    volume = await rig.volume("v", fs_type, SIZE, thick=True, capabilities=(how,))
    image = rig.image(volume)
    assert allocated(image) >= SIZE
    await rig.stage(volume, how)
    assert allocated(image) >= SIZE
    staging = rig.staging(volume)
    write_file(f"{staging}/data", b"x" * (64 * MIB))
    os.unlink(f"{staging}/data")
    sync(rig, staging)
    with pytest.raises(OSError, match=r"not supported|fstrim"):
        run(("fstrim", staging), 30)
    await rig.unstage(volume)
    assert allocated(image) >= SIZE
    await rig.stage(volume, how)
    assert allocated(image) >= SIZE


async def test_a_device_that_an_attach_left_half_way_is_adopted_and_refuses_discard(rig: Rig) -> None:
    """The first stage ended right after the device was bound; the next one finds it."""
    volume = await rig.volume("v", "ext4", SIZE, thick=True)
    device = loop.attach(rig.image(volume))
    assert loop_ioctl.sysfs(device.number, "queue/discard_max_bytes") != "0"
    staging = await rig.stage(volume)
    assert rig.device(volume) == device
    assert loop_ioctl.sysfs(device.number, "queue/discard_max_bytes") == "0"
    assert loop_ioctl.shows(device.number, "queue/scheduler", "[none]")
    with pytest.raises(OSError, match=r"not supported|fstrim"):
        run(("fstrim", staging), 30)
    assert allocated(rig.image(volume)) >= SIZE


async def test_thin_takes_what_is_written_and_trim_gives_it_back(rig: Rig) -> None:
    volume = await rig.volume("v", size=SIZE)
    image = rig.image(volume)
    assert allocated(image) == 0
    target = await rig.show(volume)
    write_file(f"{target}/data", os.urandom(64 * MIB))
    sync(rig, target)
    assert 64 * MIB <= allocated(image) < 100 * MIB
    os.unlink(f"{target}/data")
    sync(rig, target)
    run(("fstrim", rig.staging(volume)), 30)
    assert allocated(image) < 36 * MIB


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_in_a_full_pool_thick_writes_and_thin_does_not(rig: Rig, fs_type: str) -> None:
    thick = await rig.volume("thick", fs_type, SIZE, thick=True)
    thin = await rig.volume("thin", fs_type, SIZE)
    thick_target, thin_target = await rig.show(thick), await rig.show(thin)
    write_file(f"{thin_target}/small", b"1")
    left = fill(rig.disk.point)
    assert left < 8 * MIB
    data = os.urandom(MIB)
    with open(f"{thick_target}/data", "wb") as file:
        for _ in range(200):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(OSError, match=r"No space|Input/output|Read-only"):  # noqa: PT012, SIM117
        with open(f"{thin_target}/data", "wb") as file:
            for _ in range(200):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
    assert Path(thick_target, "data").stat().st_size == 200 * MIB
    for entry in rig.disk.point.glob("filler-*"):
        entry.unlink()


async def test_a_thick_copy_has_blocks_of_its_own(rig: Rig) -> None:
    origin = await rig.volume("v", size=SIZE)
    async with rig.shown(origin) as path:
        write_file(f"{path}/data", b"kept" * 1_000_000)
    snapshot = await rig.snapshot("s", origin)
    for index, source in enumerate((snapshot, origin)):
        copy = await rig.volume(f"copy-{index}", size=SIZE + 64 * MIB, source=source, thick=True)
        assert exclusive(rig.image(copy)) >= SIZE + 64 * MIB
        async with rig.shown(copy) as path:
            assert Path(path, "data").read_bytes() == b"kept" * 1_000_000
        await rig.delete(copy)


async def test_a_thick_volume_that_grows_takes_the_new_space(rig: Rig) -> None:
    volume = await rig.volume("v", "xfs", SIZE, thick=True)
    target = await rig.show(volume)
    await rig.expand(volume, SIZE + 64 * MIB)
    assert allocated(rig.image(volume)) >= SIZE + 64 * MIB
    await rig.nodes.expand(str(volume.id), target, SizeRange())
    assert allocated(rig.image(volume)) >= SIZE + 64 * MIB


@pytest.mark.parametrize("seen", [True, False], ids=["at once", "in the middle"])
async def test_growth_that_finds_no_space_takes_none(rig: Rig, monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    """Thin volumes may take, between the reading of the account and the growth, or during it, what the account had."""
    volume = await rig.volume("v", size=SIZE, thick=True)
    before = allocated(rig.image(volume))
    if not seen:
        monkeypatch.setattr(allocation, "_refuse_full", lambda *_: None)
    with pytest.raises(OutOfSpace, match="is full"):
        await rig.pool.backend.expand_volume(replace(volume, size=SIZE + 28 * GIB))
    assert allocated(rig.image(volume)) == before
    assert os.stat(rig.image(volume)).st_size == SIZE


LITTLE = 24 * MIB
"""Free bytes beyond what the calls themselves must find: for a journal's replay, records and the pool's own trees."""


@pytest.mark.parametrize("rig", [{"size": 20 * GIB}], indirect=True)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "block"])
async def test_whatever_is_done_with_it_needs_what_it_takes_and_the_reserve(rig: Rig, kind: str) -> None:
    """Made, staged, cut, restored, rolled back and grown, each with no more free than that."""
    rig.pool.policy = CapacityPolicy(reserve=GIB)
    size, growth = 5 * GIB, 512 * MIB

    async def written(volume: Volume, data: bytes) -> None:
        if kind == "block":
            write_at(rig.image(volume), GIB, data)
            return
        async with rig.shown(volume) as path:
            write_file(f"{path}/data", data)

    async def read(volume: Volume) -> bytes:
        if kind == "block":
            return read_at(rig.image(volume), GIB, MIB)
        async with rig.shown(volume) as path:
            return Path(path, "data").read_bytes()

    async def staged(volume: Volume) -> None:
        leave(rig, GIB + LITTLE)
        await rig.stage(volume)
        await rig.unstage(volume)
        assert allocated(rig.image(volume)) >= rig.now(volume).size

    leave(rig, size + GIB + LITTLE)
    volume = await rig.volume("v", kind, size, thick=True)
    await staged(volume)
    await written(volume, b"1" * MIB)
    leave(rig, size + GIB + LITTLE)
    snapshot = await rig.snapshot("s", volume)
    await staged(volume)
    await written(volume, b"2" * MIB)
    leave(rig, size + GIB + LITTLE)
    copy = await rig.volume("copy", kind, size, source=snapshot, thick=True)
    await staged(copy)
    assert await read(copy) == b"1" * MIB
    await rig.delete(copy)
    leave(rig, size + GIB + LITTLE)
    await rig.roll_back(volume, snapshot, "r")
    await staged(volume)
    leave(rig, growth + GIB + LITTLE)
    grown = await rig.expand(volume, size + growth)
    await staged(grown)
    assert await read(grown) == b"1" * MIB
    assert exclusive(rig.image(grown)) >= size + growth


@pytest.mark.parametrize("rig", [{"size": 20 * GIB}], indirect=True)
async def test_more_than_half_of_an_empty_pool(rig: Rig) -> None:
    rig.pool.policy = CapacityPolicy()
    size = (await rig.pool.account()).available_thick // GIB * GIB
    assert size >= 18 * GIB
    volume = await rig.volume("v", "block", size, thick=True)
    assert allocated(rig.image(volume)) >= size
    await rig.stage(volume)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_what_a_stage_repairs_does_not_fail_it(rig: Rig, fs_type: str) -> None:
    """Space that a volume lost is not there now: it is staged all the same, that is told, and the next stage takes it."""
    volume = await rig.volume("v", fs_type, SIZE, thick=True)
    await rig.stage(volume)
    await rig.unstage(volume)
    with rig.image(volume).open("r+b") as file:
        syscalls.call("fallocate, punch", "fallocate", file.fileno(), 3, SIZE - 64 * MIB, 48 * MIB)
    leave(rig, 32 * MIB)
    with capture_logs() as logs:
        await rig.stage(volume)
    assert [(entry["log_level"], entry["volume"]) for entry in logs] == [("warning", str(volume.id))]
    await rig.unstage(volume)
    assert allocated(rig.image(volume)) < SIZE
    assert (await rig.pool.account()).promised > 40 * MIB, "kept for it"
    leave(rig, 96 * MIB)
    await rig.stage(volume)
    assert allocated(rig.image(volume)) >= SIZE


async def test_a_snapshot_sets_aside_what_overwriting_can_cost(rig: Rig) -> None:
    volume = await rig.volume("v", size=SIZE, thick=True)
    target = await rig.show(volume)
    write_file(f"{target}/data", os.urandom(200 * MIB))
    before = (await rig.pool.account()).available_thick
    snapshot = await rig.snapshot("s", volume)
    assert exclusive(rig.image(volume)) >= SIZE, "the snapshot has the old blocks, the volume has as many of its own"
    assert exclusive(rig.image(snapshot)) >= 200 * MIB
    assert (await rig.pool.account()).promised == 0
    assert before - (await rig.pool.account()).available_thick == pytest.approx(200 * MIB, abs=40 * MIB)
    await rig.delete(snapshot)


async def test_a_snapshot_of_a_thick_volume_without_space_for_it(rig: Rig) -> None:
    volume = await rig.volume("v", size=SIZE, thick=True)
    fill(rig.disk.point, keep=200 * MIB)
    needs = r"must set aside \d+ bytes \([^;]+; as much again as each thick volume that is snapshotted has allocated"
    with pytest.raises(OutOfSpace, match=needs):
        await rig.snapshot("s", volume)
    with pytest.raises(OutOfSpace):
        await rig.volume("copy", size=SIZE, source=volume, thick=True)
    with pytest.raises(OutOfSpace, match=r"can reserve"):
        await rig.volume("w", size=SIZE, thick=True)
    for entry in rig.disk.point.glob("filler-*"):
        entry.unlink()
    while rig.disk.free() < 2 * SIZE:  # XFS gives it back a little later
        await asyncio.sleep(0.05)
    await rig.snapshot("s", volume)


@pytest.mark.parametrize("rig", [{"size": GIB}], indirect=True)
async def test_overwriting_after_a_snapshot_does_not_fail(rig: Rig) -> None:
    """The pool's room for it is kept from whatever the driver is asked to make meanwhile."""
    volume = await rig.volume("v", size=SIZE, thick=True)
    target = await rig.show(volume)
    write_file(f"{target}/data", os.urandom(250 * MIB))
    await rig.snapshot("s", volume)
    made = 0
    with pytest.raises(OutOfSpace):  # noqa: PT012
        while made < 20:
            await rig.volume(f"w{made}", size=64 * MIB, thick=True)
            made += 1
    with open(f"{target}/data", "r+b") as file:
        file.write(os.urandom(250 * MIB))
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("rig", [{"size": GIB}], indirect=True)
async def test_overwriting_after_a_snapshot_in_a_pool_that_thin_volumes_filled(rig: Rig) -> None:
    volume = await rig.volume("v", size=SIZE, thick=True)
    target = await rig.show(volume)
    write_file(f"{target}/data", os.urandom(250 * MIB))
    await rig.snapshot("s", volume)
    fill(rig.disk.point)
    with open(f"{target}/data", "r+b") as file:
        file.write(os.urandom(250 * MIB))
        file.flush()
        os.fsync(file.fileno())

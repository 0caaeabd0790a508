"""Snapshots of volumes in use: clean, complete, bounded; whatever hangs or is in the way harms its own volume alone."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.files import read_at, write_at, write_file
from support.freezing import freeze, is_frozen, thaw
from support.machine import process
from support.node_rig import Rig, mounted
from support.sizes import MIB
from support.waiting import until

from csi_driver.domain.errors import Busy, DriverError, Precondition
from csi_driver.domain.model import SizeRange, Snapshot, Volume
from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.helper.client import JobStuck
from csi_driver.host.helper.job import JobEnded

WRITER = """
import os, sys
root = sys.argv[1]
number = 0
print('ready', flush=True)
while True:
    number += 1
    name = f"{root}/f{number % 40}"
    with open(name + ".new", "wb") as file:
        file.write(b"%d\\n" % number + b"x" * 50_000)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".new", name)
    fd = os.open(root, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    print(number, flush=True)
"""


async def check_clean(rig: Rig, copy: Volume, fs_type: str) -> None:
    """Nothing is to be mended: of ext4 not even the journal is to be replayed, of XFS the free space counters are in the log."""
    if fs_type == "xfs":
        await rig.stage(copy)
        await rig.unstage(copy)
    device = await rig.access.attach(copy)
    run(("e2fsck", "-f", "-n", device) if fs_type == "ext4" else ("xfs_repair", "-n", device), 60)
    await rig.access.detach(copy)


def paused_snapshots(rig: Rig, monkeypatch: pytest.MonkeyPatch, pause: float, *points: str) -> None:
    """Let cuts wait inside their freeze (of these staging paths, or all)."""
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut" and (not points or any(m["point"].startswith(points) for m in args["mounts"])):
            args["test_pause"] = pause
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run_)


def waiting_cloners(server: int) -> list[int]:
    """The cloning processes that sleep inside their freeze."""

    def below(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    with suppress(OSError):
        cloners = [cloner for child in below(server) for cloner in below(child)]
        return [pid for pid in cloners if "sigtimedwait" in Path(f"/proc/{pid}/wchan").read_text()]
    return []


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_snapshot_under_load(rig: Rig, fs_type: str) -> None:
    """All that was fsynced before the call is in it, the file system is clean, the writer goes on."""
    volume = await rig.volume("v", fs_type, 400 * MIB)
    target = await rig.show(volume)
    with process(sys.executable, "-c", WRITER, target) as writer:
        assert writer.stdout is not None
        os.set_blocking(writer.stdout.fileno(), False)
        said = b""

        def acknowledged() -> int:
            nonlocal said
            while part := _read(writer.stdout.fileno()):  # type: ignore[union-attr]
                said += part
            whole = said[: said.rfind(b"\n")].split() if b"\n" in said else []
            return int(whole[-1]) if whole else 0

        while acknowledged() < 20:
            await asyncio.sleep(0.05)
        cuts: list[tuple[int, Snapshot]] = []
        for index in range(5):
            before = acknowledged()
            cuts.append((before, await rig.snapshot(f"s{index}", volume)))
            while acknowledged() == before:
                await asyncio.sleep(0.01)
    assert not is_frozen(target)
    for before, snapshot in cuts:
        copy = await rig.volume(f"from-{snapshot.name}", source=snapshot, capabilities=(mounted(""),))
        await check_clean(rig, copy, fs_type)
        async with rig.shown(copy) as path:
            found = [int(file.read_bytes().split(b"\n")[0]) for file in Path(path).glob("f*") if file.suffix == ""]
            assert max(found) >= before
            assert all(len(file.read_bytes()) > 50_000 for file in Path(path).glob("f*") if file.suffix == "")
        await rig.delete(copy)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


async def test_data_that_was_not_synced_is_in_a_snapshot_too(rig: Rig) -> None:
    """The file system is synced before it is frozen: what was written before the call is there, fsync or not."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    Path(target, "data").write_bytes(b"in memory" * 100_000)
    snapshot = await rig.snapshot("s", volume)
    Path(target, "data").write_bytes(b"later")
    assert await rig.read(snapshot) == b"in memory" * 100_000
    assert snapshot.created <= time.time_ns()


async def test_a_raw_device_is_flushed_first(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    target = await rig.show(volume)
    with open(target, "r+b", buffering=0) as file:
        file.write(b"in memory".ljust(4096))
        snapshot = await rig.snapshot("s", volume)
        file.seek(0)
        file.write(b"later".ljust(4096))
    assert read_at(rig.image(snapshot), 0, 9) == b"in memory"


COUNTERS = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DSYNC)
print('ready', flush=True)
number = 0
while True:
    number += 1
    for offset in (0, 8 << 20):
        os.pwrite(fd, b"%020d" % number, offset)
"""


async def test_a_snapshot_of_a_raw_device_is_one_point_in_time(rig: Rig) -> None:
    """With every acknowledged write, and none without those before it: first to the one end, then to the other."""
    volume = await rig.volume("v", "block")
    target = await rig.show(volume)
    for offset in range(0, 16 * MIB, 8192):
        write_at(rig.image(volume), offset, b"x" * 4096)
    write_at(target, 0, b"0" * 20)
    write_at(target, 8 * MIB, b"0" * 20)
    with process(sys.executable, "-c", COUNTERS, target):
        for index in range(30):
            before = int(read_at(rig.image(volume), 8 * MIB, 20))
            snapshot = await rig.snapshot(f"s{index}", volume)
            first, second = (int(read_at(rig.image(snapshot), offset, 20)) for offset in (0, 8 * MIB))
            assert before <= second <= first <= second + 1, f"cut {index}"
            await until(lambda first=first: int(read_at(rig.image(volume), 8 * MIB, 20)) > first)  # type: ignore[misc]


async def test_a_snapshot_is_complete_in_the_first_answer_and_never_changes(rig: Rig) -> None:
    volume = await rig.volume("v")
    target = await rig.show(volume)
    write_file(f"{target}/data", b"1")
    snapshot = await rig.snapshot("s", volume)
    image = rig.image(snapshot)
    assert snapshot.size == volume.size == os.path.getsize(image)
    assert os.stat(image).st_mode & 0o777 == 0o400
    before = image.read_bytes()
    write_file(f"{target}/data", b"2" * MIB)
    await rig.expand(volume, 2 * volume.size)
    assert image.read_bytes() == before
    assert await rig.snapshot("s", volume) == snapshot
    assert await rig.read(snapshot) == b"1"


async def test_a_volume_that_is_staged_read_only_has_snapshots_too(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(mounted("ext4"),))
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"1")
    await rig.stage(volume, mounted("ext4", "ro"))
    assert await rig.read(await rig.snapshot("s", volume)) == b"1"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_frozen_by_somebody_else(rig: Rig, fs_type: str) -> None:
    """FAILED_PRECONDITION, and it stays frozen; others work; a restart of the agent leaves it frozen as well."""
    volume, other = await rig.volume("v", fs_type), await rig.volume("w", fs_type)
    target, works = await rig.show(volume), await rig.show(other)
    freeze(target)
    try:
        for _ in range(2):
            with pytest.raises(Precondition, match=r"frozen already, by another program.*fsfreeze -u"):
                await rig.snapshot("s", volume)
            assert is_frozen(target)
        with pytest.raises(Precondition, match=r"frozen already"):
            await rig.group("g", volume, other)
        assert is_frozen(target)
        write_file(f"{works}/data", b"1")
        assert await rig.read(await rig.snapshot("w", other)) == b"1"
        assert rig.left_inside() == []
        await rig.reopen()
        assert is_frozen(target)
        assert set(rig.pool.volumes) == {volume.id.hash, other.id.hash}
        await rig.snapshot("w2", other)
    finally:
        thaw(target)
    write_file(f"{target}/data", b"1")
    await rig.snapshot("s", volume)


@pytest.mark.parametrize("rig", [{"freeze_deadline": 0.4}], indirect=True)
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_the_deadline_of_a_freeze(rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str) -> None:
    """ABORTED that names the extents; thawed, undone, nothing left; the next try works."""
    volume = await rig.volume("v", fs_type)
    target = await rig.show(volume)
    write_file(f"{target}/data", b"1")
    paused_snapshots(rig, monkeypatch, 20.0)
    began = time.monotonic()
    with pytest.raises(Busy, match=r"passed its deadline of 0.4 s.* has \d+ extents.*--freeze-deadline above 0.4 s"):
        await rig.snapshot("s", volume)
    with pytest.raises(Busy, match=r"has \d+ extents"):
        await rig.volume("copy", source=volume, capabilities=(mounted(""),))
    assert time.monotonic() - began < 15
    assert not is_frozen(target)
    assert rig.left_inside() == []
    assert os.listdir(rig.layout.snapshots) == []
    assert len(os.listdir(rig.layout.volumes)) == 1
    monkeypatch.undo()
    write_file(f"{target}/data", b"2")
    assert await rig.read(await rig.snapshot("s", volume)) == b"2"


@pytest.mark.parametrize("rig", [{"freeze_deadline": 0.05}], indirect=True)
async def test_a_real_clone_past_the_deadline(rig: Rig) -> None:
    """Not a pause but FICLONE itself is killed: an image of very many extents."""
    volume = await rig.volume("v", "xfs", 400 * MIB)
    target = await rig.show(volume)
    with rig.image(volume).open("r+b") as image:
        # Below the mounted file system, where it is sure to have no data.
        size = volume.size
        await rig.expand(volume, size + 240 * MIB)
        for offset in range(size + MIB, size + 240 * MIB, 8192):
            os.pwrite(image.fileno(), b"x", offset)
        os.fsync(image.fileno())
    with pytest.raises(Busy, match=r"has \d{5} extents"):
        await rig.snapshot("s", volume)
    assert not is_frozen(target)
    write_file(f"{target}/data", b"1")
    assert rig.left_inside() == []
    assert os.listdir(rig.layout.snapshots) == []


@asynccontextmanager
async def hanging(rig: Rig, volume: Volume) -> AsyncIterator[None]:
    """A child of this volume that cannot be killed: it asks a frozen file system below it for a write.

    The volume's staging directory is covered by a file system that somebody froze, and a job of the volume hangs there.
    """
    image, point = rig.place / "hang.img", rig.place / "hang"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    device = loop.attach(image)
    run(("mkfs.ext4", "-q", device.path), 30)
    mounts.mount(device.path, point, "ext4")
    (point / "inner").mkdir()
    freeze(point)
    try:
        # umount of what is busy would answer; a rename on a frozen file system waits, and not even SIGKILL ends that.
        with pytest.raises(Busy, match=r"did not answer within 3 s"):  # by then it hangs on a busy machine too
            await rig.backend._devices.jobs.run(
                volume, "command", 3.0, argv=["/bin/mkdir", str(point / "never")], seconds=60.0
            )
        yield
    finally:
        thaw(point)
        for _ in range(600):
            if not rig.children.stuck:
                break
            await asyncio.sleep(0.05)
        mounts.umount(point)
        loop.detach(device)


async def test_a_hanging_child_harms_its_volume_alone(rig: Rig) -> None:
    volume, other = await rig.volume("v"), await rig.volume("w")
    target, works = await rig.show(volume), await rig.show(other)
    async with hanging(rig, volume):
        began = time.monotonic()
        for call in (
            rig.snapshot("s", volume),
            rig.group("g", volume, other),
            rig.publish(volume, "b"),
            rig.unpublish(volume),
            rig.unstage(volume),
            rig.delete(volume),
            rig.expand(volume, 2 * volume.size),
            rig.nodes.expand(str(volume.id), target, SizeRange()),
            rig.nodes.stats(str(volume.id), target),
            rig.volume("copy", source=volume, capabilities=(mounted(""),)),
        ):
            with pytest.raises(Busy, match=r"still hangs in the kernel|hangs in the kernel"):
                await call
        assert time.monotonic() - began < 15
        # Lists, gets and everything else go on.
        assert {v.id for v in rig.volumes.list()[0]} == {volume.id, other.id}
        assert rig.volumes.get(str(volume.id)).id == volume.id
        assert (await rig.volumes.capacity({}, []))[0] > 0
        write_file(f"{works}/data", b"1")
        assert await rig.read(await rig.snapshot("w", other)) == b"1"
        write_file(f"{target}/data", b"1")
        assert rig.children.stuck == 1
    assert await rig.read(await rig.snapshot("s", volume)) == b"1"
    await rig.unpublish(volume)
    await rig.unstage(volume)


async def test_the_tree_is_listed_while_a_helper_hangs(rig: Rig) -> None:
    """Looking never waits for a hanging child; of that volume it may say less."""
    volume, other = await rig.volume("v"), await rig.volume("w")
    await rig.show(volume)
    async with hanging(rig, volume):
        nodes = await rig.trees.tree()
        assert {node.item.id for node in nodes} == {volume.id, other.id}


@pytest.mark.parametrize("rig", [{"freeze_deadline": 60.0}], indirect=True)
async def test_what_changes_a_volume_is_busy_while_its_snapshot_is_taken(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock keeps everybody out for the whole freeze, unstage above all; others are not held up."""
    volume, other = await rig.volume("v"), await rig.volume("w")
    target = await rig.show(volume)
    paused_snapshots(rig, monkeypatch, 50.0)
    cut = asyncio.create_task(rig.snapshot("s", volume))
    while not (cloners := waiting_cloners(rig.children.server_pid)):
        assert not cut.done()
        await asyncio.sleep(0.01)
    # A touch of a frozen file system waits for its thaw; a second freeze, to look, would be in the snapshot's way.
    touch = await asyncio.create_subprocess_exec("touch", f"{target}/touched")
    for call in (
        rig.snapshot("s", volume),
        rig.snapshot("s2", volume),
        rig.unpublish(volume),
        rig.unstage(volume),
        rig.publish(volume, "b"),
        rig.stage(volume),
        rig.expand(volume, 2 * volume.size),
        rig.delete(volume),
    ):
        with pytest.raises(Busy, match=r"CreateSnapshot 's' of .* is in progress"):
            await call
    async with rig.shown(other) as path:
        write_file(f"{path}/data", b"1")
    assert not cut.done()
    assert touch.returncode is None
    os.kill(cloners[0], signal.SIGUSR1)
    await cut
    assert await touch.wait() == 0
    monkeypatch.undo()
    await rig.snapshot("s2", volume)


async def test_a_call_that_is_cancelled_leaves_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cancels waits to the end of what runs in a thread, and finds the pool as it was, or the object whole."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    for delay in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08):
        task = asyncio.create_task(rig.snapshot(f"s-{delay}", volume))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.wait({task})
        assert not is_frozen(target)
        assert rig.layout.new.is_dir()
        assert rig.left_inside() == []
        for entry in rig.layout.snapshots.iterdir():
            assert {"disk.img", "record.json"} == set(os.listdir(entry))
    await rig.reopen()
    for index in range(6):
        task = asyncio.create_task(rig.volume(f"c{index}", "block"))
        await asyncio.sleep(index * 0.002)
        task.cancel()
        await asyncio.wait({task})
    await rig.reopen()


async def test_a_host_file_system_is_never_frozen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount goes between the check and the freeze: what lies below must not be frozen in its place."""
    volume = await rig.volume("v")
    await rig.stage(volume)
    staging = rig.staging(volume)
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut":
            mounts.umount(staging)
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run_)
    with pytest.raises(Busy, match=r"the mount changed during the snapshot"):
        await rig.snapshot("s", volume)
    assert not is_frozen(rig.disk.point)
    assert mountinfo.at(staging) is None
    assert rig.left_inside() == []
    monkeypatch.undo()
    await rig.snapshot("s", volume)


async def test_a_failing_snapshot_is_reported_in_the_drivers_words(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await rig.volume("v")
    await rig.show(volume)
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut":
            args["action"]["files"][0]["source"] += "-gone"
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run_)
    with pytest.raises(DriverError, match=r"No such file"):
        await rig.snapshot("s", volume)
    assert rig.left_inside() == []
    assert not is_frozen(rig.staging(volume))


async def test_a_snapshot_that_cannot_be_killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still hold its volume frozen: until it has ended, that volume alone answers ABORTED."""
    volume, other = await rig.volume("v"), await rig.volume("w")
    await rig.show(volume)
    await rig.show(other)
    real, gone = rig.children.run, JobEnded()

    async def run_(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut" and not gone.is_set():
            raise JobStuck(job, timeout, gone)
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run_)
    with pytest.raises(Busy, match=r"aborted and undone.* has \d+ extents"):
        await rig.snapshot("s", volume)
    assert os.listdir(rig.layout.freezes) != [], "what may be frozen stays announced"
    for call in (rig.snapshot("s", volume), rig.unpublish(volume), rig.group("g", volume, other)):
        with pytest.raises(Busy, match=r"an earlier cut of .* still hangs"):
            await call
    async with rig.shown(await rig.volume("third")):
        pass
    gone.set()
    await rig.snapshot("s", volume)
    assert os.listdir(rig.layout.freezes) == []

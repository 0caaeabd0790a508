"""Freezes that suspend devices too: the moment, the refusals, and that nothing stays suspended or frozen, whoever dies where."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dm_freeze_rig import (
    LONG,
    Death,
    ThinDisk,
    begin_with,
    cut,
    forget_snapshots,
    free_all,
    paused,
    pool_uuid,
    snapshot_of,
    three_disks,
)
from support.freezing import freeze
from support.freezing import thaw as thaw_mount
from support.paused_freezes import end_pause, fails, offspring
from support.waiting import until, wait_until
from thin_rig import POOL, dm_name, field, sh, thin_volume

from csi_driver.host.dm import ioctl, status
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ThinDisk]]:
    with three_disks(tmp_path_factory.mktemp("disks")) as disks:
        yield disks


@pytest.fixture(autouse=True)
def free(disks: list[ThinDisk]) -> Iterator[None]:
    """Each test ends with all disks free, writable and with what they held, and a pool that takes messages."""
    for disk in disks:
        disk.write("before")
    yield
    left = free_all(disks)
    forget_snapshots(len(disks))
    assert not left, "left frozen or suspended"
    assert [disk.read() for disk in disks] == ["before"] * len(disks)
    for disk in disks:
        disk.write("after")
    assert status.thin_pool(ioctl.status(uuid=pool_uuid())).mode == "rw"


@pytest.fixture
async def children() -> AsyncIterator[HelperPool]:
    children = HelperPool(grace=20.0)
    await children.start()
    yield children
    await asyncio.wait_for(children.stop(), 20)


def contents(disks: list[ThinDisk], place: Path) -> list[str]:
    return [snapshot_of(index, disk, place) for index, disk in enumerate(disks)]


async def test_all_disks_are_taken_at_one_moment(children: HelperPool, disks: list[ThinDisk], tmp_path: Path) -> None:
    task = await paused(children, *disks)
    with subprocess.Popen([sys.executable, "-c", _DIRECT, disks[-1].node]) as blocked:
        with pytest.raises(subprocess.TimeoutExpired):
            blocked.wait(1)
        end_pause(children.server_pid)
        answer = await task
        assert blocked.wait(30) == 0, "what was held up goes on"
    assert 0 < answer["action_seconds"] <= answer["frozen_seconds"]
    for disk in disks:
        disk.write("later")
    assert contents(disks, tmp_path / "look") == ["before"] * 3
    for disk in disks:
        disk.write("before")


_DIRECT = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
os.pwrite(fd, mmap.mmap(-1, 4096), 1 << 20)
"""


async def test_what_the_page_cache_of_a_raw_disk_holds_is_in_it(
    children: HelperPool, disks: list[ThinDisk], tmp_path: Path
) -> None:
    raw = disks[-1]
    with raw.node.open("r+b") as file:
        file.write(b"cached".ljust(4096, b"."))
        file.flush()
        await cut(children, raw)
    assert snapshot_of(0, raw, tmp_path / "look") == "cached"
    raw.write("before")


async def test_reserved_volumes_of_lvm_become_the_snapshots(
    children: HelperPool, disks: list[ThinDisk], tmp_path: Path
) -> None:
    disk = disks[0]
    sh("lvcreate", "-q", "-y", "-V", "304m", "-T", f"fast/{POOL}", "-n", "reserved", "-an", "-ky")
    try:
        reserved = field("reserved", "thin_id")
        messages = [f"delete {reserved}", f"create_snap {reserved} {disk.id}"]
        await cut(children, disk, action={"kind": "thin_messages", "pool": pool_uuid(), "messages": messages})
        disk.write("later")
        sh("lvchange", "-q", "-ay", "-K", "fast/reserved")
        (tmp_path / "look").mkdir()
        sh("mount", "-o", "ro,norecovery,nouuid", "/dev/mapper/fast-reserved", tmp_path / "look")
        try:
            assert (tmp_path / "look/data").read_text().rstrip(".") == "before"
        finally:
            sh("umount", tmp_path / "look")
        thin_volume("next", "64m")
        sh("lvremove", "-q", "-y", "fast/next")
    finally:
        sh("lvremove", "-q", "-y", "fast/reserved")
    disk.write("before")


# ---- refusals


async def test_a_disk_that_somebody_else_suspended_is_refused_and_stays_suspended(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    for disk in disks:
        ioctl.suspend(disk.info.uuid, lockfs=False)
        error = await fails(cut(children, *disks))
        assert (error.type, disk.is_suspended()) == ("SuspendedElsewhere", True)
        assert f"the device {dm_name(disk.name)} is suspended already, by another program" in error.message
        ioctl.resume(disk.info.uuid)
        assert all(each.is_free() for each in disks)


async def test_a_disk_that_somebody_else_froze_is_refused_and_stays_frozen(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    freeze(disks[1].point)
    assert (await fails(cut(children, *disks))).type == "FrozenElsewhere"
    assert not any(disk.is_suspended() for disk in disks)
    assert not disks[1].is_free()
    # Without its mount it is a raw disk with a file system of somebody else, whom the suspend would have to freeze.
    error = await fails(cut(children, disks[1], mounts=[]))
    assert (error.type, "the file system on the device" in error.message) == ("FrozenElsewhere", True)
    thaw_mount(disks[1].point)


async def test_a_device_that_is_not_the_one_that_was_meant_is_not_touched(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    one, other = disks[0], disks[1]
    for device in ({**one.device, "minor": other.info.minor}, {**one.device, "uuid": "LVM-gone"}):
        error = await fails(cut(children, one, devices=[device]))
        assert error.type == "NotOurs"


async def test_the_same_device_twice_and_nothing_at_all_are_refused(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    for targets in ({"devices": [disks[0].device] * 2}, {"devices": [], "mounts": []}):
        assert (await fails(cut(children, disks[0], **targets))).type == "FreezeFailed"


async def test_a_message_that_fails_frees_all_and_says_which(children: HelperPool, disks: list[ThinDisk]) -> None:
    action = {"kind": "thin_messages", "pool": pool_uuid(), "messages": ["create_thin 10000", "create_snap 10001 9999"]}
    error = await fails(cut(children, *disks, action=action))
    assert (error.type, error.details["index"]) == ("MessageFailed", 1)
    assert f"the message 'create_snap 10001 9999' to the thin pool {pool_uuid()}" in error.message
    ioctl.message(pool_uuid(), "delete 10000")  # what came before it was done


async def test_a_pool_that_is_none_is_refused_before_anything_is_frozen(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    for uuid in (disks[0].info.uuid, "LVM-gone"):
        error = await fails(cut(children, *disks, action={"kind": "thin_messages", "pool": uuid, "messages": ["x"]}))
        assert error.type == "MessageFailed"


async def test_who_resumes_inside_our_freeze_is_noticed(children: HelperPool, disks: list[ThinDisk]) -> None:
    task = await paused(children, *disks)
    ioctl.resume(disks[2].info.uuid)
    end_pause(children.server_pid)
    error = await fails(task)
    assert (error.type, dm_name(disks[2].name) in error.message) == ("ThawedElsewhere", True)


# ---- deadlines


async def test_past_the_deadline_all_is_free(children: HelperPool, disks: list[ThinDisk]) -> None:
    error = await fails(cut(children, *disks, deadline=2.0, test_pause=LONG))
    assert (error.type, error.details["frozen"]) == ("Deadline", 5)
    assert "0 of 3 messages were sent" in error.message


async def test_past_the_agent_s_own_deadline_all_is_free(children: HelperPool, disks: list[ThinDisk]) -> None:
    task = await paused(children, *disks)
    task.cancel()
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()
    await until(lambda: not offspring(children.server_pid))


async def test_a_stopped_job_is_late_and_all_is_freed_by_the_watchdog(
    children: HelperPool, disks: list[ThinDisk]
) -> None:
    task = await paused(children, *disks, deadline=5.0)
    (child,) = offspring(children.server_pid)
    os.kill(child, signal.SIGSTOP)
    assert (await fails(task)).type == "Crashed"


# ---- deaths

VICTIMS = ("itself", "server", "all")
POINTS = [(call, when) for call in ("freeze", "suspend", "message", "resume", "thaw") for when in ("before", "after")]
DEATHS = [(*point, victim) for point in POINTS for victim in VICTIMS]
if not os.environ.get("TIDEMARK_LVM_DEATHS"):  # the short form: each point once, each victim at several
    DEATHS = [(*point, VICTIMS[index % 3]) for index, point in enumerate(POINTS)]


@pytest.mark.parametrize(("call", "when", "victim"), DEATHS, ids=lambda word: word)
async def test_whoever_dies_at_a_call_all_is_free(
    disks: list[ThinDisk], tmp_path: Path, call: str, when: str, victim: str
) -> None:
    """The process that makes the call (of a message: the action's), its fork server, or all, so that the agent remains."""
    death = Death(call, when, victim, tmp_path / "mark")  # type: ignore[arg-type]
    children = HelperPool(grace=20.0, begin=begin_with(death))
    await children.start()
    error: JobFailed | JobStuck | None = None
    try:
        await cut(children, *disks, deadline=LONG)
    except (JobFailed, JobStuck) as caught:
        error = caught
        await asyncio.wait_for(error.gone.wait(), 60)
    finally:
        assert death.mark.exists(), "nobody died"
        await until(lambda: all(disk.is_free() for disk in disks))
        await asyncio.wait_for(children.stop(), 60)
    if error is None:
        assert contents(disks, tmp_path / "look") == ["before"] * 3
    else:
        assert not error.gone.frozen
        assert victim != "server", "a job goes on to its end without its fork server"


@pytest.fixture
def hanging(disks: list[ThinDisk], children: HelperPool) -> Iterator[None]:
    """A read of the raw disk hangs below it, so that its suspend does not come back either; a flush of it does."""
    raw, data = disks[-1], ioctl.info(name=f"{dm_name(POOL)}_tdata")
    cache = Path(f"/sys/block/dm-{raw.info.minor}/queue/write_cache")
    cache.write_text("write through")
    ioctl.suspend(data.uuid, lockfs=False)
    try:
        with subprocess.Popen([sys.executable, "-c", _READ, raw.node], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reads\n"
            wait_until(lambda: _inflight(raw) > 0)
            yield
            ioctl.resume(data.uuid)
            assert reader.wait(30) == 0
    finally:
        ioctl.resume(data.uuid)
        cache.write_text("write back")


_READ = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("reads", flush=True)
os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
"""


def _inflight(disk: ThinDisk) -> int:
    return sum(map(int, Path(f"/sys/block/dm-{disk.info.minor}/inflight").read_text().split()))


async def test_a_suspend_that_hangs_past_the_deadline_holds_nobody_up(
    hanging: None, children: HelperPool, disks: list[ThinDisk]
) -> None:
    error = await fails(cut(children, disks[2], deadline=2.0))
    assert (error.type, "no answer in time to the freeze of the device" in error.message) == ("Deadline", True)
    assert not error.gone.is_set(), "it is still in the kernel"


async def test_a_job_that_is_killed_while_its_suspend_hangs_leaves_nothing_suspended(
    hanging: None, children: HelperPool, disks: list[ThinDisk]
) -> None:
    task = asyncio.create_task(cut(children, disks[2], deadline=LONG))
    await until(lambda: _threads(children) == 2)  # none of the syncs, one of the suspend
    os.kill(offspring(children.server_pid)[0], signal.SIGKILL)
    error = await fails(task)
    await asyncio.wait_for(error.gone.wait(), 60)
    assert not error.gone.frozen


def _threads(children: HelperPool) -> int:
    jobs = offspring(children.server_pid)
    return len(list(Path(f"/proc/{jobs[0]}/task").iterdir())) if jobs else 0

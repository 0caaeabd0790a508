"""Cuts of really mounted file systems, and who thaws when somebody dies: ext4 and xfs images on an XFS pool, on loop devices."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from freeze_rig import DEADLINE, PAUSE, Pool, cloning, cut, end_pause, ended, fails, freeze_mount, offspring, paused, sh
from support.waiting import until

from csi_driver.host.freeze import journal
from csi_driver.host.helper.client import HelperPool

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root for loop devices, mounts and freezes"),
]


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(10**9):
    os.write(fd, b"%09d\\n" % number)
    os.fsync(fd)
    print(number, flush=True)
"""


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_clone_under_a_writer_is_clean_and_holds_all_that_was_acknowledged(
    children: HelperPool, pool: Pool, fs: str, record_property: Callable[[str, object], None]
) -> None:
    disk = pool.disk(fs)
    writer = pool.popen(sys.executable, "-I", "-S", "-c", WRITER, str(disk.point / "log"))
    assert writer.stdout
    while int(writer.stdout.readline()) < 50:
        pass
    acknowledged = 50
    clone = pool.clone(disk)
    answer = await cut(children, disk, clones=[clone])
    assert 0 < answer["action_seconds"] < answer["frozen_seconds"] < DEADLINE
    record_property("cut", json.dumps(answer))
    print(fs, answer)
    for _ in range(50):  # the writer goes on
        assert writer.stdout.readline()
    writer.kill()
    target = Path(clone["target"])
    if fs == "ext4":
        sh("e2fsck", "-fn", target)  # clean without a replay of its journal
    copy = pool.mount(target, fs)
    lines = (copy.point / "log").read_text().splitlines()
    assert [int(line) for line in lines] == list(range(len(lines)))
    assert len(lines) > acknowledged
    copy.takes_writes()
    sh("umount", copy.point)
    sh("e2fsck", "-fn", target) if fs == "ext4" else sh("xfs_repair", "-n", target)


async def test_at_the_deadline_the_cloner_is_killed_and_the_disk_thawed(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    clones = [pool.clone(disk), pool.clone(disk)]
    error = await fails(cut(children, disk, clones=clones, deadline=3, test_pause=PAUSE))
    disk.takes_writes()
    assert error.type == "Deadline"
    assert (error.details["frozen"], error.details["cloned"], error.details["of"]) == (1, 0, 2)
    assert 3 <= error.details["frozen_seconds"] < PAUSE
    await asyncio.wait_for(error.gone.wait(), 30)
    assert not offspring(children.server_pid)
    await cut(children, disk, clones=[pool.clone(disk)])


@pytest.mark.alone  # the freeze and a small clone take less than the deadline, and the clone of many extents more
async def test_a_real_clone_of_many_extents_is_killed_at_the_deadline(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk("ext4")
    fragmented = pool.path / "fragmented"
    with fragmented.open("wb", buffering=0) as file:
        for block in range(60_000):
            os.pwrite(file.fileno(), b"x", block * 8192)
        os.fsync(file.fileno())
    clones = [pool.clone(disk), pool.clone(disk) | {"source": str(fragmented)}]
    begun = time.monotonic()
    error = await fails(cut(children, disk, clones=clones, deadline=0.2))
    assert time.monotonic() - begun < 15
    disk.takes_writes()
    assert (error.type, error.details["cloned"], error.details["of"]) == ("Deadline", 1, 2)
    assert error.details["frozen_seconds"] < 15


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_freeze_by_somebody_else_is_named_and_left_alone(children: HelperPool, pool: Pool, fs: str) -> None:
    ours, theirs = pool.disk(fs), pool.disk(fs)
    freeze_mount(theirs.point)
    clones = [pool.clone(ours)]
    error = await fails(cut(children, ours, theirs, clones=clones, sync_timeout=5))
    assert error.type == "FrozenElsewhere"
    assert str(theirs.point) in error.message
    assert theirs.is_frozen()
    ours.takes_writes()
    assert Path(clones[0]["target"]).stat().st_size == 0
    await asyncio.wait_for(error.gone.wait(), 30)
    assert theirs.is_frozen()


async def test_only_our_own_mounts_are_frozen(children: HelperPool, pool: Pool, tmp_path: Path) -> None:
    disk = pool.disk()
    plain = tmp_path / "plain"
    plain.mkdir()
    host = os.stat("/").st_dev
    wrong = [
        disk.mount | {"point": "/"},
        disk.mount | {"point": str(plain)},
        disk.mount | {"point": str(pool.path)},
        disk.mount | {"point": str(tmp_path / "missing")},
        disk.mount | {"point": str(pool.path / "disk0.img")},
        disk.mount | {"minor": disk.minor + 100},
        disk.mount | {"major": 0, "minor": os.minor(os.stat("/proc").st_dev), "point": "/proc"},
    ]
    for mount in wrong:
        for job, args in (("cut", {"mounts": [mount], "action": cloning([]), "deadline": 5}), ("sync", mount)):
            error = await fails(children.run(job, 10, **args))
            assert error.type == "NotOurs", (job, mount)
    assert (await children.run("thaw", 10, mounts=wrong[:5])) == {"thawed": [False] * 5}, "it falls back to the device"
    assert host == os.stat("/").st_dev
    assert not disk.is_frozen()
    for mounts in ([], [disk.mount, disk.mount]):
        assert (await fails(children.run("cut", 10, mounts=mounts, action=cloning([]), deadline=5))).errno == 22
    assert (await fails(children.run("cut", 10, mounts=[disk.mount]))).type == "TypeError"
    await children.run("sync", 10, **disk.mount)
    await children.run("statvfs", 10, **disk.mount)
    await children.run("sync_device", 10, device=disk.device)


async def test_one_failure_in_a_group_leaves_nothing_frozen(children: HelperPool, pool: Pool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    good = [pool.clone(disk) for disk in disks]
    taken = pool.clone(disks[0])
    Path(taken["target"]).write_text("x")
    elsewhere = pool.clone(disks[1]) | {
        "source": str(pool.place / "pool.img")
    }  # another file system: EXDEV inside the freeze
    missing = pool.clone(disks[1]) | {"source": str(pool.path / "missing")}
    for bad, code in ((taken, 17), (elsewhere, 18), (missing, 2)):
        error = await fails(cut(children, *disks, clones=[*good, bad]))
        assert (error.type, error.errno) == ("CloneFailed", code)
        for disk in disks:
            disk.takes_writes()
            assert not disk.is_frozen()
        for clone in good:
            os.truncate(clone["target"], 0)
    assert (await cut(children, *disks, clones=good))["frozen_seconds"] < DEADLINE


async def test_the_moment_of_a_snapshot_is_inside_its_freeze(children: HelperPool, pool: Pool) -> None:
    """What is acknowledged after the thaw is later than the snapshot says it was made, and what was before is earlier."""
    disk = pool.disk()
    before = time.time_ns()
    task = await paused(children, pool, disk)
    frozen = time.time_ns()
    end_pause(children.server_pid)
    assert before < (await task)["moment"] <= frozen


async def test_a_thaw_by_somebody_else_is_noticed(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    sh("fsfreeze", "-u", disk.point)
    end_pause(children.server_pid)
    assert (await fails(task)).type == "ThawedElsewhere"
    disk.takes_writes()


@pytest.mark.parametrize("children", [0.5], indirect=True)  # what hangs is to be abandoned, and soon
@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_freeze_that_hangs_is_answered_in_time_and_undone_when_it_returns(
    children: HelperPool, pool: Pool, tmp_path: Path, fs: str
) -> None:
    hung, other = pool.disk(fs), pool.disk("ext4", place=tmp_path)
    for disk in (hung, other):
        await children.run("sync", 10, **disk.mount)
    freeze_mount(pool.path)  # so that nothing below `hung` can be written
    error = await fails(cut(children, hung, other, clones=[], deadline=3, sync_timeout=5))  # an answer, still frozen
    other.takes_writes()
    if error.type == "SyncTimeout":  # the kernel writes something in every syncfs of this file system
        assert not error.gone.is_set()
    else:
        assert error.type == "Deadline"
        assert str(hung.point) in error.message
        assert error.details["frozen"] == 1
        assert not error.gone.is_set()
    await until(lambda: children.stuck == 1)
    await children.run("ping", 5)
    sh("fsfreeze", "-u", pool.path)
    await asyncio.wait_for(error.gone.wait(), 30)
    hung.takes_writes()
    assert not hung.is_frozen()
    assert children.stuck == 0
    print(fs, error.type)


async def test_writing_back_has_a_bound_of_its_own(children: HelperPool, pool: Pool) -> None:
    disk = pool.disk()
    freeze_mount(pool.path)
    (disk.point / "dirty").write_bytes(b"x" * (1 << 20))
    error = await fails(cut(children, disk, clones=[], sync_timeout=0.4))
    assert error.type == "SyncTimeout"
    sh("fsfreeze", "-u", pool.path)
    await asyncio.wait_for(error.gone.wait(), 30)
    assert not disk.is_frozen()


async def test_many_snapshots_leave_nothing(
    children: HelperPool, pool: Pool, record_property: Callable[[str, object], None]
) -> None:
    disk = pool.disk()
    await cut(children, disk, clones=[pool.clone(disk)])
    await ended(children)
    before = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{children.server_pid}/fd"))
    frozen, whole = [], []
    for _ in range(30):
        clone = pool.clone(disk)
        begun = time.perf_counter()
        frozen.append((await cut(children, disk, clones=[clone]))["frozen_seconds"] * 1e3)
        whole.append((time.perf_counter() - begun) * 1e3)
    await until(lambda: not offspring(children.server_pid))
    await until(  # the last one's end is told to us after its child is reaped
        lambda: (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{children.server_pid}/fd"))) == before
    )
    assert (children.stuck, children.abandoned_total) == (0, 0)
    facts = {"frozen_ms_p50": sorted(frozen)[15], "frozen_ms_max": max(frozen), "cut_ms_p50": sorted(whole)[15]}
    record_property("cuts", json.dumps(facts))
    print(facts)


def test_journal_entries_are_files_that_survive(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert journal.read_entries(str(tmp_path / "missing")) == {}
    journal.record(directory, "a-1", {"x": 1})
    journal.record(directory, "a-1", {"x": 2})
    journal.record(directory, "b", [1])
    (tmp_path / "c.frozen.json.new").write_text("{")
    (tmp_path / "d.frozen.json").write_text("{")
    (tmp_path / "unrelated").write_text("{")
    assert journal.read_entries(directory) == {"a-1": {"x": 2}, "b": [1], "d": None}
    journal.remove(directory, "a-1")
    journal.remove(directory, "a-1")
    assert set(journal.read_entries(directory)) == {"b", "d"}
    journal.record(directory, "group", [{"x": 1}, {"x": 2}])
    for fact, left in (({"x": 3}, [{"x": 1}, {"x": 2}]), ({"x": 1}, [{"x": 2}]), ({"x": 2}, None), ({"x": 2}, None)):
        journal.remove_entry(directory, "group", fact)
        assert journal.read_entries(directory).get("group") == left
    for key in ("", ".", "..", "a/b", "../x", "a\n", "x" * 201, "ä"):
        with pytest.raises(ValueError, match="not a key"):
            journal.record(directory, key, {})
    with pytest.raises(OSError, match="No such file"):
        journal.record(str(tmp_path / "missing"), "a", {})

"""Cuts of really mounted file systems, and who thaws when somebody dies: ext4 and xfs images on an XFS pool, on loop devices."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import csi_driver
from csi_driver.host import announcements, loop, thaw
from csi_driver.host.children import Children, JobFailed, JobStuck
from csi_driver.host.errors import Busy, Mismatch
from csi_driver.host.loop import LoopDevice

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root for loop devices, mounts and freezes"),
]

SIZES = {"xfs": 300 << 20, "ext4": 64 << 20}


def sh(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run(argv, check=False, timeout=30, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.02)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.01)


def freeze_mount(point: Path) -> None:
    """Freeze as somebody else would, but never the host's file system."""
    assert os.path.ismount(point)
    assert os.stat(point).st_dev != os.stat(point.parent).st_dev
    sh("fsfreeze", "-f", point)


def succeeds(*argv: str | Path) -> bool:
    return subprocess.run(argv, check=False, timeout=30, capture_output=True).returncode == 0


@dataclass
class Disk:
    """A file system on an image on a loop device."""

    image: Path
    point: Path
    device: str
    fs: str
    major: int
    minor: int

    @property
    def mount(self) -> dict[str, Any]:
        return {"point": str(self.point), "major": self.major, "minor": self.minor}

    @property
    def facts(self) -> dict[str, object]:
        status = self.image.stat()
        return announcements.freeze_facts(str(self.point), self.major, self.minor, (status.st_dev, status.st_ino))

    def is_frozen(self) -> bool:
        """Ask without waiting: a second freeze is refused. Where nothing is mounted this would freeze the host."""
        assert os.stat(self.point).st_dev == os.makedev(self.major, self.minor), "not our mount: nothing is frozen"
        done = subprocess.run(["fsfreeze", "-f", self.point], check=False, timeout=30, capture_output=True, text=True)
        if done.returncode == 0:
            sh("fsfreeze", "-u", self.point)
            return False
        assert "busy" in done.stderr, done.stderr
        return True

    def takes_writes(self) -> None:
        """Write and sync within a second."""
        code = "import os, sys; f = open(sys.argv[1], 'w'); f.write('x'); f.flush(); os.fsync(f.fileno())"
        subprocess.run([sys.executable, "-I", "-S", "-c", code, self.point / "probe"], check=True, timeout=1)

    def is_mounted(self) -> bool:
        return os.path.ismount(self.point)


class Pool:
    """An XFS with reflink, and the disks on it."""

    def __init__(self, place: Path) -> None:
        self.place, self.path = place, place / "pool"
        self.disks: list[Disk] = []
        self.loops: list[LoopDevice] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.path.mkdir()
        self.root = self.attach(self.image(place / "pool.img", 2 << 30))
        sh("mkfs.xfs", "-q", "-m", "reflink=1", self.root)
        sh("mount", self.root, self.path)

    def image(self, path: Path, size: int) -> Path:
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def attach(self, image: Path) -> str:
        device = loop.attach(image)
        self.loops.append(device)
        return device.path

    def mount(self, image: Path, fs: str) -> Disk:
        device = self.attach(image)
        point = self.place / f"mnt{len(self.disks)}"
        point.mkdir()
        number = os.stat(device).st_rdev
        disk = Disk(image, point, device, fs, os.major(number), os.minor(number))
        self.disks.append(disk)
        sh("mount", "-o", "nouuid" if fs == "xfs" else "defaults", device, point)
        return disk

    def disk(self, fs: str = "xfs", place: Path | None = None) -> Disk:
        image = self.image((place or self.path) / f"disk{len(self.disks)}.img", SIZES[fs])
        sh(f"mkfs.{fs}", "-q", *(["-F", "-b", "4096"] if fs == "ext4" else ["-s", "size=4096"]), image)
        return self.mount(image, fs)

    def clone(self, disk: Disk) -> dict[str, str]:
        number = len(list(self.path.glob("clone*")))
        return {"source": str(disk.image), "target": str(self.image(self.path / f"clone{number}.img", 0))}

    def popen(self, *argv: str, **options: Any) -> "subprocess.Popen[str]":
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Thaw first, whatever happened: nothing else works on what is frozen."""
        if os.path.ismount(self.path):
            sh("fsfreeze", "-u", self.path, check=False)
        for disk in self.disks:
            with suppress(Exception):  # wherever it is mounted, or nowhere; only if the device still holds this image
                thaw.thaw([disk.facts])
        for process in self.processes:
            process.kill()
            process.wait(20)
            if process.stdout:
                process.stdout.close()
        for disk in reversed(self.disks):
            eventually(lambda disk=disk: not disk.is_mounted() or succeeds("umount", disk.point))  # type: ignore[misc]
        for device in reversed(self.loops[1:]):
            self.let_go(device)
        eventually(lambda: not os.path.ismount(self.path) or succeeds("umount", self.path))
        for device in self.loops[:1]:
            self.let_go(device)

    @staticmethod
    def let_go(device: LoopDevice) -> None:
        """Detach by identity, never by number: the number may be another test's or another program's device by now."""

        def gone() -> bool:
            try:
                loop.detach(device)
            except Mismatch:
                return True
            except Busy:
                return False
            return True

        eventually(gone)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    pool = Pool.__new__(Pool)
    try:
        pool.__init__(tmp_path)  # type: ignore[misc]
        yield pool
    finally:
        pool.close()


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    children = Children()
    await children.start()
    yield children
    await asyncio.wait_for(children.stop(), 20)


async def cut(
    children: Children, *disks: Disk, clones: list[dict[str, str]], deadline: float = 5.0, **more: Any
) -> Any:
    mounts = [disk.mount for disk in disks]
    return await asyncio.wait_for(children.run("cut", 60, mounts=mounts, clones=clones, deadline=deadline, **more), 60)


async def fails(job: Awaitable[object]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job
    return caught.value


async def paused(
    children: Children, pool: Pool, *disks: Disk, pause: float = 60.0, deadline: float = 50.0
) -> "asyncio.Task[Any]":
    """Start a cut whose cloning process sleeps, and return once all disks are frozen."""
    clones = [pool.clone(disk) for disk in disks]
    task = asyncio.create_task(cut(children, *disks, clones=clones, deadline=deadline, test_pause=pause))
    await until(lambda: in_pause(children.server_pid) or task.done())
    assert not task.done()
    assert all(disk.is_frozen() for disk in disks)
    return task


def offspring(pid: int) -> list[int]:
    """Name the children of a process; the cut's child is the fork server's, the cloner is its."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def in_pause(server: int) -> bool:
    """Whether a cloner has got its word, which it gets once all is frozen. (To ask by freezing would disturb the cut.)"""
    with suppress(OSError):
        cloners = [cloner for child in offspring(server) for cloner in offspring(child)]
        return any("nanosleep" in Path(f"/proc/{cloner}/wchan").read_text() for cloner in cloners)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
    children: Children, pool: Pool, fs: str, record_property: Callable[[str, object], None]
) -> None:
    disk = pool.disk(fs)
    writer = pool.popen(sys.executable, "-I", "-S", "-c", WRITER, str(disk.point / "log"))
    assert writer.stdout
    while int(writer.stdout.readline()) < 50:
        pass
    acknowledged = 50
    clone = pool.clone(disk)
    answer = await cut(children, disk, clones=[clone])
    assert 0 < answer["clone_seconds"] < answer["frozen_seconds"] < 5
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


async def test_at_the_deadline_the_cloner_is_killed_and_the_disk_thawed(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    begun = time.monotonic()
    error = await fails(cut(children, disk, clones=[pool.clone(disk), pool.clone(disk)], deadline=0.5, test_pause=60))
    assert time.monotonic() - begun < 15
    disk.takes_writes()
    assert error.type == "Deadline"
    assert (error.details["frozen"], error.details["cloned"], error.details["of"]) == (1, 0, 2)
    assert 0.5 <= error.details["frozen_seconds"] < 1.5
    await asyncio.wait_for(error.gone.wait(), 1)
    assert not offspring(children.server_pid)
    await cut(children, disk, clones=[pool.clone(disk)])


async def test_a_real_clone_of_many_extents_is_killed_at_the_deadline(children: Children, pool: Pool) -> None:
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
    assert error.details["frozen_seconds"] < 0.7


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_freeze_by_somebody_else_is_named_and_left_alone(children: Children, pool: Pool, fs: str) -> None:
    ours, theirs = pool.disk(fs), pool.disk(fs)
    freeze_mount(theirs.point)
    clones = [pool.clone(ours)]
    error = await fails(cut(children, ours, theirs, clones=clones, sync_timeout=5))
    assert error.type == "FrozenElsewhere"
    assert str(theirs.point) in error.message
    assert theirs.is_frozen()
    ours.takes_writes()
    assert Path(clones[0]["target"]).stat().st_size == 0
    await asyncio.wait_for(error.gone.wait(), 1)
    assert theirs.is_frozen()


async def test_only_our_own_mounts_are_frozen(children: Children, pool: Pool, tmp_path: Path) -> None:
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
        for job, args in (("cut", {"mounts": [mount], "clones": [], "deadline": 5}), ("sync", mount)):
            error = await fails(children.run(job, 10, **args))
            assert error.type == "NotOurs", (job, mount)
    assert (await children.run("thaw", 10, mounts=wrong[:5])) == {"thawed": [False] * 5}, "it falls back to the device"
    assert host == os.stat("/").st_dev
    assert not disk.is_frozen()
    for mounts in ([], [disk.mount, disk.mount]):
        assert (await fails(children.run("cut", 10, mounts=mounts, clones=[], deadline=5))).errno == 22
    assert (await fails(children.run("cut", 10, mounts=[disk.mount]))).type == "TypeError"
    await children.run("sync", 10, **disk.mount)
    await children.run("statvfs", 10, **disk.mount)
    await children.run("sync_device", 10, device=disk.device)


async def test_a_cut_killed_inside_its_freeze_is_thawed_by_the_watchdog(children: Children, pool: Pool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    task = await paused(children, pool, *disks)
    (child,) = offspring(children.server_pid)
    (cloner,) = offspring(child)
    begun = time.monotonic()
    os.kill(child, signal.SIGKILL)
    error = await fails(task)
    assert time.monotonic() - begun < 15
    for disk in disks:
        disk.takes_writes()
    assert error.type == "Crashed"
    assert error.gone.is_set()
    assert not alive(cloner)
    assert not offspring(children.server_pid)


async def test_a_cancelled_cut_is_thawed(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=2)
    assert done
    assert task.cancelled()
    disk.takes_writes()
    await until(lambda: not offspring(children.server_pid))


async def test_a_cut_past_the_agents_own_deadline_is_thawed(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    with pytest.raises(JobStuck) as caught:
        await children.run("cut", 1.0, mounts=[disk.mount], clones=[pool.clone(disk)], deadline=50, test_pause=60)
    assert caught.value.gone.is_set()
    disk.takes_writes()


async def test_stop_thaws_a_running_cut(pool: Pool) -> None:
    children = Children()
    await children.start()
    disk = pool.disk()
    task = await paused(children, pool, disk)
    await asyncio.wait_for(children.stop(), 5)
    disk.takes_writes()
    error = await fails(task)
    assert error.type == "Stopped"
    assert error.gone.is_set()


async def test_a_stopped_child_is_late_and_thawed_by_the_watchdog(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk, deadline=0.7)
    (child,) = offspring(children.server_pid)
    os.kill(child, signal.SIGSTOP)
    begun = time.monotonic()
    assert (await fails(task)).type == "Crashed"
    assert time.monotonic() - begun < 15
    disk.takes_writes()


async def test_one_failure_in_a_group_leaves_nothing_frozen(children: Children, pool: Pool) -> None:
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
    assert (await cut(children, *disks, clones=good))["frozen_seconds"] < 5


async def test_a_thaw_by_somebody_else_is_noticed(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk, pause=1.5)
    sh("fsfreeze", "-u", disk.point)
    assert (await fails(task)).type == "ThawedElsewhere"
    disk.takes_writes()


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_freeze_that_hangs_is_answered_in_time_and_undone_when_it_returns(
    children: Children, pool: Pool, tmp_path: Path, fs: str
) -> None:
    hung, other = pool.disk(fs), pool.disk("ext4", place=tmp_path)
    for disk in (hung, other):
        await children.run("sync", 10, **disk.mount)
    freeze_mount(pool.path)  # so that nothing below `hung` can be written
    begun = time.monotonic()
    error = await fails(cut(children, hung, other, clones=[], deadline=0.5, sync_timeout=3))
    assert time.monotonic() - begun < 15
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
    await asyncio.wait_for(error.gone.wait(), 10)
    hung.takes_writes()
    assert not hung.is_frozen()
    assert children.stuck == 0
    print(fs, error.type)


async def test_writing_back_has_a_bound_of_its_own(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    freeze_mount(pool.path)
    (disk.point / "dirty").write_bytes(b"x" * (1 << 20))
    error = await fails(cut(children, disk, clones=[], sync_timeout=0.4))
    assert error.type == "SyncTimeout"
    sh("fsfreeze", "-u", pool.path)
    await asyncio.wait_for(error.gone.wait(), 10)
    assert not disk.is_frozen()


async def test_a_cut_outlives_its_fork_server(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk, pause=1.0)
    os.kill(children.server_pid, signal.SIGKILL)
    assert (await asyncio.wait_for(task, 10))["clone_seconds"] >= 0.5
    disk.takes_writes()
    await cut(children, disk, clones=[pool.clone(disk)])


async def test_without_its_fork_server_a_cut_that_dies_is_thawed_by_the_agent(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    task = await paused(children, pool, disk)
    server = children.server_pid
    (child,) = offspring(server)
    for pid in (server, child, *offspring(child)):
        os.kill(pid, signal.SIGKILL)
    error = await fails(task)
    await asyncio.wait_for(error.gone.wait(), 5)
    disk.takes_writes()


AGENT = """
import asyncio, json, sys
from csi_driver.host import announcements
from csi_driver.host.children import Children
async def main():
    arguments = json.loads(sys.argv[1])
    children = Children()
    await children.start()
    if arguments["announce"]:
        announcements.announce(arguments["announce"], "volume", arguments["facts"])
    print(children.server_pid, flush=True)
    await children.run("cut", 60, **arguments["cut"])
asyncio.run(main())
"""


def agent(pool: Pool, *disks: Disk, announce: str = "") -> tuple["subprocess.Popen[str]", int]:
    """Start an agent of its own that freezes the disks and stays inside; returns it and its fork server's pid."""
    work = {
        "mounts": [disk.mount for disk in disks],
        "clones": [pool.clone(disk) for disk in disks],
        "deadline": 50,
        "test_pause": 60,
    }
    arguments = {"announce": announce, "facts": [disk.facts for disk in disks], "cut": work}
    root = str(Path(csi_driver.__file__).parent.parent)
    process = pool.popen(sys.executable, "-c", AGENT, json.dumps(arguments), env=os.environ | {"PYTHONPATH": root})
    assert process.stdout
    server = int(process.stdout.readline())
    eventually(lambda: in_pause(server))
    assert all(disk.is_frozen() for disk in disks)
    return process, server


def test_a_killed_agents_freeze_is_thawed_by_the_watchdog(pool: Pool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    process, server = agent(pool, *disks)
    begun = time.monotonic()
    process.kill()
    process.wait(5)
    for disk in disks:
        disk.takes_writes()
    assert time.monotonic() - begun < 15
    eventually(lambda: not alive(server), 5)


def test_a_killed_agents_hanging_freeze_is_thawed_when_it_returns(pool: Pool) -> None:
    disk = pool.disk()
    root = str(Path(csi_driver.__file__).parent.parent)
    work = {"mounts": [disk.mount], "clones": [], "deadline": 50}
    sh("sync", "-f", disk.point)
    freeze_mount(pool.path)
    arguments = json.dumps({"announce": "", "facts": [], "cut": work})
    process = pool.popen(sys.executable, "-c", AGENT, arguments, env=os.environ | {"PYTHONPATH": root})
    assert process.stdout
    server = int(process.stdout.readline())
    time.sleep(0.7)
    process.kill()
    process.wait(5)
    time.sleep(0.3)
    assert alive(server)
    sh("fsfreeze", "-u", pool.path)
    eventually(lambda: not alive(server), 5)
    disk.takes_writes()
    assert not disk.is_frozen()


@pytest.mark.parametrize("unmounted", [False, True], ids=["mounted", "unmounted"])
async def test_when_all_die_the_announcement_is_enough_to_thaw(children: Children, pool: Pool, unmounted: bool) -> None:
    disks = [pool.disk("xfs"), pool.disk("ext4")]
    directory = pool.path / "frozen"
    directory.mkdir()
    process, server = agent(pool, *disks, announce=str(directory))
    (child,) = offspring(server)
    victims = [server, process.pid, child, *offspring(child)]
    for pid in (*victims, *victims):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(5)
    eventually(lambda: not any(alive(pid) for pid in victims))
    assert all(disk.is_frozen() for disk in disks)
    if unmounted:
        for disk in disks:
            sh("umount", disk.point)
            assert not disk.is_mounted()

    found = announcements.announced(str(directory))
    assert list(found) == ["volume"]
    facts: Any = found["volume"]
    assert [fact["boot"] for fact in facts] == [announcements.boot_id()] * 2
    strangers = [fact | {"backing": [1, 2]} for fact in facts]
    assert (await children.run("thaw", 10, mounts=strangers)) == {"thawed": [False, False]}
    assert (await children.run("thaw", 10, mounts=facts)) == {"thawed": [True, True]}
    assert (await children.run("thaw", 10, mounts=facts)) == {"thawed": [False, False]}
    announcements.withdraw(str(directory), "volume")
    assert announcements.announced(str(directory)) == {}
    for disk in disks:
        if unmounted:
            eventually(lambda disk=disk: not Path(f"/sys/fs/{disk.fs}/{Path(disk.device).name}").exists())  # type: ignore[misc]
            sh("mount", "-o", "nouuid" if disk.fs == "xfs" else "defaults", disk.device, disk.point)
        disk.takes_writes()


@pytest.mark.parametrize("fs", ["xfs", "ext4"])
async def test_a_device_without_a_mount_is_thawed_privately(children: Children, pool: Pool, fs: str) -> None:
    disk = pool.disk(fs)

    def mounts() -> list[str]:
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {disk.device} " in line]

    before = mounts()
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": False}
    freeze_mount(disk.point)
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": True}
    assert mounts() == before
    sh("mount", "-o", "remount,ro", disk.point)
    freeze_mount(disk.point)
    sh("umount", disk.point)
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": True}
    eventually(lambda: not Path(f"/sys/fs/{fs}/{Path(disk.device).name}").exists())
    assert (await children.run("thaw_device", 10, device=disk.device, fs_type=fs)) == {"thawed": False}


async def test_a_frozen_disk_covered_by_another_mount_is_thawed(children: Children, pool: Pool) -> None:
    disk = pool.disk()
    freeze_mount(disk.point)
    sh("mount", "-t", "tmpfs", "none", disk.point)
    try:
        assert (await children.run("thaw", 10, mounts=[disk.mount])) == {"thawed": [True]}
    finally:
        sh("umount", disk.point)
    disk.takes_writes()


async def test_many_cuts_leave_nothing(
    children: Children, pool: Pool, record_property: Callable[[str, object], None]
) -> None:
    disk = pool.disk()
    await cut(children, disk, clones=[pool.clone(disk)])
    await asyncio.sleep(0.1)
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
    assert (children.stuck, children.written_off_total) == (0, 0)
    facts = {"frozen_ms_p50": sorted(frozen)[15], "frozen_ms_max": max(frozen), "cut_ms_p50": sorted(whole)[15]}
    record_property("cuts", json.dumps(facts))
    print(facts)


def test_announcements_are_files_that_survive(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert announcements.announced(str(tmp_path / "missing")) == {}
    announcements.announce(directory, "a-1", {"x": 1})
    announcements.announce(directory, "a-1", {"x": 2})
    announcements.announce(directory, "b", [1])
    (tmp_path / "c.frozen.json.new").write_text("{")
    (tmp_path / "d.frozen.json").write_text("{")
    (tmp_path / "unrelated").write_text("{")
    assert announcements.announced(directory) == {"a-1": {"x": 2}, "b": [1], "d": None}
    announcements.withdraw(directory, "a-1")
    announcements.withdraw(directory, "a-1")
    assert set(announcements.announced(directory)) == {"b", "d"}
    for key in ("", ".", "..", "a/b", "../x", "a\n", "x" * 201, "ä"):
        with pytest.raises(ValueError, match="not a key"):
            announcements.announce(directory, key, {})
    with pytest.raises(OSError, match="No such file"):
        announcements.announce(str(tmp_path / "missing"), "a", {})

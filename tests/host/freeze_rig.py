"""What the tests of freezes need: disks on an XFS that can be frozen by anybody, and cuts that pause."""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.paused_freezes import alive, end_pause, ended, fails, in_pause, offspring
from support.waiting import until, wait_until

from csi_driver.host.block import loop
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.errors import Busy, Mismatch
from csi_driver.host.freeze import journal, thaw
from csi_driver.host.fs import mountinfo
from csi_driver.host.helper.client import HelperPool

__all__ = ["alive", "end_pause", "ended", "fails", "in_pause", "offspring"]

SIZES = {"xfs": 300 << 20, "ext4": 64 << 20}

# On a busy machine a step of a few milliseconds may take seconds: each of these is far from the one before it.
DEADLINE = 30.0
"""Seconds that a snapshot has which is to succeed; also, for a write, to be taken."""
LONG = 100.0
"""The deadline of a snapshot that a test interferes with: who thaws must come long before it."""
PAUSE = 110.0
"""Seconds that such a snapshot's cloning process sleeps."""
TIMEOUT = 120.0
"""Seconds that a snapshot's job has."""


def sh(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run(argv, check=False, timeout=30, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


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
        return journal.entry_for(str(self.point), self.major, self.minor, (status.st_dev, status.st_ino))

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
        """Write and sync: of what is frozen only its own deadline would let that come back, after LONG."""
        code = "import os, sys; f = open(sys.argv[1], 'w'); f.write('x'); f.flush(); os.fsync(f.fileno())"
        subprocess.run([sys.executable, "-I", "-S", "-c", code, self.point / "probe"], check=True, timeout=DEADLINE)

    def is_mounted(self) -> bool:
        return mountinfo.at(self.point) is not None  # not by a stat, which one that shut itself down refuses


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
            wait_until(lambda disk=disk: not disk.is_mounted() or succeeds("umount", disk.point))  # type: ignore[misc]
        for device in reversed(self.loops[1:]):
            self.let_go(device)
        wait_until(lambda: not os.path.ismount(self.path) or succeeds("umount", self.path))
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

        wait_until(gone)


def cloning(clones: list[dict[str, str]]) -> dict[str, object]:
    """The action of a snapshot."""
    return {"kind": "clone_files", "files": clones}


async def cut(
    children: HelperPool, *disks: Disk, clones: list[dict[str, str]], deadline: float = DEADLINE, **more: Any
) -> Any:
    mounts = [disk.mount for disk in disks]
    job = children.run("cut", TIMEOUT, mounts=mounts, action=cloning(clones), deadline=deadline, **more)
    return await asyncio.wait_for(job, TIMEOUT)


async def paused(
    children: HelperPool, pool: Pool, *disks: Disk, pause: float = PAUSE, deadline: float = LONG
) -> "asyncio.Task[Any]":
    """Start a snapshot whose cloning process sleeps, and return once all disks are frozen."""
    clones = [pool.clone(disk) for disk in disks]
    task = asyncio.create_task(cut(children, *disks, clones=clones, deadline=deadline, test_pause=pause))
    await until(lambda: in_pause(children.server_pid) or task.done())
    assert not task.done()
    assert all(disk.is_frozen() for disk in disks)
    return task

"""The host under the node and crash suites: what the kernel shows, disks for pools, bytes, and a cleaner that forgets nothing."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.commands import missing_tools, run
from csi_driver.host.freeze.state import FIFREEZE, FITHAW
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.fs.filesystems import pool_mkfs_argv
from csi_driver.host.fs.mountinfo import Mount

MIB = 1 << 20
GIB = 1 << 30


def skip_unless_root() -> None:
    if os.geteuid():
        pytest.skip("needs root: attaches loop devices and mounts file systems")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("needs loop devices: /dev/loop-control is missing")
    if missing_tools():
        pytest.skip(f"needs {', '.join(missing_tools())}")


def has_capability(number: int) -> bool:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> number & 1)


# ---- what the kernel shows ---------------------------------------------------------------------------------------------


def mounts_below(place: Path) -> list[Mount]:
    return [m for m in mountinfo.read() if Path(m.point.removesuffix("//deleted")).is_relative_to(place)]


def devices_below(place: Path) -> list[LoopDevice]:
    """Loop devices whose file lies, or lay before it was deleted, below `place`, and those on file systems of these."""
    bound: dict[int, str] = {}
    for number in loop_ioctl.numbers():
        if (backing := loop_ioctl.sysfs(number, "loop/backing_file")) is not None:
            bound[number] = backing
    found = [d for d in map(_described, bound) if d is not None and Path(bound[d.number]).is_relative_to(place)]
    if found:
        # In a pool that was unmounted lazily the kernel shows a path inside that file system alone.
        below = {os.makedev(device.major, device.minor) for device in found}
        others = [d for d in map(_described, bound.keys() - {d.number for d in found}) if d is not None]
        found += [device for device in others if device.backing[0] in below]
    return found


def _described(number: int) -> LoopDevice | None:
    try:
        with loop_ioctl.opened(number, os.O_RDONLY) as fd:
            return loop_ioctl.describe(fd, number)
    except OSError as error:
        # The kernel cannot say whose file it is once the pool's file system is dead: the path alone tells.
        return LoopDevice(number, f"/dev/loop{number}", 7, number, (0, 0)) if error.errno == errno.EIO else None


def freeze(point: str | Path) -> None:
    _ioctl(point, FIFREEZE)


def thaw(point: str | Path) -> None:
    _ioctl(point, FITHAW)


def is_frozen(point: str | Path) -> bool:
    """Whether somebody keeps the file system frozen: a second freeze says so; it is undone at once."""
    try:
        freeze(point)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    thaw(point)
    return False


def _ioctl(point: str | Path, request: int) -> None:
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def clean(place: Path) -> None:
    """Thaw, unmount and detach whatever is left on or below `place`, the newest first."""
    left: list[Any] = []
    for attempt in range(300):
        shown = mounts_below(place)
        devices = devices_below(place)
        left = [*shown, *devices]
        if not left:
            return
        for mount in reversed(shown):
            if Path(mount.point) == place and devices:
                continue  # by the paths below it they are known
            if mount.major == 7:
                with suppress(OSError):
                    thaw(mount.point)
            with suppress(OSError):
                mounts.umount(mount.point)
        for device in reversed(devices):
            with suppress(OSError):
                if device.backing != (0, 0):
                    loop.detach(device)
                else:
                    run(("losetup", "--detach", device.path), 10)
                continue
            if attempt == 10:
                # Frozen and without a mount, it can be thawed only where it is mounted once more.
                for fs_type in ("xfs", "ext4"):
                    code = "import sys; from csi_driver.host.freeze.thaw import thaw_device; thaw_device(*sys.argv[1:])"
                    with suppress(subprocess.TimeoutExpired):
                        subprocess.run(
                            [sys.executable, "-c", code, device.path, fs_type],
                            capture_output=True,
                            timeout=10,
                            check=False,
                        )
        if attempt:
            time.sleep(0.05)
    # Nobody may be harmed by what is left: out of sight, and gone when its last user ends.
    for mount in reversed(mounts_below(place)):
        subprocess.run(["umount", "-l", mount.point], check=False)
    for device in reversed(devices_below(place)):
        subprocess.run(["losetup", "--detach", device.path], check=False)
    pytest.fail(f"could not clean up {place}: {left}")


# ---- the pool's disk ---------------------------------------------------------------------------------------------------


@dataclass
class Disk:
    """An image with a file system, on a loop device, mounted: where a pool lies."""

    image: Path
    point: Path
    device: LoopDevice

    def free(self) -> int:
        status = os.statvfs(self.point)
        return status.f_bavail * status.f_frsize


def make_disk(place: Path, size: int = 2 * GIB, name: str = "disk") -> Disk:
    """An XFS of its own, mounted at `place`/pool."""
    image, point = place / f"{name}.img", place / name
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    device = loop.attach(image)
    run(pool_mkfs_argv(device.path), 30)
    mounts.mount(device.path, point, "xfs", ["noatime"])
    return Disk(image, point, device)


def share(place: Path) -> None:
    """Make `place` a shared mount, as a kubelet's directory is: what is unmounted here is then unmounted in every namespace."""
    mounts.bind(place, place, read_only=False)
    run(("mount", "--make-shared", str(place)), 10)


# ---- bytes -------------------------------------------------------------------------------------------------------------


def write_file(path: str | Path, data: bytes) -> None:
    """Write and fsync file and directory: whoever returns from here was promised the data."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(path: str | Path, offset: int, data: bytes) -> None:
    """Write to a device or an image, durably."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def allocated(path: str | Path) -> int:
    return os.stat(path).st_blocks * 512


@contextmanager
def process(*argv: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that says `ready`; killed at the end."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().strip() == "ready"
            yield started
        finally:
            started.kill()


HOLD_OPEN = "import os, sys, time; os.open(sys.argv[1], os.O_RDONLY); print('ready', flush=True); time.sleep(600)"


@contextmanager
def held_open(path: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Somebody else has `path` open."""
    with process(sys.executable, "-c", HOLD_OPEN, str(path)) as holder:
        yield holder

"""Disks for pools: an XFS on a loop device, mounted; and what removes every mount and device below a directory."""

import errno
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.fs.filesystems import pool_mkfs_argv
from csi_driver.host.fs.mountinfo import Mount
from support.freezing import thaw
from support.sizes import GIB


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

"""Who uses a loop device: holders, mounts, processes."""

import os
from contextlib import suppress

from csi_driver.host import mountinfo
from csi_driver.host.loopctl import LoopDevice


def holders(device: LoopDevice) -> list[str]:
    """Name the block devices that are stacked on this one (device mapper, md), from sysfs."""
    with suppress(FileNotFoundError):
        return sorted(os.listdir(f"/sys/block/{device.name}/holders"))
    return []


def places_of(device: LoopDevice) -> list[str]:
    """Name the mount points, in this namespace, of file systems on the device and of its bind-mounted node."""
    return [mount.point for mount in mountinfo.mounts_of(device.major, device.minor, device.name)]


def openers(device: LoopDevice, ours: int = -1) -> list[str]:
    """Name the processes (pid and command) that have the device's node open, as far as this pid namespace shows.

    `ours`: a descriptor of this process that does not count.
    """
    rdev = os.makedev(device.major, device.minor)
    inode = 0
    with suppress(OSError):
        inode = os.stat(device.path).st_ino
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            descriptors = set(os.listdir(f"/proc/{pid}/fd"))
            if int(pid) == os.getpid():
                descriptors.discard(str(ours))
            if any(_is_open(pid, fd, rdev, inode) for fd in descriptors):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    found.append(f"pid {pid} ({file.read().strip()})")
    return found


def _is_open(pid: str, fd: str, rdev: int, inode: int) -> bool:
    # A stat of somebody's file on a dead network file system does not return: only likely ones are looked at.
    try:
        if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/dev/"):
            with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
                if f"ino:\t{inode}\n" not in file.read():
                    return False
        return os.stat(f"/proc/{pid}/fd/{fd}").st_rdev == rdev
    except OSError:
        return False

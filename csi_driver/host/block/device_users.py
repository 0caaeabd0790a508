"""Who uses a block device: holders, mounts, processes."""

import os
from contextlib import suppress

from csi_driver.host.block.device import Device
from csi_driver.host.fs import mountinfo

TENANTS_DATA = "docs/how-to/tenants-data.md"
"""How to end what a node has begun by itself with a tenant's data, and how to keep it from that."""


def holders(device: Device, system: str = "/sys/block") -> list[str]:
    """Name the block devices that are stacked on this one (device mapper, md), from sysfs, and whose they are."""
    with suppress(FileNotFoundError):
        return [_holder(name, system) for name in sorted(os.listdir(f"{system}/{device.name}/holders"))]
    return []


def _holder(name: str, system: str) -> str:
    """A device of the device mapper is known to people by what its owner calls it, and its uuid begins with who that is."""
    values = []
    for word in ("name", "uuid"):
        with suppress(OSError), open(f"{system}/{name}/dm/{word}", encoding="utf-8", errors="replace") as file:
            values.append(file.read().strip())
    if len(values) < 2:
        return name
    owner = values[1].partition("-")[0]
    return f"{name} ({values[0]}{f', made by {owner}' if owner else ''})"


def mount_points_of(device: Device) -> list[str]:
    """Name the mount points, in this namespace, of file systems on the device and of its bind-mounted node."""
    return [mount.point for mount in mountinfo.mounts_of(device.major, device.minor, device.name)]


def processes_with_open(device: Device, ours: int = -1) -> list[str]:
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

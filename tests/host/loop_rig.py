"""What the tests of loop devices share."""

import os
from pathlib import Path

from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import mounts
from csi_driver.host.fs.filesystems import mkfs_argv, mount_options

MIB = 1 << 20


def sysfs(device: loop.LoopDevice, name: str) -> str | None:
    return loop_ioctl.sysfs(device.number, name)


def format_and_mount(device: loop.LoopDevice, fs_type: str, point: Path) -> None:
    run(mkfs_argv(fs_type, device.path), 30)
    mounts.mount(device.path, point, fs_type, mount_options(fs_type))


def use_all(device: loop.LoopDevice, size: int) -> None:
    fd = os.open(device.path, os.O_RDWR)
    for offset in range(0, size, MIB):
        os.pwrite(fd, b"x" * MIB, offset)
    os.fsync(fd)
    os.close(fd)

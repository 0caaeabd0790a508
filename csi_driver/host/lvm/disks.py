"""What is on a disk that is to become part of a pool: anything at all keeps it from that."""

import errno
import json
import os
import stat
from dataclasses import dataclass

from csi_driver.host import commands
from csi_driver.host.block import device as block_device
from csi_driver.host.block import device_users
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.errors import CommandError, HostError
from csi_driver.host.lvm import discovery
from csi_driver.host.lvm.configuration import is_usable_path

_SECONDS = 20.0
_LOOKED_AT = 1 << 20
"""Bytes at the beginning of a disk in which something written is data, also where no tool knows of what kind."""
_MEMBER = "LVM2_member"


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device. `path`: as it was given; `stable`: the same after a boot. `content`: what is on it, `users`: who has it,
    in words. `searched`: it is of a kind on which pools are looked for.
    """

    path: str
    stable: str
    name: str
    size: int
    content: tuple[str, ...]
    users: tuple[str, ...]
    searched: bool = True

    @property
    def is_physical_volume(self) -> bool:
        """Whether it is a disk of LVM already."""
        return any(_MEMBER in text for text in self.content)


def inspect(path: str) -> Disk:
    """Look at a disk. Raises HostError if it is not a block device that can be written; OSError, CommandError."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise HostError(errno.ENOENT, f"{path} does not exist: `lsblk` lists the disks") from None
    if not stat.S_ISBLK(status.st_mode):
        raise HostError(errno.ENOTBLK, f"{path} is not a block device: name a disk or a partition, as in /dev/nvme1n1")
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    name = block_device.name_of(major, minor)
    node = discovery.node_of(name)
    if not name or not is_usable_path(node):
        raise HostError(
            errno.ENODEV, f"{path} is a device that the kernel does not know by a name that LVM takes ({name!r})"
        )
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size, read_only = block_device.size(fd), block_device.is_read_only(fd)
        written = not size or _written(fd, size)
    finally:
        os.close(fd)
    if read_only or not size:
        raise HostError(errno.EROFS, f"{path} {'is read-only' if read_only else 'has no size'}: name another disk")
    content = _signatures(path)
    content += [f"partition {part}" for part in _partitions(name)]
    if written and not content:
        content.append("data that no tool knows, in its first MiB")
    users = _users(BlockDevice(path, name, major, minor))
    if not users and _is_taken(path):
        users = ["the kernel: a mount in another namespace, swap, or an array"]
    return Disk(
        path, discovery.stable_path(node), name, size, tuple(content), tuple(users), name in discovery.candidates()
    )


def blank(path: str) -> None:
    """Write zeroes over the beginning of a disk, where LVM keeps what it says of it: of one that was empty before. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        os.pwrite(fd, bytes(min(_LOOKED_AT, block_device.size(fd))), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _signatures(path: str) -> list[str]:
    answer = commands.run(("wipefs", "--no-act", "--json", path), _SECONDS).strip()
    try:
        found = json.loads(answer)["signatures"] if answer else []
        return [_signature(str(item["type"]), str(item.get("label") or "")) for item in found]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(("wipefs", path), 0, answer, f"its answer cannot be read ({error!r})") from error


def _signature(kind: str, label: str) -> str:
    return f"{kind} {label!r}" if label else kind


def _partitions(name: str) -> list[str]:
    directory = f"/sys/class/block/{name}"
    return sorted(part for part in os.listdir(directory) if os.path.exists(f"{directory}/{part}/partition"))


def _users(device: BlockDevice) -> list[str]:
    return [
        *(f"mounted at {point}" for point in device_users.mount_points_of(device)),
        *(f"part of {holder}" for holder in device_users.holders(device, "/sys/class/block")),
        *device_users.processes_with_open(device),
    ]


def _is_taken(path: str) -> bool:
    """Whether somebody has the disk for himself: mounts, swap, arrays and the device mapper open it so."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


def _written(fd: int, size: int) -> bool:
    return bool(os.pread(fd, min(_LOOKED_AT, size), 0).strip(b"\0"))

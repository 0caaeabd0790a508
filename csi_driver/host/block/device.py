"""Block devices of any kind: node, size, read-only flag, flush, identity. loop.py attaches and detaches one kind of them."""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from csi_driver.host import syscalls
from csi_driver.host.errors import Mismatch

_BLKROSET, _BLKROGET, _BLKGETSIZE64 = 0x125D, 0x125E, 0x80081272
_PAGE = 4096
"""Bytes that a file in sysfs holds at most."""
_DEVICE_MAPPER = "dm-"


class Device(Protocol):
    """What every kind of block device has."""

    @property
    def path(self) -> str:
        """Its node, as in /dev/loop3."""

    @property
    def name(self) -> str:
        """The kernel's name, as in /sys/block."""

    @property
    def major(self) -> int:
        """The first half of its number."""

    @property
    def minor(self) -> int:
        """The second half of its number."""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A block device as it is bound now; `identity`: see the function of that name."""

    path: str
    name: str
    major: int
    minor: int
    identity: str = ""


@dataclass(frozen=True, slots=True)
class OpenDevice:
    """A block device that is open: its number stays bound to what it holds until the descriptor is closed."""

    device: BlockDevice
    fd: int

    @property
    def path(self) -> str:
        """The device's node."""
        return self.device.path

    def size(self) -> int:
        """Return the size in bytes. Raises OSError."""
        return size(self.fd)

    def flush(self) -> None:
        """Write back the device's page cache, then flush down to the disk. Raises OSError."""
        os.fsync(self.fd)

    def set_read_only(self, read_only: bool) -> None:
        """Make the device refuse all writes, also by who has it open already, or take them again. Raises OSError."""
        set_read_only(self.fd, read_only)

    def is_read_only(self) -> bool:
        """Return whether the device refuses writes. Raises OSError."""
        return is_read_only(self.fd)


def sysfs(name: str, attribute: str) -> str | None:
    """Read a file below /sys/block/NAME without its newline; None if there is none, as when nothing is bound."""
    try:
        # Every snapshot looks at every loop device of the machine: a file object would double what that takes.
        fd = os.open(f"/sys/block/{name}/{attribute}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.fsdecode(os.read(fd, _PAGE).removesuffix(b"\n"))
        finally:
            os.close(fd)
    except OSError as error:
        # ENODEV, ENXIO: it went away while it was read.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return None
        raise


def identity(name: str) -> str:
    """Return a token of what is bound to the device `name` now: it changes when the number is reused. Empty: unknown.

    A device of the device mapper has a uuid. For all others it is the kernel's sequence number (diskseq, from 5.15 on), which
    no second attachment gets while the kernel runs.
    """
    if name.startswith(_DEVICE_MAPPER):
        return sysfs(name, "dm/uuid") or ""
    sequence = sysfs(name, "diskseq")
    return f"{name}/{sequence}" if sequence else ""


def name_of(major: int, minor: int) -> str:
    """Return the kernel's name of the device with this number; empty: there is none."""
    path = f"/sys/dev/block/{major}:{minor}"
    return os.path.basename(os.path.realpath(path)) if os.path.exists(path) else ""


def open_node(name: str, flags: int) -> int:
    """Open /dev/NAME, made first if it is missing (a container's own /dev has only the nodes of its start).

    Raises Mismatch if it is another device's node, OSError.
    """
    path, number = f"/dev/{name}", sysfs(name, "dev")
    if number is None:
        raise OSError(errno.ENXIO, f"the kernel has no {name}")
    major, minor = map(int, number.split(":"))
    with suppress(FileExistsError):
        if not os.path.lexists(path):
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if os.fstat(fd).st_rdev != os.makedev(major, minor):
        os.close(fd)
        raise Mismatch(errno.ENODEV, f"{path} is not the node of device {number}")
    return fd


@contextmanager
def held(name: str, expected: str) -> Iterator[OpenDevice]:
    """Open the device `name` for the length of a block, if its identity is `expected`. Raises Mismatch, OSError."""
    fd = open_node(name, os.O_RDONLY)
    try:
        if not expected or identity(name) != expected:
            raise Mismatch(
                errno.ESTALE, f"/dev/{name} is no longer the expected device ({expected or 'its identity is unknown'})"
            )
        number = os.fstat(fd).st_rdev
        yield OpenDevice(BlockDevice(f"/dev/{name}", name, os.major(number), os.minor(number), expected), fd)
    finally:
        os.close(fd)


def size(fd: int) -> int:
    """Return the size of an open block device in bytes. Raises OSError."""
    buffer = ctypes.create_string_buffer(8)
    syscalls.ioctl("BLKGETSIZE64", fd, _BLKGETSIZE64, buffer)
    return int.from_bytes(buffer.raw, sys.byteorder)


def set_read_only(fd: int, read_only: bool) -> None:
    """Set the read-only flag of an open block device. Raises OSError."""
    syscalls.ioctl("BLKROSET", fd, _BLKROSET, ctypes.create_string_buffer(int(read_only).to_bytes(4, sys.byteorder), 4))


def is_read_only(fd: int) -> bool:
    """Return the read-only flag of an open block device. Raises OSError."""
    buffer = ctypes.create_string_buffer(4)
    syscalls.ioctl("BLKROGET", fd, _BLKROGET, buffer)
    return bool(int.from_bytes(buffer.raw, sys.byteorder))

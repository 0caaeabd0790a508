"""The kernel's side of loop devices: their ioctls, structures, nodes and files in sysfs. `loop` is what others use."""

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from csi_driver.host import syscalls
from csi_driver.host.block import device
from csi_driver.host.errors import Mismatch

CONFIGURE, CLR_FD, SET_STATUS64, GET_STATUS64, SET_CAPACITY = 0x4C0A, 0x4C01, 0x4C04, 0x4C05, 0x4C07
CTL_ADD, CTL_REMOVE, CTL_GET_FREE = 0x4C80, 0x4C81, 0x4C82
MAJOR = 7
READ_ONLY, AUTOCLEAR, DIRECT_IO = 1, 4, 16
_NAME = re.compile(r"loop(\d+)")


class Info(ctypes.Structure):
    """struct loop_info64."""

    device: int
    inode: int
    flags: int
    file_name: bytes
    _fields_ = (
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("size_limit", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32),
        ("encrypt_key_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("file_name", ctypes.c_char * 64),
        ("crypt_name", ctypes.c_char * 64),
        ("encrypt_key", ctypes.c_uint8 * 32),
        ("init", ctypes.c_uint64 * 2),
    )


class Config(ctypes.Structure):
    """struct loop_config."""

    info: Info
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", Info),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """A bound loop device; `backing` is (st_dev, st_ino) of its file. The number alone is soon another file's."""

    number: int
    path: str
    major: int
    minor: int
    backing: tuple[int, int]

    @property
    def name(self) -> str:
        """The kernel's name, as in /sys/block."""
        return f"loop{self.number}"


def numbers() -> list[int]:
    """List the numbers of all loop devices that exist, bound or not."""
    return sorted(int(match[1]) for entry in os.listdir("/sys/block") if (match := _NAME.fullmatch(entry)))


def sysfs(number: int, name: str) -> str | None:
    """Read a file below /sys/block/loopN without its newline; None if there is none, as when nothing is bound."""
    return device.sysfs(f"loop{number}", name)


def attachment(number: int) -> str:
    """Return which attachment of a loop device this is: see `device.identity`. Empty: the kernel does not tell."""
    return device.identity(f"loop{number}")


def shows(number: int, name: str, word: str) -> bool:
    """Whether a file below /sys/block/loopN has this word. One that cannot be read has none."""
    with suppress(OSError):  # EINVAL: so the kernel says that a setting was never made
        return word in (sysfs(number, name) or "").split()
    return False


def write_sysfs(number: int, name: str, value: str) -> None:
    """Write a setting below /sys/block/loopN. Raises OSError."""
    fd = os.open(f"/sys/block/loop{number}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def open_node(number: int, flags: int) -> int:
    """Open /dev/loopN. Raises as `device.open_node`."""
    return device.open_node(f"loop{number}", flags)


def control(what: str, request: int, number: int = 0) -> int:
    """Ask /dev/loop-control: for a free number, or to add or remove one. Raises OSError."""
    fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return syscalls.ioctl(what, fd, request, number)
    finally:
        os.close(fd)


def status(fd: int) -> Info:
    """Read the state of the open loop device. Raises OSError ENXIO where no file is bound to it."""
    info = Info()
    syscalls.ioctl("LOOP_GET_STATUS64", fd, GET_STATUS64, info)
    return info


def describe(fd: int, number: int) -> LoopDevice | None:
    """Return what is bound to the open device; None: nothing."""
    try:
        info = status(fd)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    # The kernel packs a device number as 12 bits of major between 8 and 12 of minor, glibc (os.makedev) in another way.
    major, minor = (info.device >> 8) & 0xFFF, (info.device & 0xFF) | ((info.device >> 12) & 0xFFF00)
    node = os.fstat(fd).st_rdev
    backing = (os.makedev(major, minor), info.inode)
    return LoopDevice(number, f"/dev/loop{number}", os.major(node), os.minor(node), backing)


def backing(minor: int) -> tuple[int, int] | None:
    """Return (st_dev, st_ino) of the file behind a loop device; None: it is bound to nothing, or gone. Raises OSError.

    Opens no node that is missing, and makes none.
    """
    try:
        fd = os.open(f"/dev/loop{minor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return None
        raise
    try:
        found = describe(fd, minor)
    finally:
        os.close(fd)
    return found.backing if found else None


@contextmanager
def opened(number: int, flags: int) -> Iterator[int]:
    """Open /dev/loopN for the length of a block. Raises as `open_node`."""
    fd = open_node(number, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def held(loop: LoopDevice) -> Iterator[int]:
    """Open the device and make sure that it holds the file it should; it cannot become another's meanwhile.

    Raises Mismatch, OSError.
    """
    with opened(loop.number, os.O_RDONLY) as fd:
        present = describe(fd, loop.number)
        if present is None or present.backing != loop.backing:
            raise Mismatch(errno.ESTALE, f"{loop.path} no longer holds the file that it was attached to")
        yield fd

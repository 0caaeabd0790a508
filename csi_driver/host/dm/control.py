"""The ioctls of /dev/mapper/control: their structures, and the node itself."""

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from csi_driver.host import syscalls
from csi_driver.host.errors import Unsupported

LIST_DEVICES, SUSPEND, STATUS, TABLE_STATUS, TARGET_MESSAGE = 2, 6, 7, 12, 14
FLAG_SUSPENDED = 1 << 1
"""Of an answer: it is suspended. Of SUSPEND: suspend it; without it, resume it."""
FLAG_READ_ONLY = 1 << 0
FLAG_TABLE = 1 << 4
"""Of TABLE_STATUS: the tables, not the status."""
FLAG_BUFFER_FULL = 1 << 8
FLAG_SKIP_LOCKFS = 1 << 10
"""Of SUSPEND: do not freeze the file system on the device."""
FLAG_NO_FLUSH = 1 << 11
"""Of TABLE_STATUS: do not commit a pool's metadata first."""
FLAG_DATA_OUT = 1 << 16

_NODE = Path("/dev/mapper/control")
_NUMBER = Path("/sys/class/misc/device-mapper/dev")
_NAME, _UUID = 127, 128
"""Bytes that a name and a uuid have at most."""
_FIRST_BUFFER, _LARGEST_BUFFER = 16 << 10, 16 << 20


class Header(ctypes.Structure):
    """struct dm_ioctl."""

    data_size: int
    data_start: int
    target_count: int
    open_count: int
    flags: int
    event: int
    dev: int
    name: bytes
    uuid: bytes
    _fields_ = (
        ("version", ctypes.c_uint32 * 3),
        ("data_size", ctypes.c_uint32),
        ("data_start", ctypes.c_uint32),
        ("target_count", ctypes.c_uint32),
        ("open_count", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("event", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("dev", ctypes.c_uint64),
        ("name", ctypes.c_char * 128),
        ("uuid", ctypes.c_char * 129),
        ("data", ctypes.c_char * 7),
    )


class TargetSpec(ctypes.Structure):
    """struct dm_target_spec; a text follows."""

    start: int
    length: int
    next: int
    kind: bytes
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("status", ctypes.c_int32),
        ("next", ctypes.c_uint32),
        ("kind", ctypes.c_char * 16),
    )


def call(
    what: str, command: int, uuid: str = "", name: str = "", flags: int = 0, data: bytes = b""
) -> tuple[Header, bytes]:
    """Do one ioctl, on the device of a uuid or of a name; return the header and the data that the kernel has filled in.

    `what`: what is tried, for the message. Raises OSError: ENXIO if there is no such device; Unsupported without a device mapper.
    """
    if len(uuid) > _UUID or len(name) > _NAME:
        raise OSError(errno.ENAMETOOLONG, f"{what}: the name of a device has at most {_NAME} bytes, its uuid {_UUID}")
    start = ctypes.sizeof(Header)
    fd = _open()
    try:
        size = max(_FIRST_BUFFER, start + len(data))
        while True:
            buffer = ctypes.create_string_buffer(size)
            header = Header.from_buffer(buffer)
            header.version[:] = 4, 0, 0
            header.data_size, header.data_start, header.flags = size, start, flags
            header.name, header.uuid = name.encode(), uuid.encode()
            ctypes.memmove(ctypes.addressof(buffer) + start, data, len(data))
            syscalls.ioctl(what, fd, _number(command), buffer)
            if not header.flags & FLAG_BUFFER_FULL or size >= _LARGEST_BUFFER:
                return header, buffer.raw[header.data_start : header.data_size]
            size *= 4
    finally:
        os.close(fd)


def _number(command: int) -> int:
    return 3 << 30 | ctypes.sizeof(Header) << 16 | 0xFD << 8 | command  # _IOWR(0xfd, command, struct dm_ioctl)


def _open() -> int:
    """Open the control node, and make it if it is missing: in a container, or without udev."""
    with suppress(FileNotFoundError):
        fd = os.open(_NODE, os.O_RDWR | os.O_CLOEXEC)
        if stat.S_ISCHR(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise Unsupported(errno.ENODEV, f"{_NODE} is not the device mapper's node: remove it")
    try:
        major, minor = map(int, _NUMBER.read_text(encoding="ascii").split(":"))
    except FileNotFoundError:
        message = "the kernel has no device mapper: load its module on the node (modprobe dm_thin_pool)"
        raise Unsupported(errno.ENODEV, message) from None
    _NODE.parent.mkdir(mode=0o755, exist_ok=True)
    with suppress(FileExistsError):  # somebody else has made it meanwhile
        os.mknod(_NODE, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
    return os.open(_NODE, os.O_RDWR | os.O_CLOEXEC)

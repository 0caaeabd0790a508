"""Where a file's data lies and what it shares with others (FIEMAP)."""

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.host import syscalls

_FS_IOC_FIEMAP = 0xC020660B
_SYNC = 1
_HEADER = struct.Struct("=QQIIII")  # start, length, flags, mapped, room, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_WHOLE = (1 << 64) - 1
_SLICE = 4096

LAST = 0x0001
DELAYED = 0x0004
UNWRITTEN = 0x0800
SHARED = 0x2000


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of allocated space, in bytes; `flags` as in linux/fiemap.h (LAST, DELAYED, UNWRITTEN, SHARED)."""

    logical: int
    physical: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class ExtentUsage:
    """What of a file's allocation, also past its end, deleting it alone would free, the rest, and the extents."""

    exclusive_bytes: int
    shared_bytes: int
    extents: int


def extents(fd: int, *, sync: bool = True, start: int = 0) -> Iterator[Extent]:
    """Yield the file's extents in the order of their offsets, unwritten ones too; holes are left out. `start`: from there on.

    With `sync` what waits in memory is written first: else it may be missing or DELAYED. Not a point in time: slices of
    4096 extents are read one after another, without the interpreter's lock. Raises OSError (EOPNOTSUPP, EIO).
    """
    for slice_ in _slices(fd, sync=sync, start=start):
        for logical, physical, length, flags in slice_:
            yield Extent(logical, physical, length, flags)


def usage(fd: int, *, sync: bool = True) -> ExtentUsage:
    """Add up the file's allocation by FIEMAP's SHARED flag, about 1 us an extent. The rest as `extents`.

    A write to another file that shares with this one counts once it was written back there: `sync` is of this file
    only.
    """
    exclusive = shared = count = 0
    for slice_ in _slices(fd, sync=sync):
        for _, _, length, flags in slice_:
            count += 1
            if flags & SHARED:
                shared += length
            else:
                exclusive += length
    return ExtentUsage(exclusive, shared, count)


def extent_count(fd: int) -> int:
    """Count the extents without copying them out; what a clone of the file costs grows with it. Raises OSError."""
    buffer = ctypes.create_string_buffer(_HEADER.size)
    _HEADER.pack_into(buffer, 0, 0, _WHOLE, 0, 0, 0, 0)
    syscalls.ioctl("FIEMAP", fd, _FS_IOC_FIEMAP, buffer)
    return int(_HEADER.unpack_from(buffer)[3])


def _slices(fd: int, *, sync: bool, start: int = 0) -> Iterator[list[tuple[int, int, int, int]]]:
    buffer = ctypes.create_string_buffer(_HEADER.size + _SLICE * _EXTENT.size)
    flags = _SYNC if sync else 0
    while start < _WHOLE:
        _HEADER.pack_into(buffer, 0, start, _WHOLE - start, flags, 0, _SLICE, 0)
        syscalls.ioctl("FIEMAP", fd, _FS_IOC_FIEMAP, buffer)
        mapped = int(_HEADER.unpack_from(buffer)[3])
        if not mapped:
            return
        end = _HEADER.size + mapped * _EXTENT.size
        found = list(_EXTENT.iter_unpack(memoryview(buffer)[_HEADER.size : end]))
        yield found
        logical, _, length, last = found[-1]
        if last & LAST:
            return
        # Synced once: a second sync would make a busy file's walk as long as its writer likes.
        start, flags = logical + length, 0

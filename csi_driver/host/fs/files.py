"""Files in a pool: clones, space, and changes that survive a power cut."""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress

from csi_driver.host import syscalls
from csi_driver.host.errors import Busy

StrPath = str | os.PathLike[str]

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02

_FILE_SYSTEMS = {
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xEF53: "ext4",  # ext2 and ext3 answer with the same number
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
}


def reflink(src_fd: int, dst_fd: int) -> None:
    """Make the file `dst_fd` share all data of `src_fd` (FICLONE): one point in time.

    Takes 5-50 us an extent, by the machine, at any size; writers of the source wait meanwhile. Raises OSError: EOPNOTSUPP or EINVAL
    where the file system cannot, EXDEV, ENOSPC, EIO.
    """
    # An int argument, unlike a large buffer, lets fcntl.ioctl release the interpreter's lock.
    fcntl.ioctl(dst_fd, FICLONE, src_fd)


def reflink_range(src_fd: int, dst_fd: int, offset: int, length: int) -> None:
    """Share `length` bytes at `offset` of `src_fd` with `dst_fd` at the same offset.

    Both are multiples of 4096; length 0 means up to the end. Raises OSError as `reflink`, and EINVAL for an unaligned
    range.
    """
    fcntl.ioctl(dst_fd, FICLONERANGE, struct.pack("=qQQQ", src_fd, offset, length, offset))


def supports_reflink(directory: StrPath) -> bool:
    """Tell whether files in `directory` can share data, by trying it with two nameless files of 4096 bytes.

    Raises OSError where even a plain file cannot be written there: that says nothing about reflink.
    """
    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        source.write(b"\1" * 4096)
        source.flush()
        try:
            reflink(source.fileno(), target.fileno())
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV):
                return False
            raise
        return target.read() == b"\1" * 4096


def file_system_type(path: StrPath) -> str:
    """Name the file system that holds `path`: xfs, btrfs, ext4 (any ext), ..., or its magic number in hex."""
    buffer = ctypes.create_string_buffer(512)
    syscalls.call(f"statfs {os.fspath(path)}", "statfs", os.fsencode(path), ctypes.addressof(buffer))
    magic: int = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    return _FILE_SYSTEMS.get(magic, hex(magic))


def fsync_directory(path: StrPath) -> None:
    """Make what was created, renamed or removed in the directory `path` durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def draft(name: str) -> str:
    """Tell how the names begin of the files that a crash of `write_durably` may leave where `name` was to be written."""
    return f".{name}."


def write_durably(path: StrPath, data: bytes, mode: int = 0o600) -> None:
    """Replace the file `path` by `data` in one step.

    After a power cut it is the old one or the new one, once this has returned the new one. Raises OSError; then the old
    file is untouched, unless only the last fsync failed: then either may be found.
    """
    _replace(path, data, mode, os.fsync)
    fsync_directory(os.path.dirname(os.fspath(path)) or ".")


def write_atomically(path: StrPath, data: bytes, mode: int = 0o600) -> None:
    """Replace the file `path` by `data` in one step, for every process of this boot. A power cut may lose it. Raises OSError."""
    _replace(path, data, mode, lambda _: None)


def _replace(path: StrPath, data: bytes, mode: int, sync: Callable[[int], None]) -> None:
    target = os.fspath(path)
    directory, name = os.path.split(target)
    fd, temporary = tempfile.mkstemp(prefix=draft(name), dir=directory or ".")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            sync(file.fileno())
        os.rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def read_small(path: StrPath, limit: int = 1 << 20) -> bytes:
    """Read the whole regular file `path`. Raises OSError: ELOOP for a link, EFBIG past `limit` bytes, EINVAL."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"{os.fspath(path)} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"{os.fspath(path)} is larger than {limit} bytes")
    return data


def rename_exchange(a: StrPath, b: StrPath) -> None:
    """Exchange two names, of directories too, in one step. Durable after an fsync of both parents. Raises OSError."""
    _rename(a, b, _RENAME_EXCHANGE)


def rename_new(a: StrPath, b: StrPath) -> None:
    """Rename `a` to `b`, which must not exist (OSError EEXIST). Durable after an fsync of both parents."""
    _rename(a, b, _RENAME_NOREPLACE)


def _rename(a: StrPath, b: StrPath, flags: int) -> None:
    what = f"renameat2 {os.fspath(a)} {os.fspath(b)}"
    syscalls.call(what, "renameat2", syscalls.AT_FDCWD, os.fsencode(a), syscalls.AT_FDCWD, os.fsencode(b), flags)


def has_data(fd: int) -> bool:
    """Tell whether anything was ever written in the file.

    Holes, and space that was allocated but never written (fallocate), are not data. Data written by direct I/O counts
    at once. Raises OSError; an error is never an answer of "no data".
    """
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    else:
        return True
    finally:
        os.lseek(fd, position, os.SEEK_SET)


def punch_all(fd: int) -> None:
    """Erase the file: its space is given back, also past its end, it keeps its size and reads as zeroes."""
    size = os.fstat(fd).st_size
    if size:
        syscalls.call("fallocate, punch", "fallocate", fd, _PUNCH_HOLE | _KEEP_SIZE, 0, size)
    os.ftruncate(fd, size)  # drops what was allocated past the end


def syncfs(fd: int) -> None:
    """Write back the whole file system that `fd` is on. Raises OSError, also for writes that failed before."""
    syscalls.call("syncfs", "syncfs", fd)


def lock_pool(path: StrPath) -> int:
    """Lock `path`, a directory or a lock file (made if missing), and return the descriptor that holds the lock.

    The lock ends when every copy of the descriptor is closed: it is closed by exec, and a process forked without exec
    has to close it itself, or a hung child would keep the pool locked. The file is never unlinked: two holders would be
    possible. Raises Busy at once where somebody else holds it, OSError otherwise.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy(f"{os.fspath(path)} is locked by another process") from None
    except BaseException:
        os.close(fd)
        raise
    return fd

"""File systems on volumes: what makes, mounts, grows and recognises them. The profiles are pinned here only.

Pinned, because the tools in an image are often newer than the node's kernel and turn on features that it cannot mount:
all that is made here mounts on kernels from 5.15. No profile forces. Yet only mkfs.xfs refuses a device that holds a
file system; mke2fs, with no terminal, writes over it, and its profile relies on zeroes. That an image is blank must be
known from its file (files.has_data).
"""

import ctypes
import errno
import mmap
import os
import re
import stat
import struct
from functools import cache

from csi_driver.host import commands, syscalls
from csi_driver.host.commands import missing_tools, run
from csi_driver.host.errors import CommandError, Unsupported
from csi_driver.host.fs.mounts import bind, mount, umount

__all__ = [
    "FS_TYPES", "CommandError", "bind", "grow_argv", "missing_tools", "mkfs_argv", "mount", "mount_options",
    "pool_mkfs_argv", "probe", "run", "size_of_file_system", "umount",
]  # fmt: skip

StrPath = str | os.PathLike[str]

FS_TYPES = ("ext4", "xfs")
POOL_LABEL = "tidemark"
_XFS_FEATURES = "crc=1,finobt=1,inobtcount=1,reflink=1,bigtime=1,rmapbt=0"
# Features of mkfs.xfs newer than 6.1, on by default in some release: off, where it knows them. {option: words}
_XFS_NEWER = {"-m": ("autofsck", "metadir"), "-i": ("nrext64", "exchange"), "-n": ("parent",)}
_EXT4_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_XFS_IOC_FSGEOMETRY_V1 = 0x80705864
_XFS_FSOP_GEOM_FLAGS_REFLINK = 1 << 20
_EXT4_ONLY_INCOMPAT = 0x40 | 0x80 | 0x200  # extents, 64bit, flex_bg


def mkfs_argv(fs_type: str, device: StrPath) -> tuple[str, ...]:
    """Build the command that makes an ext4 or xfs on the block device, which must read as zeroes throughout.

    4096-byte sectors and blocks at any size: the device's. No discard: there is nothing to give back, and a thick
    image's space would go. Raises Unsupported for another type, CommandError where the tool cannot be asked what it
    knows.
    """
    if fs_type == "xfs":
        return ("mkfs.xfs", *_xfs_profile(), os.fspath(device))
    if fs_type == "ext4":
        return ("mkfs.ext4", *_ext4_profile(), os.fspath(device))
    raise Unsupported(errno.EOPNOTSUPP, f"no profile for {fs_type!r}: only {' and '.join(FS_TYPES)} are made")


def pool_mkfs_argv(device: StrPath) -> tuple[str, ...]:
    """Build the command that makes a pool's own XFS, on a block device or a blank image file, labelled `tidemark`.

    Without discard too: an image that was allocated in full stays so. A device that held a file system before is
    refused.
    """
    return ("mkfs.xfs", *_xfs_profile(), "-L", POOL_LABEL, os.fspath(device))


def _xfs_profile() -> tuple[str, ...]:
    words = {"-m": [_XFS_FEATURES], "-i": ["sparse=1"], "-n": ["ftype=1"]}
    for option, newer in _XFS_NEWER.items():
        words[option] += [f"{word}=0" for word in newer if re.search(rf"\b{word}=", _usage_of_mkfs_xfs())]
    features = tuple(text for option, values in words.items() for text in (option, ",".join(values)))
    # The sector size is said, since on an image file mkfs.xfs would take 512, which a device of 4096-byte blocks cannot
    # mount.
    return ("-q", "-K", "-b", "size=4096", "-s", "size=4096", *features)


@cache
def _usage_of_mkfs_xfs() -> str:
    try:
        return run(("mkfs.xfs",), 10)
    except CommandError as error:
        if error.rc != 1 or "Usage" not in error.err:
            raise
        return error.err


def _ext4_profile() -> tuple[str, ...]:
    # The device reads as zeroes, so inode tables and journal need no writing of zeroes: not now, and not by the
    # kernel's ext4lazyinit after the first mount. Measured for 100 GiB: 18 ms and 5 MiB of the pool taken; with
    # lazy_itable_init=0 74 ms and 2.1 GiB. Before 1.47 mke2fs cannot be told, and the kernel's thread is the lesser
    # evil.
    lazy = "assume_storage_prezeroed=1" if _version_of_mke2fs() >= (1, 47) else "lazy_itable_init=1,lazy_journal_init=1"
    sizes = ("-b", "4096", "-I", "256", "-i", "16384", "-m", "0")
    # remount-ro: the default, `continue`, goes on writing to a file system known to be damaged.
    return ("-q", "-t", "ext4", "-O", _EXT4_FEATURES, *sizes, "-e", "remount-ro", "-E", f"nodiscard,{lazy}")


@cache
def _version_of_mke2fs() -> tuple[int, int]:
    match = re.search(r"mke2fs (\d+)\.(\d+)", commands.run_both(("mkfs.ext4", "-V"), 10)[1])
    return (int(match[1]), int(match[2])) if match else (0, 0)


def mount_options(fs_type: str) -> tuple[str, ...]:
    """Give the options that every mount of the type needs. xfs: nouuid, since a clone has the UUID of its origin."""
    return ("nouuid",) if fs_type == "xfs" else ()


def grow_argv(fs_type: str, device: StrPath, point: StrPath) -> tuple[str, ...]:
    """Build the command that grows the mounted file system to its device's size, or does nothing.

    Growing a mounted ext4 takes CAP_SYS_RESOURCE. Raises Unsupported for another type.
    """
    if fs_type == "xfs":
        return ("xfs_growfs", "-d", os.fspath(point))
    if fs_type == "ext4":
        return ("resize2fs", os.fspath(device))
    raise Unsupported(errno.EOPNOTSUPP, f"cannot grow {fs_type!r}")


def size_of_file_system(path: StrPath) -> int:
    """Tell how many bytes of its device the ext4 or xfs file system takes: less than the device, and it can be grown.

    `path`: a device, an image, or the mount point of an xfs. On the device of a mounted xfs the answer may be that of
    before the last grow until the log is written back. Raises Unsupported where there is neither, OSError.
    """
    if stat.S_ISDIR(os.stat(path).st_mode):
        return _size_of_mounted_xfs(path)
    head = _read(path, 0, 4096)
    if head[:4] == b"XFSB":
        block, blocks = struct.unpack_from(">IQ", head, 4)
        return int(block * blocks)
    if _is_ext(head):
        count, shift = struct.unpack_from("<I16xI", head, 1024 + 4)
        (incompat,) = struct.unpack_from("<I", head, 1024 + 96)
        high = struct.unpack_from("<I", head, 1024 + 336)[0] if incompat & 0x80 else 0
        return int((high << 32 | count) * (1024 << shift))
    raise Unsupported(errno.EINVAL, f"{os.fspath(path)} holds neither ext4 nor xfs")


def _size_of_mounted_xfs(point: StrPath) -> int:
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        geometry = ctypes.create_string_buffer(112)
        syscalls.ioctl(f"size of the xfs at {os.fspath(point)}", fd, _XFS_IOC_FSGEOMETRY_V1, geometry)
    finally:
        os.close(fd)
    block, blocks = struct.unpack_from("=I28xQ", geometry)
    return int(block * blocks)


def xfs_has_reflink(directory: StrPath) -> bool:
    """Tell whether files on a mounted XFS can share blocks, by its features alone: nothing is written. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        geometry = ctypes.create_string_buffer(112)
        syscalls.ioctl(f"features of the xfs at {os.fspath(directory)}", fd, _XFS_IOC_FSGEOMETRY_V1, geometry)
    finally:
        os.close(fd)
    (flags,) = struct.unpack_from("=I", geometry, 92)
    return bool(flags & _XFS_FSOP_GEOM_FLAGS_REFLINK)


def probe(path: StrPath) -> str:
    """Name what is on a device or image by its magic bytes; '' where none is known: no proof that it is empty.

    ext2, ext3, ext4, xfs, btrfs, crypto_LUKS, swap, LVM2_member, gpt, dos (any boot sector). Raises OSError.
    """
    head = _read(path, 0, 128 * 1024)
    magics = (
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe", "crypto_LUKS"),
        (65536 + 64, b"_BHRfS_M", "btrfs"),
        (4096 - 10, b"SWAPSPACE2", "swap"),
        (512 + 24, b"LVM2 001", "LVM2_member"),
        (512, b"EFI PART", "gpt"),
        (4096, b"EFI PART", "gpt"),
    )
    if _is_ext(head) and head[:4] != b"XFSB":
        compat, incompat = struct.unpack_from("<II", head, 1024 + 92)
        return "ext4" if incompat & _EXT4_ONLY_INCOMPAT else "ext3" if compat & 4 else "ext2"
    found = next((name for offset, magic, name in magics if head[offset : offset + len(magic)] == magic), "")
    return found or ("dos" if head[510:512] == b"\x55\xaa" else "")


def _is_ext(head: bytes) -> bool:
    return head[1080:1082] == b"\x53\xef"


def _read(path: StrPath, offset: int, length: int) -> bytes:
    # Of a device directly: its page cache may hold what was there before the file system wrote past it.
    direct = os.O_DIRECT if stat.S_ISBLK(os.stat(path).st_mode) else 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | direct)
    try:
        with mmap.mmap(-1, length) as buffer:
            got = os.preadv(fd, [buffer], offset)
            return buffer[:got]
    finally:
        os.close(fd)

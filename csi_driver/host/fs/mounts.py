"""mount(2) and its successors, not mount(8).

Why: the words of a user's mount options then reach nothing but the file system and the table below, while mount(8) also
knows `loop`, `helper=`, `X-mount.owner=` and fstab; errors come as an errno, not as prose; and no second process can
get stuck.
"""

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from csi_driver.domain.mount_flags import removed_flags
from csi_driver.host import syscalls

StrPath = str | os.PathLike[str]

_RDONLY = 1
_FLAGS = {  # word: (bits to set, bits to clear), as in linux/mount.h
    "defaults": (0, 0),
    "ro": (_RDONLY, 0),
    "rw": (0, _RDONLY),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "sync": (16, 0),
    "async": (0, 16),
    "mand": (64, 0),  # ignored by kernels from 5.15 on; as a word ext4 takes it from 5.17 on only
    "nomand": (0, 64),
    "dirsync": (128, 0),
    "nosymfollow": (256, 0),
    "noatime": (1 << 10, 0),
    "atime": (0, 1 << 10),
    "nodiratime": (1 << 11, 0),
    "diratime": (0, 1 << 11),
    "relatime": (1 << 21, 0),
    "strictatime": (1 << 24, 0),
    "lazytime": (1 << 25, 0),
    "nolazytime": (0, 1 << 25),
}
_REFUSED = frozenset(("remount", "bind", "rbind", "move", "shared", "slave", "private", "unbindable"))
_UMOUNT_NOFOLLOW = 8
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
_OPEN_TREE_CLONE, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 1, 0x100, 0x1000
_FSOPEN, _FSCONFIG = 430, 431
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
# Whatever is in a log stays there: it is only to be told whether there is a file system.
_ONLY_LOOK = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid")}
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1


def split_options(options: Iterable[str]) -> tuple[int, str]:
    """Part mount options into the kernel's flags and what is left for the file system.

    An option may hold several, with commas. A later word wins. Raises ValueError for a word that would make another
    operation of the mount, and for a NUL.
    """
    flags, rest = 0, []
    for option in (part for text in options for part in text.split(",") if part):
        if option in _REFUSED or "\0" in option:
            raise ValueError(f"{option!r} is not an option for a file system")
        if option in _FLAGS:
            on, off = _FLAGS[option]
            flags = flags & ~off | on
        else:
            rest.append(option)
    return flags, ",".join(rest)


def mount(device: StrPath, point: StrPath, fs_type: str, options: Iterable[str] = ()) -> None:
    """Mount the file system on the block device at the directory `point`, which must not be a symbolic link.

    `options`: the user's words ("noatime", "commit=30") after those of `filesystems.mount_options`. Raises ValueError
    as `split_options`; OSError: EINVAL for an option that the file system does not know, which it then names, EUCLEAN for one
    that is damaged, also where the kernel said EINVAL, EBUSY, EROFS.
    """
    words = [*options]
    flags, data = split_options(words)
    what = f"mount {os.fspath(device)} at {os.fspath(point)} as {fs_type} with {','.join(words) or 'no options'}"
    with _pinned(point, os.O_DIRECTORY) as target:
        try:
            syscalls.call(what, "mount", os.fsencode(device), target, fs_type.encode(), flags, os.fsencode(data))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            given = [option for option in re.findall(r'(?:[^,"]|"[^"]*")+', data) if option]
            unknown = next((option for option in given if not _takes(fs_type, option)), "")
            if not unknown and not _can_be_opened(device, fs_type):
                raise OSError(errno.EUCLEAN, f"{error.strerror}; without any option it is refused too") from error
            culprit = unknown or next(iter(removed_flags(given, fs_type)), "")
            raise OSError(error.errno, f"{error.strerror}; {_refused(fs_type, culprit, given)}") from error


def _refused(fs_type: str, culprit: str, given: Sequence[str]) -> str:
    """Say which option a mount was refused for, where that can be told: EINVAL names none."""
    if culprit:
        return (
            f"{fs_type} on this kernel refuses the mount option {culprit.partition('=')[0]!r}: take it out of the mount options, "
            "in Kubernetes of the StorageClass and of the PersistentVolume"
        )
    names = ", ".join(option.partition("=")[0] for option in given)
    return f"{fs_type} refuses one of its options ({names}) or two together: see the node's kernel log"


def _can_be_opened(device: StrPath, fs_type: str) -> bool:
    """Whether a device holds such a file system at all: opened read-only and let go, attached nowhere."""
    words = [(_FSCONFIG_SET_FLAG, word.encode(), 0) for word in ("ro", *_ONLY_LOOK.get(fs_type, ()))]
    source = (_FSCONFIG_SET_STRING, b"source", os.fsencode(device))
    refused = _configured(fs_type, source, *words, (_FSCONFIG_CMD_CREATE, 0, 0))
    return refused not in {errno.EINVAL, errno.EUCLEAN, errno.EBADMSG}


def _takes(fs_type: str, option: str) -> bool:
    """Whether a file system knows an option, asked without a device. True where it does not say: ext4 looks before 5.17 at
    the mount only.
    """
    name, equals, value = option.partition("=")
    how = _FSCONFIG_SET_STRING if equals else _FSCONFIG_SET_FLAG
    return (
        _configured(fs_type, (how, os.fsencode(name), os.fsencode(value.strip('"')) if equals else 0)) != errno.EINVAL
    )


def _configured(fs_type: str, *steps: tuple[int, bytes | int, bytes | int]) -> int:
    """Take the steps of a mount (fsconfig's command, key and value) that is never attached. The errno of the first that is refused, else 0."""
    try:
        context = syscalls.syscall("fsopen", _FSOPEN, fs_type.encode(), _FSOPEN_CLOEXEC)
    except OSError:  # a kernel without it does not say
        return 0
    try:
        for step in steps:
            syscalls.syscall("fsconfig", _FSCONFIG, context, *step, 0)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(context)
    return 0


def bind(source: StrPath, target: StrPath, read_only: bool) -> None:
    """Show `source`, a directory or a device node, at `target`, a directory or a file. Neither may be a link.

    Read-only is set before the mount is attached. `mount --bind` and a remount reach only our own namespace: of the
    copy that propagated to the kubelet's, the one that pods see, the remount takes nothing (measured: it stayed
    writable). For a device node read-only means nothing: see `device.set_read_only`. Raises OSError, with nothing
    mounted.
    """
    what = f"bind {os.fspath(source)} at {os.fspath(target)}"
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW
    tree = syscalls.syscall(what, _OPEN_TREE, syscalls.AT_FDCWD, os.fsencode(source), flags)
    try:
        if read_only:
            attributes = ctypes.create_string_buffer(_MOUNT_ATTR_RDONLY.to_bytes(8, sys.byteorder), 32)
            address = ctypes.addressof(attributes)
            syscalls.syscall(f"{what}, read-only", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, address, 32)
        syscalls.syscall(what, _MOVE_MOUNT, tree, b"", syscalls.AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def umount(point: StrPath) -> None:
    """Unmount the topmost mount at `point`; never lazily: a hidden file system still writes to its device.

    Raises OSError: EBUSY in use, EINVAL or ENOENT where nothing is mounted there.
    """
    syscalls.call(f"umount {os.fspath(point)}", "umount2", os.fsencode(point), _UMOUNT_NOFOLLOW)


@contextmanager
def _pinned(point: StrPath, flags: int) -> Iterator[bytes]:
    """Name `point` by a descriptor, so that the kernel mounts exactly there, and follows no link put in its place."""
    fd = os.open(point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    try:
        yield f"/proc/self/fd/{fd}".encode()
    finally:
        os.close(fd)

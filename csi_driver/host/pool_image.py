"""The image that holds a pool: a file with XFS in it, on a loop device, mounted. Run in children; what exists is never formatted."""

import errno
import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from csi_driver.host import container, files, filesystems, loop, mountinfo
from csi_driver.host.errors import HostError, Mismatch

_MKFS_SECONDS = 110.0
KEEP_FREE = 0.15
"""Of the host's file system: a kubelet calls a node short of space, and evicts pods, from 10 to 15 % on."""


def make_pool_image(path: str, size: int, sparse: bool, token: str) -> None:
    """Make a file of `size` bytes with XFS in it: formatted through its loop device, under another name, renamed when done.

    Where another agent has made it in the meantime, nothing is done. Raises CommandError; OSError ENOSPC, also where an
    image that is allocated in full would leave its host too little. Nothing is left behind then.
    """
    with _alone(path):
        # Nobody else is at work here, so each draft is what a crash has left.
        for leftover in glob.glob(glob.escape(path) + ".new-" + "[0-9a-f]" * len(token)):
            _discard(leftover)
        if os.path.lexists(path):
            return
        if not sparse:
            _spare_host(os.path.dirname(path), size)
        _make(path, f"{path}.new-{token}", size, sparse)


def check_pool_place(path: str, point: str) -> None:
    """Raise HostError where an image at `path`, or its mount at `point`, would not outlive this container."""
    if why := container.why_lost(os.path.dirname(path)) or container.why_unseen(os.path.dirname(point)):
        raise HostError(errno.EINVAL, why)


def mount_pool_image(path: str, point: str) -> dict[str, Any]:
    """Attach a pool's image (adopting the device that it has) and mount it at `point`, unless it is there already.

    Never formats. Raises OSError: what lies there is damaged or not a pool's XFS; Mismatch: something else is mounted.
    """
    with _alone(path):
        return _mount(path, point)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """One child at a time makes or mounts the images of a directory: of two agents, the second finds what the first made.

    The kernel lets go of the lock when its holder dies; who waits for ever is killed by its own time limit.
    """
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(path: str, temporary: str, size: int, sparse: bool) -> None:
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(fd, size)
        if not sparse:
            files.allocate(fd, size)
        os.fsync(fd)
        device = loop.attach(temporary)
        try:
            filesystems.run(filesystems.pool_mkfs_argv(device.path), _MKFS_SECONDS)
            loop.sync(device)
        finally:
            loop.detach(device)
        os.fsync(fd)
        files.rename_new(temporary, path)
        files.fsync_directory(os.path.dirname(path))
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _mount(path: str, point: str) -> dict[str, Any]:
    device = loop.find(path, os.path.basename(path))
    fresh = device is None
    if device is None:
        if filesystems.probe(path) != "xfs":
            raise Mismatch(errno.EINVAL, f"{path} does not hold an XFS: it is not formatted; name another file")
        device = loop.attach(path)
    try:
        if fresh:
            loop.tune(device)
        present = mountinfo.at(point)
        if present is not None and (present.major, present.minor) != (device.major, device.minor):
            raise Mismatch(errno.EBUSY, f"{point} is taken by a mount of {present.source}")
        if present is None:
            os.makedirs(point, mode=0o700, exist_ok=True)
            filesystems.mount(device.path, point, "xfs", ["noatime"])
    except BaseException:
        if fresh:
            loop.detach(device)
        raise
    return {"path": device.path}


def _spare_host(directory: str, size: int) -> None:
    host = os.statvfs(directory)
    total, free = host.f_blocks * host.f_frsize, host.f_bavail * host.f_frsize
    keep = int(total * KEEP_FREE)
    if free - size < keep:
        raise HostError(
            errno.EFBIG,
            f"{size >> 20} MiB of {free >> 20} MiB that are free would leave less than {KEEP_FREE:.0%} of the file system of "
            f"{directory} ({keep >> 20} MiB of {total >> 20} MiB): ask for --pool-size {max(0, free - keep) >> 20}Mi or less, "
            "or give the pool a disk of its own",
        )


def _discard(leftover: str) -> None:
    """Remove what a crash left of a making: it never had the image's name, so nothing of anybody's is in it."""
    device = loop.find(leftover, os.path.basename(leftover))
    if device:
        loop.detach(device)
    os.unlink(leftover)

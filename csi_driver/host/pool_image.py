"""The image that holds a pool: a file with XFS in it, on a loop device, mounted. Run in children; what exists is never formatted.

Nothing here is remembered: what a step that was interrupted left is seen in the file, its device and the mounted XFS themselves.
"""

import errno
import fcntl
import glob
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from csi_driver.host import container_mounts
from csi_driver.host.block import loop
from csi_driver.host.errors import HostError, Mismatch
from csi_driver.host.fs import allocation, files, filesystems, mountinfo, mounts

_MKFS_SECONDS = 110.0
_GROW_SECONDS = 110.0
KEEP_FREE = 0.15
"""Of the host's file system: a kubelet calls a node short of space, and evicts pods, from 10 to 15 % on."""


def make_pool_image(path: str, size: int, sparse: bool, token: str) -> bool:
    """Make a file of `size` bytes with XFS in it: formatted through its loop device, under another name, renamed when done.

    Returns False where another agent has made it in the meantime. Raises CommandError; OSError ENOSPC, also where an
    image that is allocated in full would leave its host too little. Nothing is left behind then.
    """
    with _alone(path):
        _discard_drafts(path, token)
        if os.path.lexists(path):
            return False
        if not sparse:
            _spare_host(os.path.dirname(path), size, size)
        _make(path, f"{path}.new-{token}", size, sparse)
        return True


def discard_pool_drafts(path: str, token: str) -> None:
    """Remove what a making that was killed left, with its device: it may be allocated in full."""
    with _alone(path):
        _discard_drafts(path, token)


def remove_pool_image(path: str, point: str, empty: Collection[str]) -> bool:
    """Unmount, detach and remove an image that was made and could not be used; returns whether it is gone.

    Left where it holds a file that is not called as one of `empty`. Raises Busy, OSError where somebody uses it.
    """
    with _alone(path):
        device = loop.find(path)
        if device is not None:
            present = mountinfo.at(point)
            if present is not None and (present.major, present.minor) == (device.major, device.minor):
                if any(set(names) - set(empty) for _, _, names in os.walk(point, onerror=_raise)):
                    return False
                mounts.umount(point)
            loop.detach(device)
        os.unlink(path)
        return True


def grow_pool_image(path: str, point: str, size: int, sparse: bool) -> int:
    """Give the image whose pool is mounted at `point` at least `size` bytes: the file, its loop device, the XFS in it.

    Volumes may be in use. Each step is found done, or is done again, after a crash; what fails before the file is longer gives back
    what it took. Returns the file's size. Raises OSError ENOSPC, EFBIG where its host would keep too little; CommandError.
    """
    with _alone(path):
        device = loop.find(path)
        if device is None:
            raise Mismatch(errno.ENXIO, f"{path} is not attached any more")
        size = _lengthen(path, size, sparse)
        if loop.size(device) < size:
            loop.resize(device)
        # Too few blocks for an allocation group cannot be added: the tool knows, and does nothing then.
        if loop.size(device) - filesystems.size_of_file_system(point) >= loop.BLOCK_SIZE:
            filesystems.run(filesystems.grow_argv("xfs", device.path, point), _GROW_SECONDS)
        return size


def _lengthen(path: str, size: int, sparse: bool) -> int:
    """Make the file as long, by one step, once its space is there; returns its size."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        before = os.fstat(fd).st_size
        if before >= size:
            return before
        try:
            if not sparse:
                # A crash may have left some of it, past the end of the file.
                _spare_host(os.path.dirname(path), size, allocation.missing(fd, size, before))
                allocation.fill(fd, size, before)
            os.ftruncate(fd, size)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(fd, before)  # gives back what was allocated past the end
            raise
        os.fsync(fd)
        return size
    finally:
        os.close(fd)


def check_pool_place(path: str, point: str) -> None:
    """Raise HostError where an image at `path`, or its mount at `point`, would not outlive this container."""
    if why := container_mounts.non_persistent_reason(os.path.dirname(path)) or container_mounts.not_propagated_reason(
        os.path.dirname(point)
    ):
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
            allocation.fill(fd, size)
        os.fsync(fd)
        device = loop.attach(temporary)
        try:
            filesystems.run(filesystems.pool_mkfs_argv(device.path), _MKFS_SECONDS)
            with loop.opened(device) as opened:
                opened.flush()
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
    device = loop.find(path)
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


def _spare_host(directory: str, size: int, needed: int) -> None:
    """Refuse an image of `size` bytes, of which `needed` are to be taken, that would leave its host too little."""
    host = os.statvfs(directory)
    total, free = host.f_blocks * host.f_frsize, host.f_bavail * host.f_frsize
    keep = int(total * KEEP_FREE)
    if free - needed < keep:
        possible = size - needed + max(0, free - keep)
        raise HostError(
            errno.EFBIG,
            f"{needed >> 20} MiB of {free >> 20} MiB that are free would leave less than {KEEP_FREE:.0%} of the file system of "
            f"{directory} ({keep >> 20} MiB of {total >> 20} MiB): ask for --pool-size {possible >> 20}Mi or less, "
            "or give the pool a disk of its own",
        )


def _raise(error: OSError) -> None:
    raise error


def _discard_drafts(path: str, token: str) -> None:
    # Nobody else is at work here, so each draft is what a crash has left.
    for leftover in glob.glob(glob.escape(path) + ".new-" + "[0-9a-f]" * len(token)):
        _discard(leftover)


def _discard(leftover: str) -> None:
    """Remove what a crash left of a making: it never had the image's name, so nothing of anybody's is in it."""
    device = loop.find(leftover)
    if device:
        loop.detach(device)
    os.unlink(leftover)

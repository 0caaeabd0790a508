"""The image of a pool: a file with XFS in it, on a loop device, mounted. Runs in helpers; never formats an existing file.

Nothing is noted elsewhere: the file, its device and the mounted XFS themselves show what an interrupted step has left.
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
from csi_driver.host.errors import HostError, Mismatch, Unsupported
from csi_driver.host.fs import allocation, files, filesystems, mountinfo, mounts

_MKFS_SECONDS = 110.0
_GROW_SECONDS = 110.0
KEEP_FREE = 0.15
"""Share of the host's file system: below 10 to 15 % a kubelet reports disk pressure and evicts pods."""


def make_pool_image(path: str, size: int, sparse: bool, token: str) -> bool:
    """Make a file of `size` bytes with XFS in it, under another name that is formatted through its loop device and renamed.

    Returns False if another agent has made it in the meantime. Raises CommandError; OSError ENOSPC, also if an image that
    is allocated in full would leave its host too little. Then nothing is left behind.
    """
    with _locked(path):
        _discard_drafts(path, token)
        if os.path.lexists(path):
            return False
        if not sparse:
            _check_host_space(os.path.dirname(path), size, size)
        _make(path, f"{path}.new-{token}", size, sparse)
        return True


def discard_pool_drafts(path: str, token: str) -> None:
    """Remove the draft of an image, with its device, whose maker was killed: it may be allocated in full."""
    with _locked(path):
        _discard_drafts(path, token)


def remove_pool_image(path: str, point: str, empty: Collection[str]) -> bool:
    """Unmount, detach and remove an image that was made and could not be used. Returns whether it is gone.

    Keeps it if it holds a file whose name is not in `empty`. Raises Busy, OSError if it is in use.
    """
    with _locked(path):
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
    """Grow the image whose pool is mounted at `point` to at least `size` bytes: the file, its loop device, the XFS in it.

    Volumes may be in use. After a crash each step is found done, or is done again; a failure before the file is longer frees
    what was allocated. Returns the file's size. Raises OSError ENOSPC, EFBIG if its host would keep too little; CommandError.
    """
    with _locked(path):
        device = loop.find(path)
        if device is None:
            raise Mismatch(errno.ENXIO, f"{path} is no longer attached")
        size = _lengthen(path, size, sparse)
        if loop.size(device) < size:
            loop.resize(device)
        # Too few blocks for an allocation group cannot be added: the tool knows, and does nothing then.
        if loop.size(device) - filesystems.size_of_file_system(point) >= loop.BLOCK_SIZE:
            filesystems.run(filesystems.grow_argv("xfs", device.path, point), _GROW_SECONDS)
        return size


def _lengthen(path: str, size: int, sparse: bool) -> int:
    """Lengthen the file in one step, once its space is allocated. Returns its size."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        before = os.fstat(fd).st_size
        if before >= size:
            return before
        try:
            if not sparse:
                # A crash may have left some of it, past the end of the file.
                _check_host_space(os.path.dirname(path), size, allocation.missing(fd, size, before))
                allocation.fill(fd, size, before)
            os.ftruncate(fd, size)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(fd, before)  # frees what was allocated past the end
            raise
        os.fsync(fd)
        return size
    finally:
        os.close(fd)


def check_pool_place(path: str, point: str) -> None:
    """Raise HostError if an image at `path`, or its mount at `point`, would not outlive this container."""
    if why := container_mounts.non_persistent_reason(os.path.dirname(path)) or container_mounts.not_propagated_reason(
        os.path.dirname(point)
    ):
        raise HostError(errno.EINVAL, why)


def mount_pool_image(path: str, point: str, sparse: bool) -> dict[str, Any]:
    """Attach a pool's image (or adopt the device that it has) and mount it at `point`, unless it is mounted there.

    One that is not `sparse` refuses discard from here on: fstrim at its mount gave 336 of 400 MiB back to the host, which
    then had less for the pool than the pool counts on. Never formats. Returns the device's path, and whether it `keeps` its
    space. Raises OSError if the image is damaged or not a pool's XFS, Mismatch if something else is mounted there.
    """
    with _locked(path):
        return _mount(path, point, sparse)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Lock the directory: of two agents that make or mount its images, the second finds what the first made.

    The kernel releases the lock when its holder dies; a helper that waits too long is killed at its deadline.
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


def _mount(path: str, point: str, sparse: bool) -> dict[str, Any]:
    device = loop.find(path)
    fresh = device is None
    if device is None:
        if filesystems.probe(path) != "xfs":
            raise Mismatch(errno.EINVAL, f"{path} does not hold an XFS: it is not formatted; name another file")
        device = loop.attach(path)
    try:
        if fresh:
            loop.tune(device)
        keeps = not sparse and _refuses_discard(device)
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
    return {"path": device.path, "keeps": keeps}


def _refuses_discard(device: loop.LoopDevice) -> bool:
    """Have the device refuse discard. Returns whether it does: an old kernel is no reason to have no pool."""
    try:
        loop.refuse_discard(device)
    except Unsupported:
        return False
    return True


def _check_host_space(directory: str, size: int, needed: int) -> None:
    """Raise HostError EFBIG if an image of `size` bytes, `needed` of them not yet allocated, would leave its host too little."""
    host = os.statvfs(directory)
    total, free = host.f_blocks * host.f_frsize, host.f_bavail * host.f_frsize
    keep = int(total * KEEP_FREE)
    if free - needed < keep:
        possible = size - needed + max(0, free - keep)
        raise HostError(
            errno.EFBIG,
            f"{needed >> 20} MiB of {free >> 20} MiB free would leave less than {KEEP_FREE:.0%} of the file system of "
            f"{directory} ({keep >> 20} MiB of {total >> 20} MiB); use --pool-size {possible >> 20}Mi or less, "
            "or give the pool a disk of its own",
        )


def _raise(error: OSError) -> None:
    raise error


def _discard_drafts(path: str, token: str) -> None:
    # The directory is locked, so each draft is left over from a crash.
    for leftover in glob.glob(glob.escape(path) + ".new-" + "[0-9a-f]" * len(token)):
        _discard(leftover)


def _discard(leftover: str) -> None:
    """Remove a draft with its device. It never had the image's name, so it holds no user's data."""
    device = loop.find(leftover)
    if device:
        loop.detach(device)
    os.unlink(leftover)

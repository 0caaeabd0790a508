"""The image that holds a pool: a file with XFS in it, on a loop device, mounted. Run in children; what exists is never formatted."""

import errno
import glob
import os
from typing import Any

from csi_driver.host import files, filesystems, loop, mountinfo
from csi_driver.host.errors import Mismatch

_MKFS_SECONDS = 110.0


def make_pool_image(path: str, size: int, sparse: bool, token: str) -> None:
    """Make a file of `size` bytes with XFS in it: formatted through its loop device, under another name, renamed when done.

    Raises OSError EEXIST where `path` exists by now; CommandError; ENOSPC. Nothing is left behind then.
    """
    for leftover in glob.glob(glob.escape(path) + ".new-" + "[0-9a-f]" * len(token)):
        _discard(leftover)
    temporary = f"{path}.new-{token}"
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


def mount_pool_image(path: str, point: str) -> dict[str, Any]:
    """Attach a pool's image (adopting the device that it has) and mount it at `point`, unless it is there already.

    Never formats. Raises OSError: what lies there is damaged or not a pool's XFS; Mismatch: something else is mounted.
    """
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


def _discard(leftover: str) -> None:
    """Remove what a crash left of a making: it never had the image's name, so nothing of anybody's is in it."""
    device = loop.find(leftover, os.path.basename(leftover))
    if device:
        loop.detach(device)
    os.unlink(leftover)

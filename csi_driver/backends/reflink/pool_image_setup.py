"""A pool for a node without a disk to spare: an image file with XFS in it. Made once, found again, grown, never formatted twice."""

import logging
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from csi_driver.backends.reflink import pool_lock
from csi_driver.backends.volume_helpers import translate
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import DriverError, Precondition
from csi_driver.domain.sizes import round_up
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck

_LOG = logging.getLogger(__name__)

_MAKE_SECONDS = 600.0
"""A full allocation is quick on most file systems, and a write of every byte on some."""
_MOUNT_SECONDS = 120.0
_CHECK_SECONDS = 15.0
_REMOVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pool image that is mounted. `made`: at this start. `kept`: why it has not the size that was asked for; empty: it has."""

    made: bool = False
    kept: str = ""


async def prepare(
    helpers: HelperPool,
    path: str,
    size: int,
    sparse: bool,
    point: str,
    in_container: bool = False,
    keep_size: bool = False,
) -> Prepared:
    """Have the image at `path` mounted at `point`, with `size` bytes: made first where there is no such file, grown where it is smaller.

    `keep_size`: one that is there stays as large as it is. `in_container`: both must lie on mounts of the host, and an image that
    cannot have its size is served as it is: a node's pods need their disks. Raises Precondition: what lies there is not a pool's
    XFS, or damaged, or smaller than `size` allows, or there is no room for it. What was made for nothing is removed again.
    """
    if not os.path.isdir(os.path.dirname(path)):
        raise Precondition(
            f"--pool-image {path}: its directory does not exist: create it, or mount the disk that holds it"
        )
    size = round_up(size)  # whole blocks of the loop device
    if in_container:
        await _run(helpers, "check_pool_place", _CHECK_SECONDS, path, point=point)
    made = not os.path.lexists(path) and await _make(helpers, path, size, sparse)
    kept = "" if made or keep_size else _too_small(path, size)
    if kept and not in_container:
        raise Precondition(kept)
    # What nobody asked to be allocated in full may give its space back, unless it is.
    sparse_here = sparse or (keep_size and _has_holes(path))
    try:
        answer = await _run(helpers, "mount_pool_image", _MOUNT_SECONDS, path, point=point, sparse=sparse_here)
    except BaseException:
        if made:
            await remove(helpers, path, point)
        raise
    if not sparse_here and not answer["keeps"]:
        _LOG.warning("fstrim can take space from the pool of %s: leave its mount out of fstrim.timer", path)
    if not made and not keep_size and not kept:
        try:
            await _run(helpers, "grow_pool_image", _MAKE_SECONDS, path, "grow", point=point, size=size, sparse=sparse)
        except DriverError as error:
            if not in_container:
                raise
            kept = str(error)
    return Prepared(made, kept)


async def remove(helpers: HelperPool, path: str, point: str) -> None:
    """Take away an image that this start has made for nothing, as far as that can be done and nothing is in it."""
    with suppress(JobFailed, JobStuck):
        await helpers.run("remove_pool_image", _REMOVE_SECONDS, path=path, point=point, empty=pool_lock.NEW)


async def _make(helpers: HelperPool, path: str, size: int, sparse: bool) -> bool:
    token = secrets.token_hex(8)
    try:
        made = await _run(helpers, "make_pool_image", _MAKE_SECONDS, path, size=size, sparse=sparse, token=token)
    except BaseException:
        # A child that was killed, for its time or the agent's end, could not clean up.
        with suppress(JobFailed, JobStuck):
            await helpers.run("discard_pool_drafts", _REMOVE_SECONDS, path=path, token=token)
        raise
    return bool(made)


async def _run(helpers: HelperPool, job: str, seconds: float, path: str, cannot: str = "be used", **args: Any) -> Any:
    try:
        return await helpers.run(job, seconds, path=path, **args)
    except JobFailed as error:
        raise Precondition(
            f"--pool-image {path} cannot {cannot} ({translate(error)}): it was not formatted or changed"
        ) from error
    except JobStuck as error:
        raise Precondition(f"--pool-image {path} does not answer ({error}): look at the node's kernel log") from error


def _has_holes(path: str) -> bool:
    image = os.stat(path, follow_symlinks=False)
    return image.st_blocks * 512 < image.st_size


def _too_small(path: str, size: int) -> str:
    """Why an image cannot have `size` bytes, whatever there is room for; empty: it may be tried."""
    with suppress(OSError):  # whatever is wrong with it, the mount says
        there = os.stat(path, follow_symlinks=False).st_size
        if there > size:
            return (
                f"--pool-image {path} has {human(there)} and --pool-size asks for {human(size)}: a pool never "
                "shrinks; ask for at least what it has, or leave --pool-size out (in the chart: poolImage.size)"
            )
    return ""

"""Whose pool this is: `pool.json`, and the checks that keep a driver from serving, or making, the wrong one."""

import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

from csi_driver.backends.reflink.layout import Layout
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.host import container_mounts
from csi_driver.host.fs import files, mountinfo

FORMAT = 1
"""Of the directory's layout. A pool of another one is never opened: there is no step between two yet. Keys of pool.json that are
not known here are left as they are."""

NEW = ("pool.json", ".lock")
"""The only files of a pool in which nothing was ever made."""

_DRAFT = files.draft("pool.json")
_WAY_OUT = "; or let the driver make a pool for you: --pool-image FILE --pool-size 20G"


def acquire_pool(layout: Layout, owner: str, init: bool, in_container: bool = False) -> tuple[str, int]:
    """Check or make a pool and lock it; returns its uuid and the descriptor that holds the lock.

    `in_container`: a pool in what goes with the container is refused.

    Raises Unavailable where the disk seems to be away, Precondition where this directory is not to be served.
    """
    root = layout.root
    if not root.is_dir():
        raise Unavailable(f"pool {layout.name}: {root} is not a directory: mount the pool's disk there{_WAY_OUT}")
    if in_container and (why := container_mounts.non_persistent_reason(root)):
        raise Precondition(f"pool {layout.name}: {why}")
    if not layout.identity.exists() and not init:
        _reject_unmounted_disk(layout, in_container)
    _check_file_system(layout)
    if not layout.identity.exists():
        _make(layout, owner)
    lock = _lock(layout, layout.lock)
    try:
        return _check(layout, owner), lock
    except BaseException:
        os.close(lock)
        raise


def _check_file_system(layout: Layout) -> None:
    kind = files.file_system_type(layout.root)
    if kind == "btrfs":
        raise Precondition(
            f"pool {layout.name}: {layout.root} is on btrfs, which is refused for now: 4k random writes to an image are "
            "five to ten times slower there than on XFS, and snapshots of a single file cost as much as on XFS; use XFS"
            + _WAY_OUT
        )
    if kind != "xfs" or not _supports_reflink(layout):
        what = f"is on {kind}" if kind != "xfs" else "is on an XFS made without reflink"
        raise Precondition(
            f"pool {layout.name}: {layout.root} {what} and cannot share blocks between files: use a directory on XFS "
            f"(mkfs.xfs -m reflink=1){_WAY_OUT}"
        )


def _supports_reflink(layout: Layout) -> bool:
    try:
        return files.supports_reflink(layout.root)
    except OSError as error:
        # A pool that is full must be served, or nothing in it could be deleted; it was tried when the pool was made.
        if error.errno in {errno.ENOSPC, errno.EDQUOT} and layout.identity.exists():
            return True
        raise


def _reject_unmounted_disk(layout: Layout, in_container: bool) -> None:
    """A disk that failed to mount must not get a shadow pool in its empty mount point, whatever that lies on."""
    if not _has_own_disk(layout.root, in_container) and not _content(layout):
        raise Unavailable(
            f"pool {layout.name}: {layout.root} is empty and no mount point of its own: if its disk failed to mount, mount "
            f"it; if a new pool is wanted right there, say --pool-init (in the chart: poolInit){_WAY_OUT}"
        )


def _has_own_disk(root: Path, in_container: bool) -> bool:
    """Whether a disk is mounted right there. In a container each directory of the host is a mount point, of a part of its disk."""
    if not in_container:
        return os.path.ismount(root)
    mount = mountinfo.at(root.resolve())
    return mount is not None and mount.root == "/"


def _content(layout: Layout) -> list[str]:
    return [name for name in os.listdir(layout.root) if name != "lost+found" and not name.startswith(_DRAFT)]


def _make(layout: Layout, owner: str) -> None:
    # Of agents that start at once only one may make it, and what it reads of it must stay true. The directory is locked for
    # that, not a file in it: where no pool may be made, nothing is to be left.
    lock = _lock(layout, layout.root)
    try:
        if layout.identity.exists():
            return
        if others := _content(layout):
            raise Precondition(
                f"pool {layout.name}: {layout.root} has no pool.json and is not empty ({others[0]!r}, ...): it is not made a "
                "pool; name an empty directory"
            )
        for leftover in layout.root.glob(f"{_DRAFT}*"):
            leftover.unlink()
        identity = {"format": FORMAT, "uuid": str(uuid.uuid4()), "name": layout.name, "owner": owner}
        files.write_durably(layout.identity, json.dumps(identity, indent=2).encode() + b"\n")
    finally:
        os.close(lock)


def _check(layout: Layout, owner: str) -> str:
    try:
        raw: dict[str, Any] = json.loads(files.read_small(layout.identity))
        made, name, belongs, uid = raw["format"], raw["name"], raw["owner"], str(raw["uuid"])
        if type(made) is not int or made < 1:
            raise ValueError(f"format {made!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise Precondition(f"pool {layout.name}: {layout.identity} cannot be read ({error!r}): restore it") from error
    if made != FORMAT:
        between = f"it has no step from {made} to {made + 1}: use the versions between the two"
        way = "use a newer driver" if made > FORMAT else between
        raise Precondition(f"pool {layout.name}: {layout.root} has format {made}, this driver knows {FORMAT}: {way}")
    if name != layout.name or belongs != owner:
        raise Precondition(
            f"{layout.root} is pool {name!r} of {belongs!r}, not {layout.name!r} of {owner!r}: ids hold both, so it is not "
            "served under another name; start with --node-name and --pool as it was made"
        )
    return uid


def _lock(layout: Layout, path: Path) -> int:
    try:
        return files.lock_pool(path)
    except OSError as error:
        raise Precondition(
            f"pool {layout.name}: {layout.root} cannot be locked ({error.strerror}): is another agent running on it?"
        ) from error

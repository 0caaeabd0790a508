"""Reading a pool: every record with the size of its image. What contradicts itself is named, and nothing is served then."""

import errno
import os
import stat
from pathlib import Path

from csi_driver.backends.base import PoolContents
from csi_driver.backends.reflink.layout import IMAGE, RECORD, Layout
from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import ObjectId
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.records import load_group, load_snapshot, load_volume
from csi_driver.host.fs import files


def read(layout: Layout, owner: str) -> PoolContents:
    """All volumes, snapshots and groups of a pool. Raises Damaged naming the directory that is wrong."""
    volumes = [_volume(path) for path in sorted(layout.volumes.iterdir())]
    snapshots = [_snapshot(path) for path in sorted(layout.snapshots.iterdir())]
    groups = [_group(path) for path in sorted(layout.groups.iterdir())]
    for kind, items in (("volumes", volumes), ("snapshots", snapshots), ("groups", groups)):
        for path, item in items:
            if item.id != ObjectId(owner, layout.name, path.name):
                raise Damaged(f"{path} holds the record of {item.id}, one of the {kind} of another place: look at it")
    return PoolContents(
        tuple(item for _, item in volumes), tuple(item for _, item in snapshots), tuple(item for _, item in groups)
    )


def member_image(group: Path, member: str) -> Path:
    """The image of a group's member, told by the member's hash."""
    return group / f"{member}.img"


def _volume(path: Path) -> tuple[Path, Volume]:
    return path, load_volume(_record(path), _size(path / IMAGE))


def _snapshot(path: Path) -> tuple[Path, Snapshot]:
    return path, load_snapshot(_record(path), _size(path / IMAGE))


def _group(path: Path) -> tuple[Path, GroupSnapshot]:
    return path, load_group(_record(path), {image.stem: _size(image) for image in path.glob("*.img")})


def _record(path: Path) -> bytes:
    try:
        return files.read_small(path / RECORD)
    except OSError as error:
        raise Damaged(
            f"{path} has no readable record ({error.strerror}): look at it, and move it out of the pool"
        ) from error


def _size(image: Path) -> int:
    try:
        status = os.stat(image, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return status.st_size
    except OSError as error:
        raise Damaged(f"{image} cannot be read ({error.strerror}): look at it, and move its directory out") from error

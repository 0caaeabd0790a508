"""Opens the image of a snapshot, or of a volume that is kept out of use, for a program that only reads it.

An agent in a container has other mounts than its user, so a path says little: the pool is told by its uuid, and the object
by the uid in the record that lies beside the image. Directories are opened once and never looked up again: what is opened
stays what it is, whatever is renamed or deleted meanwhile.
"""

import json
import os
import stat
from typing import Any

from csi_driver.backends.reflink.layout import IMAGE, RECORD
from csi_driver.domain.errors import NotFound, Unavailable
from csi_driver.domain.ids import ObjectId, parse

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_pool(path: str, uuid: str) -> int:
    """Return a descriptor of a pool's directory. Raises Unavailable if the pool with this uuid is not at `path` here."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the pool's directory {path} cannot be opened here ({error.strerror})") from None
    try:
        found = _json(fd, "pool.json").get("uuid")
    except (OSError, ValueError):
        found = None
    if found != uuid:
        os.close(fd)
        raise Unavailable(f"{path} is not the pool with the uuid {uuid} here")
    return fd


def open_image(pool: int, item: ObjectId, uid: str, *, is_volume: bool, group_id: str = "") -> int:
    """Return a descriptor of an object's image, to be read. `group_id`: the group that the snapshot is a member of.

    Raises NotFound if the object with this uid is no longer there, OSError.
    """
    group = parse(group_id)
    if is_volume:
        place, name = f"volumes/{item.hash}", IMAGE
    elif group is not None:
        place, name = f"groups/{group.hash}", f"{item.hash}.img"
    else:
        place, name = f"snapshots/{item.hash}", IMAGE
    try:
        directory = os.open(place, _DIRECTORY, dir_fd=pool)
    except FileNotFoundError:
        raise NotFound(f"{item} was deleted meanwhile: nothing was read") from None
    try:
        record = _json(directory, RECORD)
        members = record.get("members") or [] if group is not None else [record]
        if (str(item), uid) not in {(member.get("id"), member.get("uid")) for member in members}:
            raise NotFound(f"{item} was deleted and created again meanwhile: nothing was read")
        image = os.open(name, _FILE, dir_fd=directory)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(image).st_mode):
        os.close(image)
        raise Unavailable(f"the image of {item} is not a regular file: look at the pool")
    return image


def _json(directory: int, name: str) -> dict[str, Any]:
    with os.fdopen(os.open(name, _FILE, dir_fd=directory), "rb") as file:
        found = json.loads(file.read(1 << 20))
    return found if isinstance(found, dict) else {}

"""Whose pool a volume group is, and whether it can be one: its tag, and the checks that keep a driver from serving the wrong one."""

import os
import re
import uuid as uuids
from dataclasses import dataclass
from typing import Any

from csi_driver.backends.lvm.commands import Commands
from csi_driver.backends.lvm.pool_status import SMALLEST_AREA
from csi_driver.backends.options import PoolOptions
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import Damaged, Precondition, Unavailable, Unsupported
from csi_driver.host.fs import files
from csi_driver.host.lvm import tags
from csi_driver.host.lvm.reports import (
    BadReport,
    LogicalVolume,
    ThinPool,
    VolumeGroup,
    is_thin_pool,
    logical_volume,
    thin_pool,
)

FORMAT = 1
"""Of names and tags. A pool of another one is never opened. Keys of the tag that are not known here are left as they are."""

RUNTIME = "/run/tidemark"
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
"""It becomes the name of a directory."""
_CHANGE = "change it with"
_NOBODY = ""
"""The owner of a pool that `tidemark pool create` has made, and no agent has served yet."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The pool's uuid, and the tags of the volume group that make it this pool, where they are not there yet."""

    uuid: str
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def lock(options: PoolOptions, vg: str) -> int:
    """Take the agent's lock of a volume group, for as long as the descriptor is open. Raises Precondition."""
    directory = options.runtime_directory or RUNTIME
    path = os.path.join(directory, f"lvm-{vg}.lock")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return files.lock_pool(path)
    except OSError as error:
        raise Precondition(
            f"pool {options.name}: {path} cannot be locked ({error.strerror}): is another agent running on volume group {vg}?"
        ) from error


async def read(commands: Commands) -> tuple[list[LogicalVolume], list[ThinPool]]:
    """Return all logical volumes of a group, and those that are thin pools: one command of lvm, whatever there are. DriverError."""
    columns = dict.fromkeys(f"{LogicalVolume.COLUMNS},{ThinPool.COLUMNS}".split(","))
    rows = await commands.read("lvs", "-o", ",".join(columns), commands.vg)
    try:
        return [*map(logical_volume, rows)], [thin_pool(row) for row in rows if is_thin_pool(row)]
    except BadReport as error:
        raise Unavailable(f"volume group {commands.vg}: {error}") from error


def check_group(name: str, group: VolumeGroup) -> None:
    """Raise what speaks against serving a volume group at all. `name`: the pool's."""
    if group.lock_type:
        raise Unsupported(
            f"pool {name}: volume group {group.name} is shared by several machines (lvmlockd): use one of this machine alone"
        )
    if group.missing_pv_count:
        raise Unavailable(
            f"pool {name}: {group.missing_pv_count} of the {group.pv_count} disks of volume group {group.name} are away: attach "
            f"them again (`pvs -o +vg_missing_pv_count`); never run vgreduce --removemissing, which gives up what is on them"
        )
    if group.area_size < SMALLEST_AREA:
        raise Precondition(
            f"pool {name}: volume group {group.name} has {human(group.area_size)} for its metadata, which is full with a few "
            f"hundred volumes and snapshots and cannot grow: at least {human(SMALLEST_AREA)} are needed; make the pool with "
            "`tidemark pool create`, or with pvcreate --metadatasize 64m"
        )


def check_pool(name: str, vg: str, wanted: str, pools: list[ThinPool]) -> ThinPool:
    """Return the thin pool of a pool. Raises Precondition if there is none, or it would lose or show data."""
    found = next((pool for pool in pools if pool.name == wanted), None)
    if found is None:
        others = ", ".join(f"{vg}/{pool.name}" for pool in pools)
        raise Precondition(
            f"pool {name}: volume group {vg} has no thin pool {wanted!r}: "
            + (f"give one of {others} after lvm:" if others else "make one with `tidemark pool create`")
        )
    if found.when_full != "error":
        raise Precondition(
            f"pool {name}: when thin pool {vg}/{wanted} is full, writers would hang for a minute before they fail: "
            f"{_CHANGE} lvchange --errorwhenfull y {vg}/{wanted}"
        )
    if not found.zero:
        raise Precondition(
            f"pool {name}: thin pool {vg}/{wanted} does not zero new chunks, so that a volume shows what others have deleted: "
            f"{_CHANGE} lvchange -Zy {vg}/{wanted}"
        )
    return found


def known_uuid(group: VolumeGroup) -> str:
    """Return the uuid of the pool that a volume group is, whosever it is; empty: none that can be read."""
    try:
        made = tags.pool_of(group.tags, group.name)
    except Damaged:
        return ""
    uuid = str((made or {}).get("uuid", ""))
    return uuid if _UUID.fullmatch(uuid) else ""


def identify(options: PoolOptions, group: VolumeGroup, foreign: list[str]) -> Identity:
    """Return whose pool a volume group is. `foreign`: logical volumes beside the thin pool. Raises Precondition."""
    made = tags.pool_of(group.tags, group.name)
    if made is None:
        if not options.init:
            raise Precondition(
                f"pool {options.name}: volume group {group.name} is not a pool of this driver: make one with `tidemark pool create`, "
                "or say --pool-init to use this volume group"
            )
        if foreign:
            raise Precondition(
                f"pool {options.name}: volume group {group.name} has other logical volumes ({foreign[0]}, ...): it is not made a "
                "pool; name a volume group that has a thin pool alone"
            )
        uuid = str(uuids.uuid4())
        identity = {"format": FORMAT, "uuid": uuid, "name": options.name, "owner": options.owner}
        return Identity(uuid, (tags.pool_tag(identity),))
    uuid = _checked(options, group.name, made)
    if made["owner"] == _NOBODY:
        # Made by hand, and not served yet: from now on it is this agent's.
        return Identity(uuid, (tags.pool_tag(made | {"owner": options.owner}),), tuple(tags.pool_tags(group.tags)))
    return Identity(uuid)


def _checked(options: PoolOptions, vg: str, made: dict[str, Any]) -> str:
    try:
        number, name, owner, uuid = made["format"], made["name"], made["owner"], str(made["uuid"])
        if type(number) is not int or number < 1:
            raise ValueError(f"format {number!r}")
        if not _UUID.fullmatch(uuid):
            raise ValueError(f"uuid {uuid!r}")
    except (KeyError, ValueError) as error:
        raise Precondition(
            f"pool {options.name}: the tag of volume group {vg} cannot be read ({error!r}): restore it"
        ) from error
    if number != FORMAT:
        between = f"it has no step from {number} to {number + 1}: use the versions between the two"
        way = "use a newer driver" if number > FORMAT else between
        raise Precondition(
            f"pool {options.name}: volume group {vg} has format {number}, this driver knows {FORMAT}: {way}"
        )
    if name != options.name or owner not in {options.owner, _NOBODY}:
        raise Precondition(
            f"volume group {vg} is pool {name!r} of {owner!r}, not {options.name!r} of {options.owner!r}: ids hold both, so it is "
            "not served under another name; start with --node-name and --pool as it was made"
        )
    return uuid

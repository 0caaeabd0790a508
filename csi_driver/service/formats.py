"""What a disk is formatted with: as it is recorded, or, where its user may have made something else of it, as it is found."""

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.model import BLANK, RAW, Capability, Snapshot, Volume, VolumeRequest
from csi_driver.domain.mount_flags import check_mount_flags
from csi_driver.domain.requests import FILE_SYSTEMS, asked_file_system
from csi_driver.service.pools import Pool

_MOUNTED_AS = {"ext2": "ext4", "ext3": "ext4", "ext4": "ext4", "xfs": "xfs"}
"""What is found, and the file system that mounts it."""


async def look(pool: Pool, item: Volume | Snapshot) -> tuple[str, str]:
    """What a disk that was used before is to be mounted as, and what lies on it by its first bytes.

    A block device belongs to its user, who may have formatted it anew; records of such disks, and of snapshots of them, may
    name what was there before. Where no file system that we mount is found, what is recorded counts: it says what to repair.
    """
    if item.format not in (*FILE_SYSTEMS, RAW):
        return item.format, ""
    there = await pool.backend.content_format(item)
    return _MOUNTED_AS.get(there, item.format), there


async def format_of_copy(pool: Pool, request: VolumeRequest, source: Volume | Snapshot | None) -> str:
    """The format with which a new volume begins: its source's, looked at where it is to be mounted."""
    if source is None:
        return BLANK
    if any(capability.access == "mount" for capability in request.capabilities):
        return (await look(pool, source))[0]
    return source.format


def check_format(request: VolumeRequest, source: Volume | Snapshot | None, begins_as: str) -> None:
    """Refuse what could not be mounted later: another file system than the source's, or flags that the one it gets does not take."""
    holds = begins_as if begins_as in FILE_SYSTEMS else ""
    for capability in request.capabilities:
        if capability.access != "mount":
            continue
        if source is not None and holds and capability.fs_type not in {"", holds}:
            raise InvalidRequest(
                f"the source {source.id} holds {holds}, {capability.fs_type} was asked for: a copy keeps its "
                f"source's file system; ask for {holds} or leave it out"
            )
        becomes = holds or asked_file_system(request) or ("" if begins_as == RAW else "ext4")
        check_mount_flags(capability.mount_flags, becomes)


def unmountable(volume: Volume, capability: Capability) -> str:
    """Why a volume that was made for one kind of access cannot have the other; empty where it can.

    What was used, or copied, as a block device is mounted as what its user made of it: backups are written back like that.
    """
    made_for = {c.access for c in volume.request.capabilities}
    used = volume.format == RAW or volume.format in FILE_SYSTEMS
    if capability.access in made_for or (capability.access == "mount" and used):
        return ""
    return f"the volume was made for {volume.request.capabilities[0].access} access, not for {capability.access}"

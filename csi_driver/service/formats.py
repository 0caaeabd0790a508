"""The file system of a volume: as recorded, or, if its user may have changed it, as detected on the volume."""

from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.model import BLANK, RAW, Capability, Snapshot, Volume, VolumeRequest
from csi_driver.domain.mount_flags import check_mount_flags
from csi_driver.domain.requests import FILE_SYSTEMS, asked_file_system
from csi_driver.service.pools import Pool

_MOUNTED_AS = {"ext2": "ext4", "ext3": "ext4", "ext4": "ext4", "xfs": "xfs"}
"""The detected type, and the file system that mounts it."""


async def detect_format(pool: Pool, item: Volume | Snapshot) -> tuple[str, str]:
    """Return the format to mount a used volume as, and the type detected by its first bytes.

    The user of a block device may have formatted it again, so records of such volumes and of their snapshots may be out of date.
    If no file system is detected that this driver mounts, the recorded one counts: it says what to repair.
    """
    if item.format not in (*FILE_SYSTEMS, RAW):
        return item.format, ""
    detected = await pool.backend.content_format(item)
    return _MOUNTED_AS.get(detected, item.format), detected


async def clone_format(pool: Pool, request: VolumeRequest, source: Volume | Snapshot | None) -> str:
    """Return the format with which a new volume begins: that of its source, detected if the volume is to be mounted."""
    if source is None:
        return BLANK
    if any(capability.access == "mount" for capability in request.capabilities):
        return (await detect_format(pool, source))[0]
    return source.format


def check_format(request: VolumeRequest, source: Volume | Snapshot | None, begins_as: str) -> None:
    """Raise InvalidRequest for what could not be mounted later: another file system than the source's, or unknown flags."""
    holds = begins_as if begins_as in FILE_SYSTEMS else ""
    for capability in request.capabilities:
        if capability.access != "mount":
            continue
        if source is not None and holds and capability.fs_type not in {"", holds}:
            raise InvalidRequest(
                f"the source {source.id} has {holds}, {capability.fs_type} was requested: a clone keeps the "
                f"file system of its source; request {holds}, or none"
            )
        becomes = holds or asked_file_system(request) or ("" if begins_as == RAW else "ext4")
        check_mount_flags(capability.mount_flags, becomes)


def unmountable(volume: Volume, capability: Capability) -> str:
    """Return why a volume created for one kind of access cannot have the other; empty if it can.

    A volume that was used as a block device, or cloned from one, is mounted with the file system that its user made: this is
    how backups are restored.
    """
    made_for = {c.access for c in volume.request.capabilities}
    used = volume.format == RAW or volume.format in FILE_SYSTEMS
    if capability.access in made_for or (capability.access == "mount" and used):
        return ""
    return f"the volume was created for {volume.request.capabilities[0].access} access, not for {capability.access}"

"""Stages and publishes volumes that are block devices, of whatever technology: devices, mounts and bind mounts.

Nothing is remembered: what is mounted is read from mountinfo at each call, and whose device it is from the technology. If
that no longer tells whose a mount is, because its device has gone, its mount point does (docs/adr/0019).
"""

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from csi_driver.backends import condition
from csi_driver.backends.base import STAGED_NODE, FileSystemStats
from csi_driver.backends.devices import Devices
from csi_driver.backends.volume_helpers import command_of, errno_of
from csi_driver.domain.errors import (
    AlreadyExists,
    DriverError,
    InUse,
    NotMountable,
    OutOfSpace,
    Precondition,
    TooSlow,
    Unavailable,
)
from csi_driver.domain.model import Capability, Volume, VolumeCondition, VolumeUsage
from csi_driver.host.block.device import BlockDevice, sysfs
from csi_driver.host.fs import mount_points, mountinfo
from csi_driver.host.helper.device_jobs import may_grow_mounted_ext4

FAST_TIMEOUT = 15.0
"""Seconds for what normally takes milliseconds."""
SLOW_TIMEOUT = 60.0
"""Seconds for what may have to write a lot first: mount (log replay), umount (write-back), mkfs, grow."""
GROWTH_TIMEOUT = 120.0
"""Seconds for a growth that all metadata are read before: what a kubelet waits for."""

log = structlog.get_logger()

_LEFT_UNMENDED = 4
"""A bit of e2fsck's exit status."""

_CONTRADICTS_ITSELF = frozenset({errno.EUCLEAN, errno.EBADMSG})
"""What a mount answers of metadata that cannot be right, and of a checksum that does not fit."""


class BlockDeviceAccess:
    """The VolumeAccess port for volumes that are block devices.

    `seen_outside`: this process is in a container, and a volume that would be mounted where the host does not see it is refused:
    a pod would write to the directory below the mount, and nobody would notice.
    """

    def __init__(self, devices: Devices, seen_outside: bool = False) -> None:
        self._devices = devices
        self._jobs = devices.jobs
        self._seen_outside = seen_outside

    async def use(self, volume: Volume) -> VolumeUsage:
        """See VolumeAccess."""
        device = await self._devices.find(volume)
        left = self._stale_mounts(volume, device)
        if device is None and not left:
            return VolumeUsage()
        mounts = mountinfo.read()
        shown = [*(_mounts(device, mounts) if device else ()), *left]
        return VolumeUsage(device.path if device else "", _places(shown, mounts))

    def _stale_mounts(self, volume: Volume, device: BlockDevice | None) -> list[mountinfo.Mount]:
        """Return the mounts of the node of a device that the volume had: it has gone, and they have not.

        Its number may be anybody's by now: the mark of the mount point decides, whatever the number holds.
        """
        return [mount for mount in self._devices.nodes() if self._is_stale(mount, volume, device)]

    def _is_stale(self, mount: mountinfo.Mount, volume: Volume, device: BlockDevice | None) -> bool:
        if device is not None and _holds(mount, device):
            return False
        return mount_points.marked(mount.point, covered=True) == _mount_mark(volume)

    async def sweep(self, volumes: Iterable[Volume]) -> None:
        """At start: unmount what is left of devices of these volumes that have gone: the next owner of a number is visible there."""
        marked = {_mount_mark(volume): volume for volume in volumes}
        for mount in self._devices.nodes():
            volume = marked.get(mount_points.marked(mount.point, covered=True))
            if volume is None:
                continue
            device = await self._devices.find(volume)
            if device is not None and _holds(mount, device):
                continue
            present = mountinfo.at(mount.point)
            if present is not None and present.id == mount.id:  # or it went with another view of it
                with suppress(DriverError):  # it is found again when the volume is staged or taken away
                    await self._jobs.run(None, "umount", SLOW_TIMEOUT, point=mount.point)
                    _remove_file(mount.point)

    async def attach(self, volume: Volume) -> str:
        """See VolumeAccess."""
        return (await self._devices.attach(volume)).path

    async def detach(self, volume: Volume) -> None:
        """See VolumeAccess."""
        device = await self._devices.find(volume)
        if device is None:
            return
        mounts = mountinfo.read()
        if places := _places(_mounts(device, mounts), mounts):
            shown = ", ".join(place[0] for place in places)
            raise InUse(f"{volume.id} is shown at {shown}: unpublish and unstage it first")
        await self._devices.detach(volume)

    async def make_file_system(self, volume: Volume, fs_type: str) -> None:
        """See VolumeAccess."""
        source = await self._devices.source(volume)
        self._devices.note(
            await self._jobs.run(volume, "make_file_system", SLOW_TIMEOUT, source=source, fs_type=fs_type)
        )
        await self._devices.restore_allocation(volume)

    async def mount(self, volume: Volume, point: str, fs_type: str, flags: Sequence[str]) -> bool:
        """See VolumeAccess."""
        device = await self._devices.find(volume)
        present = mountinfo.at(point)
        if present is not None:
            self._refuse_other_mount(volume, device, present, fs_type, flags)
        elif mountinfo.at(os.path.join(point, STAGED_NODE)) is not None:
            raise AlreadyExists(f"{volume.id} is staged at {point} as a block device: unstage it first")
        else:
            if fs_type == "ext4" and not may_grow_mounted_ext4() and not (device and _mounts(device, mountinfo.read())):
                await self._grow_unmounted(volume)
            os.makedirs(point, mode=0o750, exist_ok=True)
        how = {"point": point, "fs_type": fs_type, "options": list(flags), "mounted": present is not None}
        try:
            answer = await self._jobs.run(
                volume, "mount", SLOW_TIMEOUT, source=await self._devices.source(volume), **how
            )
        except Precondition as error:
            if errno_of(error) in _CONTRADICTS_ITSELF:
                raise NotMountable(f"the kernel does not mount it ({error})") from error
            raise
        if answer["shut_down"]:
            raise condition.refusal(volume, condition.of_shut_down(fs_type), "staging")
        device = self._devices.note(answer)
        if present is None:
            await self._refuse_unpropagated(volume, point)
            if fs_type == "ext4" and (abnormal := condition.of_ext4(device.name, ())):
                # Its superblock answer of none before: they were met at the mount.
                await self._jobs.run(volume, "umount", SLOW_TIMEOUT, point=point)
                raise NotMountable(f"its mount met what cannot be right ({abnormal.text})")
        await self._try_to_restore_allocation(volume)
        return bool(answer["room"])

    def _refuse_other_mount(
        self, volume: Volume, device: BlockDevice | None, present: mountinfo.Mount, fs_type: str, flags: Sequence[str]
    ) -> None:
        """Raise AlreadyExists if there is a stage that is not the one asked for, Precondition if it is in trouble."""
        if device is None or not _holds(present, device) or _is_device_node(present, device):
            raise AlreadyExists(
                f"{present.point} is taken by a mount of {present.source}: it is not this volume; unmount it first"
            )
        staged = f"{volume.id} is staged at {present.point}"
        if present.fs_type != fs_type:
            raise AlreadyExists(f"{staged} as {present.fs_type}, not {fs_type}: unstage it first")
        missing = [flag for flag in flags if _visibly_missing(flag, present)]
        if missing:
            raise AlreadyExists(f"{staged} without {', '.join(missing)}: unstage it first")
        if fs_type == "ext4" and (abnormal := condition.of_ext4(device.name, present.super_options)):
            raise condition.refusal(volume, abnormal, "staging")

    async def _grow_unmounted(self, volume: Volume) -> None:
        """Grow the volume's ext4 as far as possible before it is mounted: the mount does not need more."""
        try:
            await self._devices.grow_unmounted(volume)
        except (OutOfSpace, Precondition, TooSlow) as error:
            tool, status = command_of(error)
            if status < 0:
                raise  # somebody killed it: the next try may end
            if tool == "e2fsck" and status & _LEFT_UNMENDED:
                raise NotMountable(f"the check before its growth found what it cannot mend ({error})") from error
            log.warning("file system growth skipped at this stage", volume=str(volume.id), why=str(error))

    async def grow(self, volume: Volume, point: str) -> None:
        """See VolumeAccess."""
        device = await self._attached_device(volume)
        mount = mountinfo.at(point)
        if mount is None or not _holds(mount, device):
            raise Precondition(f"{volume.id} is not shown at {point}: stage it there first")
        if _is_device_node(mount, device):
            await self._devices.attach(volume)
        else:
            if mount.fs_type == "ext4" and (abnormal := await self._condition_of(volume, device, mount)):
                raise condition.refusal(volume, abnormal, "growth")
            # A pod's own mount may be read-only while the file system is not.
            views = [mount, *(view for view in _mounts(device, mountinfo.read()) if not _is_device_node(view, device))]
            writable = next((view for view in views if not view.read_only), None)
            await self._jobs.run(
                volume,
                "grow",
                SLOW_TIMEOUT,
                source=await self._devices.source(volume),
                point=(writable or mount).point,
                fs_type=mount.fs_type,
                read_only=writable is None,
            )
            await self._try_to_restore_allocation(volume)

    async def _try_to_restore_allocation(self, volume: Volume) -> None:
        """Restore a thick volume's allocation beside a stage or a growth, which never fails for it: the next one tries again."""
        try:
            await self._devices.restore_allocation(volume)
        except DriverError as error:
            log.warning("a thick volume lacks space of its own", volume=str(volume.id), why=str(error))

    async def stage_block(self, volume: Volume, point: str) -> None:
        """See VolumeAccess."""
        if (mount := mountinfo.at(point)) is not None:
            raise AlreadyExists(f"{point} is taken by a mount of {mount.source}: unstage or unmount it first")
        os.makedirs(point, mode=0o750, exist_ok=True)
        await self._bind_node(volume, os.path.join(point, STAGED_NODE))

    async def bind(self, volume: Volume, source: str, target: str, how: Capability, read_only: bool) -> None:
        """See VolumeAccess."""
        device = await self._attached_device(volume)
        if how.access == "block":
            if mountinfo.at(os.path.join(source, STAGED_NODE)) is None:
                raise AlreadyExists(
                    f"{volume.id} is staged at {source} as a file system, not as a block device: unstage it first"
                )
            await self._set_read_only_mode(volume, device, source, target, read_only)
            await self._bind_node(volume, target)
            return
        staged = mountinfo.at(source)
        if staged is None:
            raise AlreadyExists(
                f"{volume.id} is staged at {source} as a block device, not as a file system: unstage it first"
            )
        present = mountinfo.at(target)
        if present is not None:
            if not _holds(present, device) or _is_device_node(present, device):
                raise AlreadyExists(f"{target} is taken by a mount of {present.source}: unpublish or unmount it first")
            # What is staged may be read-only itself: by a mount option, or since the file system met an error.
            if present.read_only != (read_only or staged.read_only):
                now = "read-only" if present.read_only else "writable"
                raise AlreadyExists(f"{volume.id} is published at {target} {now}: unpublish it there first")
            if abnormal := await self._condition_of(volume, device, present):
                raise condition.refusal(volume, abnormal, "publishing")
            return
        if staged.fs_type == "ext4" and (abnormal := await self._condition_of(volume, device, staged)):
            raise condition.refusal(volume, abnormal, "publishing")
        fresh = not os.path.lexists(target)
        _make_directory(target)
        mount_points.mark(target, _mount_mark(volume))
        try:
            await self._jobs.run(
                volume,
                "bind",
                SLOW_TIMEOUT,
                source=source,
                target=target,
                read_only=read_only,
                device_number=_number(device),
            )
        except Unavailable as error:
            # The job opens what it binds: what was shut down is found without another process.
            if errno_of(error) in {errno.EIO, errno.ESHUTDOWN}:
                if fresh:
                    os.rmdir(target)
                raise condition.refusal(volume, condition.of_shut_down(staged.fs_type), "publishing") from error
            raise
        await self._verify(volume, device, target)

    async def unmount(self, volume: Volume | None, path: str, its_own: bool = False) -> None:
        """See VolumeAccess."""
        device = await self._devices.find(volume) if volume is not None else None
        for point in (os.path.join(path, STAGED_NODE), path):
            # The same path may have been mounted over more than once.
            while (mount := mountinfo.at(point)) is not None:
                mine = device is not None and _holds(mount, device)
                mine = mine or (not its_own and await self._devices.is_ours(mount, volume))
                if not mine and not (volume is not None and self._is_stale(mount, volume, device)):
                    raise Precondition(
                        f"{point} shows {mount.source}, not {volume.id if volume else 'a volume that is gone'}: unmount it "
                        "by hand"
                    )
                held = self._devices.device_generation(mount) if mine else ""
                await self._unmount(volume, mount)
                if device is None:
                    await self._devices.release_unknown_device(mount, held)
        _remove_file(os.path.join(path, STAGED_NODE))

    async def cleanup_unavailable(self, digest: str, path: str, last: bool) -> None:
        """See VolumeAccess. A disk that died must not keep its pods from ending."""
        points = (os.path.join(path, STAGED_NODE), path)
        shown = await self._devices.mounts_of_volume(digest)
        places = _places(shown, mountinfo.read())
        if last and (others := [place[0] for place in places if not any(path in points for path in place)]):
            raise Precondition(f"the volume is still published at {', '.join(others)}: unpublish it there first")
        for point in points:
            while (mount := mountinfo.at(point)) is not None:
                if mount not in shown and not self._devices.is_unbound_device_node(mount):
                    raise Precondition(
                        f"{point} shows {mount.source}, which is not known to be this volume: unmount it by hand"
                    )
                await self._unmount(None, mount)
        _remove_file(points[0])
        if last:
            await self._devices.detach_unavailable(digest)

    async def _unmount(self, volume: Volume | None, mount: mountinfo.Mount) -> None:
        await self._jobs.run(volume, "umount", SLOW_TIMEOUT, point=mount.point)
        if any(left.id == mount.id and left.point == mount.point for left in mountinfo.read()):
            raise Precondition(
                f"{mount.point} is mounted and cannot be reached: something was mounted over a directory above it later; "
                "unmount that first"
            )

    async def stats(self, volume: Volume, path: str) -> FileSystemStats:
        """See VolumeAccess."""
        device = await self._attached_device(volume)
        mount = mountinfo.at(path)
        if mount is not None and _is_device_node(mount, device):
            return FileSystemStats(total=volume.size)
        found: dict[str, Any] = await self._jobs.run(
            volume, "statvfs", FAST_TIMEOUT, point=path, major=device.major, minor=device.minor
        )
        unit = found["f_frsize"]
        if found["shut_down"]:
            abnormal: VolumeCondition | None = condition.of_shut_down(mount.fs_type if mount else "file system")
        else:
            abnormal = await self._condition_of(volume, device, mount) if mount and mount.fs_type == "ext4" else None
        return FileSystemStats(
            total=found["f_blocks"] * unit,
            used=(found["f_blocks"] - found["f_bfree"]) * unit,
            available=found["f_bavail"] * unit,
            inodes=found["f_files"],
            inodes_used=found["f_files"] - found["f_ffree"],
            inodes_free=found["f_ffree"],
            condition=abnormal,
        )

    async def condition(self, volume: Volume) -> VolumeCondition | None:
        """See VolumeAccess."""
        device = await self._devices.find(volume)
        if device is None:
            return None
        mount = next((mount for mount in _mounts(device, mountinfo.read()) if not _is_device_node(mount, device)), None)
        return await self._condition_of(volume, device, mount) if mount is not None else None

    async def _condition_of(
        self, volume: Volume, device: BlockDevice, mount: mountinfo.Mount
    ) -> VolumeCondition | None:
        """What is wrong with the file system on a device that is mounted there. Of an ext4 it is answer without a process."""
        if mount.fs_type == "ext4":
            return condition.of_ext4(device.name, mount.super_options)
        shut = await self._jobs.run(
            volume, "is_shut_down", FAST_TIMEOUT, point=mount.point, device_number=_number(device)
        )
        return condition.of_shut_down(mount.fs_type) if shut else None

    async def _attached_device(self, volume: Volume) -> BlockDevice:
        device = await self._devices.find(volume)
        if device is None:
            raise Precondition(f"{volume.id} has no device: stage it first")
        return device

    async def _bind_node(self, volume: Volume, target: str) -> None:
        """Bind the device node over a file at `target`, verified to be this volume's."""
        device = await self._attached_device(volume)
        present = mountinfo.at(target)
        if present is not None and (
            self._devices.is_unbound_device_node(present) or self._is_stale(present, volume, device)
        ):
            # Left of a device that is gone: it shows nothing, or whoever's next device got that number.
            await self._jobs.run(volume, "umount", SLOW_TIMEOUT, point=target)
            present = mountinfo.at(target)
        if present is not None:
            if not _holds(present, device) or not _is_device_node(present, device):
                raise AlreadyExists(f"{target} is taken by a mount of {present.source}: unpublish or unmount it first")
            mount_points.mark(
                target, _mount_mark(volume), covered=True
            )  # an agent before this one may have left it out
            return
        _make_file(target)
        mount_points.mark(target, _mount_mark(volume))
        await self._jobs.run(
            volume, "bind", SLOW_TIMEOUT, source=device.path, target=target, read_only=False, device_number=None
        )
        await self._verify(volume, device, target)

    async def _verify(self, volume: Volume, device: BlockDevice, target: str) -> None:
        """Unmount `target` unless it is this volume: device numbers are reused quickly."""
        again = await self._devices.find(volume)
        mount = mountinfo.at(target)
        if again != device or mount is None or not _holds(mount, device):
            await self._jobs.run(volume, "umount", SLOW_TIMEOUT, point=target)
            raise Precondition(f"{volume.id} lost its device while it was being mounted at {target}: try again")
        await self._refuse_unpropagated(volume, target)

    async def _refuse_unpropagated(self, volume: Volume, target: str) -> None:
        """Unmount `target` and raise Precondition if no pod would see it."""
        mount = mountinfo.at(target)
        if self._seen_outside and (mount is None or not mount.shared):
            await self._jobs.run(volume, "umount", SLOW_TIMEOUT, point=target)
            raise Precondition(
                f"{target} is not shared with the host, so no pod would see {volume.id} there: mount the kubelet's "
                "directories into the agent's container with mountPropagation Bidirectional"
            )

    async def _set_read_only_mode(
        self, volume: Volume, device: BlockDevice, source: str, target: str, read_only: bool
    ) -> None:
        """Set the mode of the device itself, one for all its mounts: a read-only bind does not stop writes to a device."""
        mounts = mountinfo.read()
        shown = _places(_mounts(device, mounts), mounts)
        places = [place for place in shown if not any(os.path.dirname(path) == source for path in place)]
        others = [place[0] for place in places if target not in place]
        is_read_only = sysfs(device.name, "ro") == "1"
        if len(others) < len(places):
            if is_read_only != read_only:
                now = "read-only" if is_read_only else "writable"
                raise AlreadyExists(f"{volume.id} is published at {target} {now}: unpublish it there first")
            return
        if is_read_only == read_only:
            return
        if others:
            raise Precondition(
                f"{volume.id} is published {'read-only' if is_read_only else 'writable'} at {', '.join(others)}, and a block "
                "device has one mode for all: unpublish it there first"
            )
        await self._jobs.run(
            volume, "set_read_only", FAST_TIMEOUT, source=await self._devices.source(volume), read_only=read_only
        )


def _mounts(device: BlockDevice, mounts: Sequence[mountinfo.Mount]) -> list[mountinfo.Mount]:
    return mountinfo.mounts_of(device.major, device.minor, device.name, mounts)


def _places(shown: Iterable[mountinfo.Mount], mounts: Iterable[mountinfo.Mount]) -> tuple[tuple[str, ...], ...]:
    """The paths of each place: lines of mountinfo are views, and one mount that is seen through several is one use."""
    return tuple(tuple(view.point for view in place) for place in mountinfo.places(shown, mounts))


def _mount_mark(volume: Volume) -> str:
    """What is written on the volume's mount points: a name that was made again is another volume."""
    return f"{volume.id} {volume.uid}"


def _holds(mount: mountinfo.Mount, device: BlockDevice) -> bool:
    return bool(mountinfo.mounts_of(device.major, device.minor, device.name, [mount]))


def _is_device_node(mount: mountinfo.Mount, device: BlockDevice) -> bool:
    """Whether a mount shows the device's node, not a file system on it."""
    return (mount.major, mount.minor) != (device.major, device.minor)


def _number(device: BlockDevice) -> list[int]:
    return [device.major, device.minor]


_VISIBLE_FLAGS = {"ro", "noatime", "nodiratime", "nodev", "nosuid", "noexec", "sync", "dirsync", "discard"}


def _visibly_missing(flag: str, mount: mountinfo.Mount) -> bool:
    """Whether a flag that mountinfo would show is not there; of the others nothing can be said."""
    return flag in _VISIBLE_FLAGS and flag not in mount.options and flag not in mount.super_options


def _make_directory(target: str) -> None:
    if os.path.lexists(target) and not os.path.isdir(target):
        raise AlreadyExists(f"{target} exists and is not a directory: a file system is published on one; remove it")
    os.makedirs(target, mode=0o750, exist_ok=True)


def _make_file(target: str) -> None:
    os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
    try:
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise AlreadyExists(
            f"{target} exists and is not a regular file ({error.strerror}): a device is published on one; remove it"
        ) from error
    if not os.path.isfile(target):
        raise AlreadyExists(f"{target} exists and is not a regular file: a device is published on one; remove it")


def _remove_file(path: str) -> None:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        os.unlink(path)

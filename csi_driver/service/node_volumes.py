"""The node's half of a volume's life: stage, publish and back. What is staged is asked of the kernel each time."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from csi_driver import __version__
from csi_driver.backends.base import STAGED_NODE, FileSystemStats
from csi_driver.domain.errors import (
    AlreadyExists,
    DriverError,
    InvalidRequest,
    NotFound,
    NotMountable,
    OutOfRange,
    OutOfSpace,
    Precondition,
    TooSlow,
    Unavailable,
)
from csi_driver.domain.model import (
    BLANK,
    RAW,
    AccessMode,
    Capability,
    SizeRange,
    Trouble,
    Volume,
    VolumeUsage,
    formatting,
    is_formatting,
)
from csi_driver.domain.requests import FILE_SYSTEMS, asked_file_system, check_capability
from csi_driver.domain.sizes import check_range
from csi_driver.host.fs import mount_points
from csi_driver.service.checks import Checks
from csi_driver.service.conditions import of_record
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.formats import look
from csi_driver.service.pools import Pool
from csi_driver.service.volumes import unsupported

MAX_PATH_BYTES = 4096

log = structlog.get_logger()


class NodeVolumes:
    """Staging and publishing on this node."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools
        self._checks = Checks(context)

    async def stage(self, volume_id: str, staging: str, capability: Capability) -> None:
        """Attach, format once in a lifetime, check where that is asked for, mount and grow. The same stage again is fine.

        Raises Busy while a check runs, NotMountable where none mends the file system, Precondition where one that is mounted
        already takes no more writes.
        """
        staging = _check_path(staging, "the staging path")
        check_capability(capability, made_before=True)
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.locks.hold(f"NodeStageVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.ensure_not_held(volume, "staging")
            # A hold that stands there has lapsed. A clock that is set back must not make it stand again: from now on somebody
            # may write.
            recorded, volume = volume, replace(volume, hold=None)
            _refuse_unknown_format(volume)
            before = await self._refuse_other_stage(pool, volume, staging)
            shown = bool(before.device and before.places)  # mounts of a device that has gone show nothing
            if capability.access == "mount" and not shown:
                volume = await _as_found(pool, volume)
            reason = unsupported(volume, capability)
            if reason:
                raise Precondition(f"{volume_id} cannot be staged so: {reason}")
            if volume != recorded:
                volume = await self._save(pool, volume)
            access = pool.backend.access
            try:
                if capability.access == "block":
                    await self._checks.refuse_running(pool, volume)
                    await access.attach(volume)
                    if staging not in before.paths:  # else it is mounted there, and refused below
                        volume = await self._mark_raw(pool, volume)
                    await access.stage_block(volume, staging)
                else:
                    volume = await self._format_once(pool, volume, capability.fs_type)
                    fs_type, checked = volume.format, False
                    if not shown:
                        volume, checked = await self._checks.mended(pool, volume, fs_type)
                    volume, may_grow = await self._mount(
                        pool, volume, staging, fs_type, capability.mount_flags, checked
                    )
                    if may_grow:
                        await self._grow_if_it_can(pool, volume, staging)
            except BaseException:
                # Nothing half-staged stays behind: after a refusal that is final, nobody unstages.
                if shown:
                    await self._look_after(pool, volume)
                else:
                    await self._undo_stage(pool, volume, staging, before.device)
                raise

    async def unstage(self, volume_id: str, staging: str) -> None:
        """Take a stage away, verified, and the device with it. Unknown volumes and paths are fine."""
        staging = _check_path(staging, "the staging path")
        async with self._pools.locks.hold(f"NodeUnstageVolume of {volume_id}", [self._key(volume_id)]):
            if lost := self._unavailable_pool(volume_id):
                await lost[0].backend.access.cleanup_unavailable(lost[1], staging, last=True)
                return
            pool, volume = self._pool_for_cleanup(volume_id)
            if volume is not None:
                use = await pool.backend.access.use(volume)
                others = [place[0] for place in use.places if not _is_stage(place, staging)]
                if others:
                    raise Precondition(
                        f"{volume_id} is still published at {', '.join(others)}: unpublish it there first"
                    )
            await pool.backend.access.unmount(volume, staging)
            if volume is not None:
                await pool.backend.access.detach(volume)
                self._context.conditions.note(volume, of_record(volume))

    async def publish(
        self, volume_id: str, staging: str, target: str, capability: Capability, read_only: bool = False
    ) -> None:
        """Show a staged volume at `target`. The same call again is fine; other arguments are AlreadyExists."""
        target = _check_path(target, "the target path")
        check_capability(capability, made_before=True)
        pool, volume = self._pools.volume(volume_id)
        if not staging:
            raise Precondition(f"the staging path of {volume_id} is missing: stage the volume first and name the path")
        staging = _check_path(staging, "the staging path")
        read_only = read_only or capability.mode is AccessMode.READER
        async with self._pools.locks.hold(f"NodePublishVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.ensure_not_held(volume, "publishing")
            reason = unsupported(volume, capability)
            if not reason and capability.access == "mount" and volume.format == RAW:
                reason = "it was staged as a block device"
            if reason:
                raise Precondition(f"{volume_id} cannot be published so: {reason}")
            use = await pool.backend.access.use(volume)
            if not any(_is_stage(place, staging) for place in use.places):
                raise Precondition(f"{volume_id} is not staged at {staging}: stage it there first")
            # The kubelet binds what is published to places of its own (raw blocks, subPath), and publishes again when it
            # starts: where the target has the volume already, this is no second place.
            again = any(target in place for place in use.places)
            others = [place[0] for place in use.places if not again and not _is_stage(place, staging)]
            if others and capability.mode is not AccessMode.MULTI_WRITER:
                raise Precondition(
                    f"{volume_id} is published at {', '.join(others)} and access mode {capability.mode.value} allows one "
                    "place only: unpublish it there first"
                )
            try:
                await pool.backend.access.bind(volume, staging, target, capability, read_only)
            except Precondition:
                await self._look_after(pool, volume)
                raise

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Take a publish away and remove its path. Unknown volumes and paths are fine."""
        target = _check_path(target, "the target path")
        async with self._pools.locks.hold(f"NodeUnpublishVolume of {volume_id}", [self._key(volume_id)]):
            if lost := self._unavailable_pool(volume_id):
                await lost[0].backend.access.cleanup_unavailable(lost[1], target, last=False)
            else:
                pool, volume = self._pool_for_cleanup(volume_id)
                await pool.backend.access.unmount(volume, target)
            _remove(target)

    async def stats(self, volume_id: str, path: str) -> tuple[Volume, FileSystemStats]:
        """Space of a volume at one of its paths, and what is wrong there. Raises NotFound where it is not shown there."""
        pool, volume, shown = await self._shown(volume_id, path)
        stats = await pool.backend.access.stats(volume, shown)
        self._context.conditions.note(volume, stats.trouble)
        return volume, stats

    async def trouble(self, volume_id: str) -> Trouble | None:
        """What is wrong with a volume's file system, staged or not; None: nothing that is known. Raises NotFound."""
        pool, volume = self._pools.volume(volume_id)
        trouble = of_record(volume) or await pool.backend.access.trouble(volume)
        self._context.conditions.note(volume, trouble)
        return trouble

    async def expand(self, volume_id: str, path: str, wanted: SizeRange) -> Volume:
        """Grow the file system at `path` (or the device) to the volume's size. The size itself is the controller's."""
        check_range(wanted)
        volume = self._pools.volume(volume_id)[1]
        async with self._pools.locks.hold(f"NodeExpandVolume of {volume_id}", [volume.id.hash]):
            pool, volume, shown = await self._shown(volume_id, path)
            self._context.ensure_not_held(volume, "expansion")
            if wanted.required > volume.size:
                raise OutOfRange(
                    f"{volume_id} has {volume.size} bytes and {wanted.required} are asked for: expand the volume itself first"
                )
            if wanted.limit and wanted.limit < volume.size:
                raise OutOfRange(
                    f"{volume_id} has {volume.size} bytes, and {wanted.limit} is the limit: volumes never shrink; leave it out"
                )
            await pool.backend.access.grow(volume, shown)
            return volume

    async def _shown(self, volume_id: str, path: str) -> tuple[Pool, Volume, str]:
        pool, volume = self._pools.volume(volume_id)
        if path.startswith("/") and "\0" not in path:
            path = _real(path)
        use = await pool.backend.access.use(volume)
        for shown in (view for place in use.places for view in place):
            if _is_stage((shown,), path):
                return pool, volume, shown
        raise NotFound(f"{volume_id} is not shown at {path!r}: it is at {', '.join(use.paths) or 'no path'}")

    async def _refuse_other_stage(self, pool: Pool, volume: Volume, staging: str) -> VolumeUsage:
        """Raise Precondition where the volume is shown elsewhere; returns what it has already."""
        use = await pool.backend.access.use(volume)
        if use.places and not any(_is_stage(place, staging) for place in use.places):
            raise Precondition(f"{volume.id} is in use at {', '.join(use.paths)}: unstage it there first")
        return use

    async def _format_once(self, pool: Pool, volume: Volume, fs_type: str) -> Volume:
        """Make a file system on a volume that never had one and holds no data at all; whatever a probe would say."""
        access = pool.backend.access
        asked = fs_type or asked_file_system(volume.request) or "ext4"
        if volume.format in (*FILE_SYSTEMS, RAW):
            return volume
        if volume.format != BLANK:
            # Left in the middle of mkfs: it was never mounted, so nobody's data can be in it.
            await access.detach(volume)
            await pool.backend.erase(volume)
        elif not await pool.backend.is_empty(volume):
            raise Precondition(
                f"{volume.id} was never formatted by this driver and yet holds data: it is not formatted; to look at the data, "
                "snapshot it and restore that with volumeMode Block"
            )
        volume = await self._save(pool, replace(volume, format=formatting(asked)))
        await access.make_file_system(volume, asked)
        return await self._save(pool, replace(volume, format=asked))

    async def _mount(
        self, pool: Pool, volume: Volume, staging: str, fs_type: str, flags: Sequence[str], checked: bool
    ) -> tuple[Volume, bool]:
        """Mount it; whether there is room to grow. What the kernel does not mount is checked, where that may help and was not just done."""
        try:
            may_grow = await pool.backend.access.mount(volume, staging, fs_type, flags)
        except NotMountable as error:
            if fs_type == "ext4" and not checked:
                await self._checks.begin(pool, volume, str(error))
            await self._checks.give_up(pool, volume, str(error))
        return await self._checks.mounted(pool, volume), may_grow

    async def _grow_if_it_can(self, pool: Pool, volume: Volume, staging: str) -> None:
        """Let the file system fill the volume. What cannot be now (it is mounted read-only, say, or it takes too long) is put off to a later stage.

        It is mounted and whole: whoever waits for the data need not wait for the room.
        """
        try:
            await pool.backend.access.grow(volume, staging)
        except (Precondition, OutOfSpace, TooSlow) as error:
            log.warning("a file system does not grow at this stage", volume=str(volume.id), why=str(error))

    async def _look_after(self, pool: Pool, volume: Volume) -> None:
        """After a refusal: whether the file system is the reason, so that metrics and lists tell it too."""
        with suppress(DriverError):
            self._context.conditions.note(volume, await pool.backend.access.trouble(volume))

    async def _mark_raw(self, pool: Pool, volume: Volume) -> Volume:
        """From a stage as block on, a volume is its user's own: never formatted, and mounted as what is found on it."""
        if volume.format == RAW:
            return volume
        if volume.format not in (*FILE_SYSTEMS, BLANK):
            await pool.backend.access.detach(volume)
            await pool.backend.erase(volume)
            await pool.backend.access.attach(volume)
        return await self._save(pool, replace(volume, format=RAW))

    async def _undo_stage(self, pool: Pool, volume: Volume, staging: str, device: str) -> None:
        """Take away what a stage made, but for a device that was there before: it is somebody's."""
        # The first error is the one to be told; what cannot be taken away is found again at the next stage. Another volume
        # that is staged there, perhaps the very reason of the refusal, stays.
        with suppress(Exception):
            await pool.backend.access.unmount(volume, staging, its_own=True)
        with suppress(Exception):
            if not device:
                await pool.backend.access.detach(volume)

    async def _save(self, pool: Pool, volume: Volume) -> Volume:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)
        return volume

    def _key(self, volume_id: str) -> str:
        """What is locked to clean up after a volume, whether it still exists or not. Raises Unavailable for another owner's."""
        place = self._pools.parse_location(volume_id)
        return place[1] if place else volume_id

    def _unavailable_pool(self, volume_id: str) -> tuple[Pool, str] | None:
        """Pool and hash of a volume whose pool is away or dead: its pods must end, and what the kernel shows needs no pool."""
        place = self._pools.parse_location(volume_id)
        if place is not None:
            try:
                place[0].serving()
            except Unavailable:
                return place
        return None

    def _pool_for_cleanup(self, volume_id: str) -> tuple[Pool, Volume | None]:
        """Where to clean up after a volume: its pool, or the default where the id says nothing."""
        place = self._pools.locate(volume_id)
        return (place[0], place[0].volumes.get(place[1])) if place else (self._pools.default.serving(), None)


async def _as_found(pool: Pool, volume: Volume) -> Volume:
    """The volume with the file system that is on it now, for its record. Raises Precondition where it has none to be mounted."""
    is_now, there = await look(pool, volume)
    if is_now == RAW:
        raise Precondition(
            f"{volume.id} was used as a block device and holds {there or 'nothing that is known'}, no file system that could be "
            "mounted, and is never formatted: make ext4 or xfs on it as a block device, or go on using it as one"
        )
    return replace(volume, format=is_now)


def _refuse_unknown_format(volume: Volume) -> None:
    """Raise Precondition for a format state of another version: whether it may be emptied or mounted, only that one knows."""
    if volume.format not in {*FILE_SYSTEMS, RAW, BLANK} and not is_formatting(volume.format):
        raise Precondition(
            f"{volume.id} is recorded as {volume.format!r}, which version {__version__} of this driver does not know: it is "
            "neither mounted nor formatted; use the newer version that wrote this"
        )


def _is_stage(place: Sequence[str], staging: str) -> bool:
    """Whether a place where the volume is shown is this staging directory, or the device node inside it."""
    return staging in place or os.path.join(staging, STAGED_NODE) in place


def _check_path(path: str, what: str) -> str:
    """The path as the kernel will name it. Raises InvalidRequest."""
    if not path:
        raise InvalidRequest(f"{what} is missing: give an absolute path")
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_PATH_BYTES or ".." in path.split("/"):
        raise InvalidRequest(f"{what} {path!r} is not a plain absolute path: give one without '..'")
    return _real(path)


def _real(path: str) -> str:
    """An absolute path without doubled and trailing slashes, and without links on the way (the kubelet's directory may be one).

    The last component stays as it is: a link there is refused by whoever mounts.
    """
    parent, name = os.path.split("/" + os.path.normpath(path).lstrip("/"))
    return os.path.join(os.path.realpath(parent), name)


def _remove(target: str) -> None:
    """Remove an unpublished path: the protocol demands it gone. Whatever holds data of its own is left alone.

    So is what its user had before: `tidemark mount` marks it. Of a kubelet's paths none is marked.
    """
    if mount_points.is_kept(target):
        mount_points.unmark(target)
        return
    try:
        if os.path.isdir(target) and not os.path.islink(target):
            os.rmdir(target)
        elif os.path.islink(target) or not os.path.getsize(target):
            os.unlink(target)
        else:
            raise AlreadyExists(f"{target} is a file with content and is not removed: look at what lies there")
    except FileNotFoundError:
        return
    except OSError as error:
        raise AlreadyExists(
            f"{target} cannot be removed after unpublishing: {error.strerror}; look at what lies there"
        ) from error

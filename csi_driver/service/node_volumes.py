"""Volumes on this node: stage, publish and back. Each call asks the kernel what is staged; nothing is remembered."""

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
    Volume,
    VolumeCondition,
    VolumeUsage,
    formatting,
    is_formatting,
)
from csi_driver.domain.requests import FILE_SYSTEMS, asked_file_system, check_capability
from csi_driver.domain.sizes import check_range
from csi_driver.host.fs import mount_points
from csi_driver.service.checks import Checks
from csi_driver.service.conditions import recorded_condition
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.formats import detect_format
from csi_driver.service.pools import Pool
from csi_driver.service.volumes import unsupported

MAX_PATH_BYTES = 4096

log = structlog.get_logger()


class NodeVolumes:
    """Serves the calls of the CSI node service."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._pools = context.pools
        self._checks = Checks(context)

    async def stage(self, volume_id: str, staging: str, capability: Capability) -> None:
        """Attach, format once in a lifetime, check if the file system asks for it, mount and grow. May be repeated.

        Raises Busy while a check runs, NotMountable if no check repairs the file system, Precondition if it is mounted already
        and takes no more writes.
        """
        staging = _check_path(staging, "the staging path")
        check_capability(capability, made_before=True)
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.hold(pool, f"NodeStageVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.holds.ensure_not_held(volume, "staging")
            # A hold in the record has expired. A clock that is set back must not make it valid again: a pod may write from now on.
            recorded, volume = volume, replace(volume, hold=None)
            _ensure_known_format(volume)
            usage = await self._ensure_not_staged_elsewhere(pool, volume, staging)
            shown = bool(usage.device and usage.places)  # mounts of a detached device show nothing
            if capability.access == "mount" and not shown:
                volume = await _with_detected_format(pool, volume)
            reason = unsupported(volume, capability)
            if reason:
                raise Precondition(f"{volume_id} cannot be staged like this: {reason}")
            if volume != recorded and not _is_saved_later(
                pool, volume, capability, is_staged=staging in usage.paths or shown
            ):
                volume = await self._save(pool, volume)
            access = pool.backend.access
            try:
                if capability.access == "block":
                    await self._checks.ensure_not_running(pool, volume)
                    await access.attach(volume)
                    if staging not in usage.paths:  # else it is mounted there, and refused below
                        volume = await self._mark_raw(pool, volume)
                    await access.stage_block(volume, staging)
                else:
                    volume = await self._format_once(pool, volume, capability.fs_type)
                    fs_type, checked = volume.format, False
                    if not shown:
                        volume, checked = await self._checks.ensure_mountable(pool, volume, fs_type)
                    volume, may_grow = await self._mount(
                        pool, volume, staging, fs_type, capability.mount_flags, checked
                    )
                    if may_grow:
                        await self._grow_if_possible(pool, volume, staging)
            except BaseException:
                # Undo a half-done stage: after a final refusal the kubelet does not unstage.
                if shown:
                    await self._update_condition(pool, volume)
                else:
                    await self._undo_stage(pool, volume, staging, usage.device)
                raise

    async def unstage(self, volume_id: str, staging: str) -> None:
        """Take a stage away, verified, and the device with it. Unknown volumes and paths are fine."""
        staging = _check_path(staging, "the staging path")
        async with self._pools.locks.hold(f"NodeUnstageVolume of {volume_id}", [self._lock_key(volume_id)]):
            if unavailable := self._unavailable_pool(volume_id):
                await unavailable[0].backend.access.cleanup_unavailable(unavailable[1], staging, last=True)
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
                self._context.conditions.note(volume, recorded_condition(volume))

    async def publish(
        self, volume_id: str, staging: str, target: str, capability: Capability, read_only: bool = False
    ) -> None:
        """Mount a staged volume at `target`. May be repeated; raises AlreadyExists for other arguments."""
        target = _check_path(target, "the target path")
        check_capability(capability, made_before=True)
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        if not staging:
            raise Precondition(f"the staging path of {volume_id} is missing: stage the volume first and name the path")
        staging = _check_path(staging, "the staging path")
        read_only = read_only or capability.mode is AccessMode.READER
        async with self._pools.hold(pool, f"NodePublishVolume of {volume_id}", [volume.id.hash]):
            pool, volume = self._pools.volume(volume_id)
            self._context.holds.ensure_not_held(volume, "publishing")
            reason = unsupported(volume, capability)
            if not reason and capability.access == "mount" and volume.format == RAW:
                reason = "it was staged as a block device"
            if reason:
                raise Precondition(f"{volume_id} cannot be published like this: {reason}")
            use = await pool.backend.access.use(volume)
            if not any(_is_stage(place, staging) for place in use.places):
                raise Precondition(f"{volume_id} is not staged at {staging}: stage it there first")
            # The kubelet bind-mounts a published volume at paths of its own (raw blocks, subPath), and publishes again when it
            # starts: if the target has the volume already, this is not a second publish.
            is_repeated = any(target in place for place in use.places)
            others = [place[0] for place in use.places if not is_repeated and not _is_stage(place, staging)]
            if others and capability.mode is not AccessMode.MULTI_WRITER:
                raise Precondition(
                    f"{volume_id} is published at {', '.join(others)} and access mode {capability.mode.value} allows one "
                    "path only: unpublish it there first"
                )
            try:
                await pool.backend.access.bind(volume, staging, target, capability, read_only)
            except Precondition:
                await self._update_condition(pool, volume)
                raise

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Unmount a published volume and remove the path. An unknown volume or path is not an error."""
        target = _check_path(target, "the target path")
        async with self._pools.locks.hold(f"NodeUnpublishVolume of {volume_id}", [self._lock_key(volume_id)]):
            if unavailable := self._unavailable_pool(volume_id):
                await unavailable[0].backend.access.cleanup_unavailable(unavailable[1], target, last=False)
            else:
                pool, volume = self._pool_for_cleanup(volume_id)
                await pool.backend.access.unmount(volume, target)
            _remove(target)

    async def stats(self, volume_id: str, path: str) -> tuple[Volume, FileSystemStats]:
        """Return space and condition of a volume at one of its paths. Raises NotFound if it is not mounted there."""
        await self._pools.refresh()
        pool, volume, mount_path = await self._find_mount(volume_id, path)
        stats = await pool.backend.access.stats(volume, mount_path)
        self._context.conditions.note(volume, stats.condition)
        return volume, stats

    async def condition(self, volume_id: str) -> VolumeCondition | None:
        """Return what is wrong with a volume's file system, staged or not; None if nothing is known. Raises NotFound."""
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        condition = recorded_condition(volume) or await pool.backend.access.condition(volume)
        self._context.conditions.note(volume, condition)
        return condition

    async def expand(self, volume_id: str, path: str, size_range: SizeRange) -> Volume:
        """Grow the file system at `path` (or the device) to the volume's size, which ControllerExpandVolume changes."""
        check_range(size_range)
        await self._pools.refresh()
        pool, volume = self._pools.volume(volume_id)
        async with self._pools.hold(pool, f"NodeExpandVolume of {volume_id}", [volume.id.hash]):
            pool, volume, mount_path = await self._find_mount(volume_id, path)
            self._context.holds.ensure_not_held(volume, "expansion")
            if size_range.required > volume.size:
                raise OutOfRange(
                    f"{volume_id} has {volume.size} bytes, {size_range.required} are requested: expand the volume itself first"
                )
            if size_range.limit and size_range.limit < volume.size:
                raise OutOfRange(
                    f"{volume_id} has {volume.size} bytes, the limit is {size_range.limit}: volumes never shrink; request no limit"
                )
            await pool.backend.access.grow(volume, mount_path)
            return volume

    async def _find_mount(self, volume_id: str, path: str) -> tuple[Pool, Volume, str]:
        pool, volume = self._pools.volume(volume_id)
        if path.startswith("/") and "\0" not in path:
            path = _real(path)
        use = await pool.backend.access.use(volume)
        for mount_path in (view for place in use.places for view in place):
            if _is_stage((mount_path,), path):
                return pool, volume, mount_path
        raise NotFound(f"{volume_id} is not mounted at {path!r}: it is mounted at {', '.join(use.paths) or 'no path'}")

    async def _ensure_not_staged_elsewhere(self, pool: Pool, volume: Volume, staging: str) -> VolumeUsage:
        """Raise Precondition if the volume is staged at another path; returns its usage."""
        use = await pool.backend.access.use(volume)
        if use.places and not any(_is_stage(place, staging) for place in use.places):
            raise Precondition(f"{volume.id} is in use at {', '.join(use.paths)}: unstage it there first")
        return use

    async def _format_once(self, pool: Pool, volume: Volume, fs_type: str) -> Volume:
        """Make a file system on a volume that never had one and has no data at all, whatever a probe reports."""
        access = pool.backend.access
        asked = fs_type or asked_file_system(volume.request) or "ext4"
        if volume.format in (*FILE_SYSTEMS, RAW):
            return volume
        if volume.format != BLANK:
            # An interrupted mkfs: the volume was never mounted, so it has no data of a user.
            await access.detach(volume)
            await pool.backend.erase(volume)
        elif not await pool.backend.is_empty(volume):
            raise Precondition(
                f"{volume.id} was never formatted by this driver, but has data: it is not formatted; to read the data, "
                "take a snapshot and restore it with volumeMode Block"
            )
        volume = await self._save(pool, replace(volume, format=formatting(asked)))
        await access.make_file_system(volume, asked)
        return await self._save(pool, replace(volume, format=asked))

    async def _mount(
        self, pool: Pool, volume: Volume, staging: str, fs_type: str, flags: Sequence[str], checked: bool
    ) -> tuple[Volume, bool]:
        """Mount the volume; returns it, and whether its file system may grow. Starts a check if the kernel does not mount an ext4."""
        try:
            may_grow = await pool.backend.access.mount(volume, staging, fs_type, flags)
        except NotMountable as error:
            if fs_type == "ext4" and not checked:
                await self._checks.start(pool, volume, str(error))
            await self._checks.mark_damaged(pool, volume, str(error))
        return await self._checks.clear_damage(pool, volume), may_grow

    async def _grow_if_possible(self, pool: Pool, volume: Volume, staging: str) -> None:
        """Grow the file system to the volume's size; if that fails or takes too long, leave it to a later stage.

        The file system is mounted and complete: a pod that waits for its data need not wait for more space.
        """
        try:
            await pool.backend.access.grow(volume, staging)
        except (Precondition, OutOfSpace, TooSlow) as error:
            log.warning("file system not grown at this stage", volume=str(volume.id), why=str(error))

    async def _update_condition(self, pool: Pool, volume: Volume) -> None:
        """After a refusal, note the file system's condition, so that metrics and lists report it too."""
        with suppress(DriverError):
            self._context.conditions.note(volume, await pool.backend.access.condition(volume))

    async def _mark_raw(self, pool: Pool, volume: Volume) -> Volume:
        """Record that the volume was staged as a block device: its user formats it, and this driver never does."""
        if volume.format == RAW:
            return volume
        if volume.format not in (*FILE_SYSTEMS, BLANK):
            await pool.backend.access.detach(volume)
            await pool.backend.erase(volume)
            await pool.backend.access.attach(volume)
        return await self._save(pool, replace(volume, format=RAW))

    async def _undo_stage(self, pool: Pool, volume: Volume, staging: str, device: str) -> None:
        """Undo a stage, but leave a device that was attached before: it has another user."""
        # The caller gets the first error; what stays behind is found again at the next stage. Another volume that is staged
        # there, which may be the reason of the refusal, stays.
        with suppress(Exception):
            await pool.backend.access.unmount(volume, staging, its_own=True)
        with suppress(Exception):
            if not device:
                await pool.backend.access.detach(volume)

    async def _save(self, pool: Pool, volume: Volume) -> Volume:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)
        return volume

    def _lock_key(self, volume_id: str) -> str:
        """Return the key to lock for cleaning up after a volume, existing or not. Raises Unavailable for other owners' ids."""
        place = self._pools.parse_location(volume_id)
        return place[1] if place else volume_id

    def _unavailable_pool(self, volume_id: str) -> tuple[Pool, str] | None:
        """Return pool and hash of a volume whose pool is unavailable: its pods must end, and unmounting needs no pool."""
        place = self._pools.parse_location(volume_id)
        if place is not None:
            try:
                place[0].ensure_available()
            except Unavailable:
                return place
        return None

    def _pool_for_cleanup(self, volume_id: str) -> tuple[Pool, Volume | None]:
        """Return the pool with which to clean up after a volume: its own, or the default if the id names none."""
        place = self._pools.locate(volume_id)
        return (place[0], place[0].volumes.get(place[1])) if place else (self._pools.default.ensure_available(), None)


async def _with_detected_format(pool: Pool, volume: Volume) -> Volume:
    """Return the volume with the file system that it has now. Raises Precondition if that cannot be mounted."""
    current_format, detected = await detect_format(pool, volume)
    if current_format == RAW:
        raise Precondition(
            f"{volume.id} was used as a block device and has {detected or 'no known content'}, not a file system that can be "
            "mounted, and is never formatted: make ext4 or xfs on it as a block device, or continue to use it as one"
        )
    return replace(volume, format=current_format)


def _is_saved_later(pool: Pool, volume: Volume, capability: Capability, is_staged: bool) -> bool:
    """Return whether the stage will save the record again before anything is written to the volume, or could be.

    Where records are dear, what is to be saved now goes with that: as an intent to format, or as the note that it is raw.
    """
    if is_staged or not pool.backend.traits.records_are_dear:
        return False
    return volume.format != RAW and (capability.access == "block" or volume.format not in FILE_SYSTEMS)


def _ensure_known_format(volume: Volume) -> None:
    """Raise Precondition for a format state of another version: only that one knows whether it may be erased or mounted."""
    if volume.format not in {*FILE_SYSTEMS, RAW, BLANK} and not is_formatting(volume.format):
        raise Precondition(
            f"{volume.id} is recorded as {volume.format!r}, which version {__version__} of this driver does not know: it is "
            "neither mounted nor formatted; use the newer version that wrote this"
        )


def _is_stage(place: Sequence[str], staging: str) -> bool:
    """Return whether a mount of the volume is at this staging directory, or at the device node inside it."""
    return staging in place or os.path.join(staging, STAGED_NODE) in place


def _check_path(path: str, what: str) -> str:
    """Return the path as the kernel names it. Raises InvalidRequest."""
    if not path:
        raise InvalidRequest(f"{what} is missing: give an absolute path")
    if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > MAX_PATH_BYTES or ".." in path.split("/"):
        raise InvalidRequest(f"{what} {path!r} is not a plain absolute path: give one without '..'")
    return _real(path)


def _real(path: str) -> str:
    """Return an absolute path without doubled and trailing slashes and without links (the kubelet's directory may be one).

    The last component stays as it is: mounting refuses a link there.
    """
    parent, name = os.path.split("/" + os.path.normpath(path).lstrip("/"))
    return os.path.join(os.path.realpath(parent), name)


def _remove(target: str) -> None:
    """Remove an unpublished path, as CSI demands. A file or directory with content is kept.

    So is a path that existed before: `tidemark mount` marks it. A kubelet's paths are never marked.
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
            raise AlreadyExists(f"{target} is a file with content and is not removed: inspect it")
    except FileNotFoundError:
        return
    except OSError as error:
        raise AlreadyExists(f"{target} cannot be removed after unpublishing: {error.strerror}; inspect it") from error

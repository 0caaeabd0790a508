"""Snapshots of a reflink pool: several images cloned at one moment, their file systems frozen for it where they are mounted."""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csi_driver.backends import condition
from csi_driver.backends.base import SnapshotTimings
from csi_driver.backends.block_access import FAST_TIMEOUT, SLOW_TIMEOUT
from csi_driver.backends.freeze_session import FreezeSession, MountedVolume
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.backends.reflink.loop_devices import LoopDevices
from csi_driver.backends.volume_helpers import errno_of
from csi_driver.domain.errors import Busy, Precondition, Unavailable
from csi_driver.domain.model import Volume, VolumeCondition
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.fs import extents, files, mountinfo

_COUNT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ImageClone:
    """One image to be cloned: its volume, its file, and the empty file that is to share its blocks."""

    volume: Volume
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """When the snapshot was (Unix nanoseconds), and what it cost. `conditions`: what was wrong with volumes then, by their hashes."""

    moment: int
    timings: SnapshotTimings
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mounted:
    """A volume that is mounted: to be frozen, unless nothing can be written to it any more."""

    clone: ImageClone
    mounted: MountedVolume
    fs_type: str
    condition: VolumeCondition | None

    @property
    def device(self) -> BlockDevice:
        return self.mounted.device


class Snapshotter:
    """Takes snapshots of volumes of one pool; the caller holds their locks, so that nobody stages or unstages them meanwhile."""

    def __init__(
        self,
        layout: Layout,
        devices: LoopDevices,
        deadline: float,
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._layout = layout
        self._devices = devices
        self._in_thread = in_thread
        self.freezes = FreezeSession(
            layout.name,
            devices.jobs,
            deadline,
            in_thread,
            self._explain,
            lambda name: layout.crash_point(name),  # noqa: PLW0108 - a test replaces it later
        )

    async def clone(self, clones: Sequence[ImageClone]) -> SnapshotResult:
        """Clone all at one moment. Raises Busy past the deadline, Precondition if it cannot be one moment.

        A file system that takes no more writes is flushed, not frozen (the kernel refuses to freeze it): it cannot change.
        """
        mounted: list[_Mounted] = []
        raw: list[tuple[Volume, BlockDevice]] = []
        unseen: list[tuple[Volume, BlockDevice]] = []
        for clone in clones:
            device = await self._devices.find(clone.volume)
            if device is None:
                continue
            views = mountinfo.mounts_of(device.major, device.minor, device.name)
            mount = next((m for m in views if (m.major, m.minor) == (device.major, device.minor)), None)
            if mount is not None:
                status = await self._in_thread(clone.source.stat)
                member = MountedVolume(clone.volume, device, mount.point, (status.st_dev, status.st_ino))
                abnormal = condition.of_ext4(device.name, mount.super_options) if mount.fs_type == "ext4" else None
                mounted.append(_Mounted(clone, member, mount.fs_type, abnormal))
            else:
                # A device that is mounted nowhere is only left over; what was written through it counts all the same.
                (raw if views else unseen).append((clone.volume, device))
        if raw and len(clones) > 1:
            raise Precondition(
                f"{raw[0][0].id} is in use as a raw block device, which cannot be frozen; snapshot it individually, or in a "
                "group while it is not staged"
            )
        attached = [*raw, *unseen, *((member.clone.volume, member.device) for member in mounted)]
        await self.freezes.thaw_left(attached)
        for volume, device in unseen:
            # What was written to it and is not on the device yet would be missing, and nobody here can freeze it.
            if freeze_state.living(device.name):
                raise Busy(
                    f"{volume.id} is mounted where the agent does not see it, in another mount namespace: end what holds "
                    f"{device.path} there (grep {device.name} /proc/*/mountinfo), then try again"
                )
        for volume, device in raw + unseen:
            await self._devices.jobs.run(volume, "sync_device", SLOW_TIMEOUT, device=device.path)
        # What is mounted nowhere cannot change now: no writer waits for its clone.
        started, moment = time.monotonic(), time.time_ns()
        in_use = [member.clone for member in mounted]
        await self._in_thread(_clone_all, [clone for clone in clones if clone not in in_use])
        if not mounted:
            return SnapshotResult(moment, SnapshotTimings(0.0, time.monotonic() - started))
        return await self._clone_mounted(mounted)

    async def _clone_mounted(self, mounted: list[_Mounted]) -> SnapshotResult:
        stopped = [member for member in mounted if member.condition is not None and member.condition.stopped]
        live = [member for member in mounted if member not in stopped]
        for member in stopped:
            await self._devices.jobs.run(member.clone.volume, "sync_device", SLOW_TIMEOUT, device=member.device.path)
        started, moment = time.monotonic(), time.time_ns()
        await self._in_thread(_clone_all, [member.clone for member in stopped])
        result = SnapshotResult(moment, SnapshotTimings(0.0, time.monotonic() - started))
        if live:
            try:
                result = await self._clone_frozen(live)
            except Unavailable as refused:
                # What refuses a freeze for an error of its own takes no writes either. Of an XFS only this tells it.
                alone = len(live) == 1
                checked = [replace(member, condition=await self._condition(member, alone, refused)) for member in live]
                if not any(member.condition is not None and member.condition.stopped for member in checked):
                    raise
                return await self._clone_mounted([*stopped, *checked])
        troubles = {m.clone.volume.id.hash: m.condition.text for m in mounted if m.condition is not None}
        return replace(result, conditions=troubles)

    async def _clone_frozen(self, members: Sequence[_Mounted]) -> SnapshotResult:
        clones = [{"source": str(m.clone.source), "target": str(m.clone.target)} for m in members]
        action = {"kind": "clone_files", "files": clones}
        result = await self.freezes.run([member.mounted for member in members], action)
        return SnapshotResult(result.moment, SnapshotTimings(result.frozen, result.action))

    async def _condition(self, member: _Mounted, alone: bool, refused: Unavailable) -> VolumeCondition | None:
        """Return what is wrong with a file system whose freeze was refused, which was `alone` in it or not."""
        device, point = member.device, member.mounted.point
        if member.fs_type != "ext4":
            number = [device.major, device.minor]
            shut = await self._devices.jobs.run(
                member.clone.volume, "is_shut_down", FAST_TIMEOUT, point=point, device_number=number
            )
            return condition.of_shut_down(member.fs_type) if shut else None
        views = mountinfo.mounts_of(device.major, device.minor, device.name)
        mount = next((m for m in views if (m.major, m.minor) == (device.major, device.minor)), None)
        abnormal = condition.of_ext4(device.name, mount.super_options) if mount is not None else None
        if abnormal is not None and alone and errno_of(refused) == errno.EROFS:
            return replace(abnormal, stopped=True)  # a kernel that has no word for it in mountinfo
        return abnormal

    async def _explain(self, volumes: Sequence[Volume]) -> str:
        return ", ".join([f"{volume.id} has {await self._extents(volume)} extents" for volume in volumes])

    async def _extents(self, volume: Volume) -> str:
        # Counting waits for a clone that runs: of one that cannot be killed nothing is known, and nobody waits for it.
        counting = asyncio.ensure_future(self._in_thread(_extent_count, self._layout.volumes / volume.id.hash / IMAGE))
        await asyncio.wait({counting}, timeout=_COUNT_SECONDS)
        return str(counting.result()) if counting.done() and not counting.exception() else "an unknown number of"


def _clone_all(clones: Sequence[ImageClone]) -> None:
    for clone in clones:
        with clone.source.open("rb") as source, clone.target.open("r+b") as target:
            files.reflink(source.fileno(), target.fileno())


def _extent_count(image: Path) -> int:
    with image.open("rb") as file:
        return extents.extent_count(file.fileno())

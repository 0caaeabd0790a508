"""The moment of a snapshot, for any technology of block devices: who uses the volumes now, what has to be frozen, and for how long.

A technology says what happens at that moment (SnapshotTechnology); whom it stops for it, in which order, and what is done about
a file system that cannot be frozen, is decided here, once.
"""

import errno
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from csi_driver.backends import condition
from csi_driver.backends.base import Draft, Moment, SnapshotTimings
from csi_driver.backends.block_access import FAST_TIMEOUT, SLOW_TIMEOUT
from csi_driver.backends.devices import Devices
from csi_driver.backends.freeze_session import FreezeSession, MountedVolume
from csi_driver.backends.volume_helpers import errno_of
from csi_driver.domain.errors import Busy, Precondition, Unavailable
from csi_driver.domain.model import Volume, VolumeCondition
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.fs import mountinfo


class SnapshotTechnology(Protocol):
    """What a technology does at the moment of a snapshot."""

    suspends: bool
    """Whether a raw volume in use is stopped for the moment. If not, it is flushed, and cannot be in a group with others."""

    async def take_idle(self, draft: Draft[Any], sources: Sequence[Volume]) -> None:
        """Take the content of sources that nobody writes to now: without a device, or flushed and mounted nowhere. Raises OSError."""
        ...

    def action(self, draft: Draft[Any], sources: Sequence[Volume]) -> Mapping[str, Any]:
        """Return what takes the content of sources that are stopped, as host/freeze/action.py reads it."""
        ...

    async def member(self, volume: Volume, device: BlockDevice, mount: mountinfo.Mount | None) -> MountedVolume:
        """Return what a freeze needs of a volume in use; no mount: it is a raw volume, which is suspended. Raises OSError."""
        ...

    async def explain(self, volume: Volume) -> str:
        """Return what makes a volume's snapshot slow, for a refusal: "has 12000 extents"."""
        ...


@dataclass(frozen=True, slots=True)
class _Mounted:
    """A volume that is mounted: to be frozen, unless nothing can be written to it any more."""

    mounted: MountedVolume
    fs_type: str
    condition: VolumeCondition | None

    @property
    def volume(self) -> Volume:
        return self.mounted.volume

    @property
    def device(self) -> BlockDevice:
        return self.mounted.device


@dataclass(slots=True)
class _Usage:
    """How the sources of a draft are used now. `raw`: as a device; `unseen`: by nobody here, though a device is left."""

    mounted: list[_Mounted]
    raw: list[tuple[Volume, BlockDevice]]
    unseen: list[tuple[Volume, BlockDevice]]


class Snapshotter:
    """Takes the moment of snapshots of one pool; the caller holds the volumes' locks, so that nobody stages or unstages them meanwhile.

    `deadline`: seconds that a freeze may take. `crash_point`: for tests alone.
    """

    def __init__(
        self,
        pool: str,
        devices: Devices,
        technology: SnapshotTechnology,
        deadline: float,
        in_thread: Callable[..., Awaitable[Any]],
        crash_point: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._devices = devices
        self._technology = technology
        self.freezes = FreezeSession(pool, devices.jobs, deadline, in_thread, self._explain, crash_point)

    async def quick(self, draft: Draft[Any]) -> Moment:
        """Take all sources of a draft at one moment. Raises Busy past the deadline, Precondition if it cannot be one moment.

        A file system that takes no more writes is flushed, not frozen (the kernel refuses to freeze it): it cannot change.
        """
        usage = await self._usage(draft.sources)
        if usage.raw and len(draft.sources) > 1 and not self._technology.suspends:
            raise Precondition(
                f"{usage.raw[0][0].id} is in use as a raw block device, which cannot be frozen; snapshot it individually, or in a "
                "group while it is not staged"
            )
        attached = [*usage.raw, *usage.unseen, *((member.volume, member.device) for member in usage.mounted)]
        await self.freezes.thaw_left(attached)
        for volume, device in usage.unseen:
            # What was written to it and is not on the device yet would be missing, and nobody here can freeze it.
            if freeze_state.living(device.name):
                raise Busy(
                    f"{volume.id} is mounted where the agent does not see it, in another mount namespace: end what holds "
                    f"{device.path} there (grep {device.name} /proc/*/mountinfo), then try again"
                )
        for volume, device in usage.raw + usage.unseen:
            await self._devices.jobs.run(volume, "sync_device", SLOW_TIMEOUT, device=device.path)
        stopped = usage.raw if self._technology.suspends else []
        suspended = [await self._technology.member(volume, device, None) for volume, device in stopped]
        # What is mounted nowhere cannot change now: no writer waits for its clone.
        in_use = {member.volume.id.hash for member in usage.mounted} | {member.volume.id.hash for member in suspended}
        result = await self._take_idle(draft, [source for source in draft.sources if source.id.hash not in in_use])
        return await self._take_used(draft, usage.mounted, suspended) if in_use else result

    async def _usage(self, sources: Sequence[Volume]) -> _Usage:
        usage = _Usage([], [], [])
        for source in sources:
            device = await self._devices.find(source)
            if device is None:
                continue
            views = mountinfo.mounts_of(device.major, device.minor, device.name)
            mount = next((m for m in views if (m.major, m.minor) == (device.major, device.minor)), None)
            if mount is not None:
                member = await self._technology.member(source, device, mount)
                abnormal = condition.of_ext4(device.name, mount.super_options) if mount.fs_type == "ext4" else None
                usage.mounted.append(_Mounted(member, mount.fs_type, abnormal))
            else:
                # A device that is mounted nowhere is only left over; what was written through it counts all the same.
                (usage.raw if views else usage.unseen).append((source, device))
        return usage

    async def _take_idle(self, draft: Draft[Any], sources: Sequence[Volume]) -> Moment:
        started, moment = time.monotonic(), time.time_ns()
        await self._technology.take_idle(draft, sources)
        return Moment(moment, SnapshotTimings(0.0, time.monotonic() - started))

    async def _take_used(
        self, draft: Draft[Any], mounted: Sequence[_Mounted], suspended: Sequence[MountedVolume]
    ) -> Moment:
        stopped = [member for member in mounted if member.condition is not None and member.condition.stopped]
        live = [member for member in mounted if member not in stopped]
        for member in stopped:
            await self._devices.jobs.run(member.volume, "sync_device", SLOW_TIMEOUT, device=member.device.path)
        result = await self._take_idle(draft, [member.volume for member in stopped])
        if live or suspended:
            try:
                result = await self._take_frozen(draft, [*(member.mounted for member in live), *suspended])
            except Unavailable as refused:
                # What refuses a freeze for an error of its own takes no writes either. Of an XFS only this tells it.
                alone = len(live) == 1
                checked = [replace(member, condition=await self._condition(member, alone, refused)) for member in live]
                if not any(member.condition is not None and member.condition.stopped for member in checked):
                    raise
                return await self._take_used(draft, [*stopped, *checked], suspended)
        troubles = {m.volume.id.hash: m.condition.text for m in mounted if m.condition is not None}
        return replace(result, conditions=troubles)

    async def _take_frozen(self, draft: Draft[Any], members: Sequence[MountedVolume]) -> Moment:
        action = self._technology.action(draft, [member.volume for member in members])
        result = await self.freezes.run(members, action)
        return Moment(result.moment, SnapshotTimings(result.frozen, result.action))

    async def _condition(self, member: _Mounted, alone: bool, refused: Unavailable) -> VolumeCondition | None:
        """Return what is wrong with a file system whose freeze was refused, which was `alone` in it or not."""
        device, point = member.device, member.mounted.point
        if member.fs_type != "ext4":
            number = [device.major, device.minor]
            shut = await self._devices.jobs.run(
                member.volume, "is_shut_down", FAST_TIMEOUT, point=point, device_number=number
            )
            return condition.of_shut_down(member.fs_type) if shut else None
        views = mountinfo.mounts_of(device.major, device.minor, device.name)
        mount = next((m for m in views if (m.major, m.minor) == (device.major, device.minor)), None)
        abnormal = condition.of_ext4(device.name, mount.super_options) if mount is not None else None
        if abnormal is not None and alone and errno_of(refused) == errno.EROFS:
            return replace(abnormal, stopped=True)  # a kernel that has no word for it in mountinfo
        return abnormal

    async def _explain(self, volumes: Sequence[Volume]) -> str:
        return ", ".join([f"{volume.id} {await self._technology.explain(volume)}" for volume in volumes])

"""The cut: several images cloned at one moment, their file systems frozen for it, and thawed whatever happens."""

import asyncio
import errno
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csi_driver.backends import condition
from csi_driver.backends.base import SnapshotTimings
from csi_driver.backends.block_access import QUICK, SLOW
from csi_driver.backends.reflink.layout import Layout
from csi_driver.backends.reflink.loop_devices import LoopDevices
from csi_driver.backends.volume_helpers import errno_of, finish_despite_cancel, translate
from csi_driver.domain.errors import Busy, DriverError, Precondition, Unavailable
from csi_driver.domain.model import Trouble, Volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.freeze import journal
from csi_driver.host.freeze import state as freeze_state
from csi_driver.host.fs import extents, files, mountinfo
from csi_driver.host.helper.client import HelperPool, JobFailed, JobStuck
from csi_driver.host.helper.job import JobEnded

_SYNC_SECONDS = 30.0
_COUNT_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_SPARE = 10.0
"""Seconds beyond its own limits after which a cut that does not answer is given up."""


@dataclass(frozen=True, slots=True)
class ImageClone:
    """One image to be cloned: its volume, its file, and the empty file that is to share its blocks."""

    volume: Volume
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """When the cut was (Unix nanoseconds), and what it cost. `conditions`: what was wrong with volumes then, by their hashes."""

    moment: int
    report: SnapshotTimings
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mounted:
    """A volume that is mounted: to be frozen by these facts, unless nothing can be written to it any more."""

    clone: ImageClone
    device: BlockDevice
    fs_type: str
    facts: dict[str, object]
    trouble: Trouble | None


class Snapshotter:
    """Cuts volumes of one pool; the caller holds their locks, so that nobody stages or unstages them meanwhile."""

    def __init__(
        self,
        layout: Layout,
        devices: LoopDevices,
        children: HelperPool,
        deadline: float,
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._layout = layout
        self._devices = devices
        self._children = children
        self._deadline = deadline
        self._in_thread = in_thread
        self._unended: dict[str, JobEnded] = {}
        """Cuts that were still at work when they were answered, by their announcements."""
        self._ends: set[asyncio.Task[None]] = set()
        self._dropping = asyncio.Lock()  # members of a group may take their parts of its announcement back at once

    async def cut(self, clones: Sequence[ImageClone]) -> SnapshotResult:
        """Clone all at one moment. Raises Busy past the deadline, Precondition where it cannot be one moment.

        A file system that takes no more writes is flushed, not frozen (the kernel refuses to freeze it): it cannot change.
        """
        mounted: list[_Mounted] = []
        raw: list[tuple[Volume, BlockDevice]] = []
        unseen: list[tuple[Volume, BlockDevice]] = []
        held: dict[tuple[int, int], Volume] = {}
        for clone in clones:
            device = await self._devices.find(clone.volume)
            if device is None:
                continue
            status = await self._in_thread(clone.source.stat)
            backing = (status.st_dev, status.st_ino)
            held[backing] = clone.volume
            shown = mountinfo.mounts_of(device.major, device.minor, device.name)
            mount = next((m for m in shown if (m.major, m.minor) == (device.major, device.minor)), None)
            if mount is not None:
                facts = journal.entry_for(mount.point, device.major, device.minor, backing)
                trouble = condition.of_ext4(device.name, mount.super_options) if mount.fs_type == "ext4" else None
                mounted.append(_Mounted(clone, device, mount.fs_type, facts, trouble))
            else:
                # A device that is shown nowhere is only left over; what was written through it counts all the same.
                (raw if shown else unseen).append((clone.volume, device))
        if raw and len(clones) > 1:
            raise Precondition(
                f"{raw[0][0].id} is in use as a raw block device, which cannot be held still: such a volume can be cut alone, "
                "or in a group while it is not staged"
            )
        await self._thaw_left(held)
        for volume, device in unseen:
            # What was written to it and is not on the device yet would be missing, and nobody here can hold it still.
            if freeze_state.living(device.name):
                raise Busy(
                    f"{volume.id} is mounted where the agent does not see it, in another mount namespace: end what holds "
                    f"{device.path} there (grep {device.name} /proc/*/mountinfo), then try again"
                )
        for volume, device in raw + unseen:
            await self._devices.jobs.run(volume, "sync_device", SLOW, device=device.path)
        # What is mounted nowhere cannot change now: no writer waits for its clone.
        started, moment = time.monotonic(), time.time_ns()
        in_use = [member.clone for member in mounted]
        await self._in_thread(_clone_all, [clone for clone in clones if clone not in in_use])
        if not mounted:
            return SnapshotResult(moment, SnapshotTimings(0.0, time.monotonic() - started))
        return await self._cut_mounted(mounted)

    async def _cut_mounted(self, mounted: list[_Mounted]) -> SnapshotResult:
        stopped = [member for member in mounted if member.trouble is not None and member.trouble.stopped]
        live = [member for member in mounted if member not in stopped]
        for member in stopped:
            await self._devices.jobs.run(member.clone.volume, "sync_device", SLOW, device=member.device.path)
        started, moment = time.monotonic(), time.time_ns()
        await self._in_thread(_clone_all, [member.clone for member in stopped])
        cut = SnapshotResult(moment, SnapshotTimings(0.0, time.monotonic() - started))
        if live:
            try:
                cut = await self._frozen([member.clone for member in live], [member.facts for member in live])
            except Unavailable as refused:
                # What refuses a freeze for an error of its own takes no writes either. Of an XFS only this tells it.
                alone = len(live) == 1
                seen = [replace(member, trouble=await self._trouble(member, alone, refused)) for member in live]
                if not any(member.trouble is not None and member.trouble.stopped for member in seen):
                    raise
                return await self._cut_mounted([*stopped, *seen])
        troubles = {m.clone.volume.id.hash: m.trouble.text for m in mounted if m.trouble is not None}
        return replace(cut, conditions=troubles)

    async def _trouble(self, member: _Mounted, alone: bool, refused: Unavailable) -> Trouble | None:
        """What is wrong with a file system whose freeze was refused, which was `alone` in it or not."""
        device, point = member.device, member.facts["point"]
        if member.fs_type != "ext4":
            number = [device.major, device.minor]
            shut = await self._devices.jobs.run(
                member.clone.volume, "is_shut_down", QUICK, point=point, device_number=number
            )
            return condition.of_shut_down(member.fs_type) if shut else None
        shown = mountinfo.mounts_of(device.major, device.minor, device.name)
        mount = next((m for m in shown if (m.major, m.minor) == (device.major, device.minor)), None)
        trouble = condition.of_ext4(device.name, mount.super_options) if mount is not None else None
        if trouble is not None and alone and errno_of(refused) == errno.EROFS:
            return replace(trouble, stopped=True)  # a kernel that has no word for it in mountinfo
        return trouble

    async def _frozen(self, clones: Sequence[ImageClone], mounts: list[dict[str, object]]) -> SnapshotResult:
        # Of this cut alone: what an earlier one announced and may have left frozen must outlast it.
        key = f"{clones[0].volume.id.hash}-{secrets.token_hex(4)}"
        for clone in clones:
            self._devices.jobs.refuse_hanging(clone.volume)
        # Announced durably before it is made: the kernel does not tell whether a file system is frozen.
        try:
            await self._announce(key, mounts)
            self._layout.crash_point("freeze announced")
            result = await finish_despite_cancel(
                self._children.run(
                    "cut",
                    _SYNC_SECONDS + self._deadline + _SPARE,
                    mounts=mounts,
                    clones=[{"source": str(c.source), "target": str(c.target)} for c in clones],
                    deadline=self._deadline,
                    sync_timeout=_SYNC_SECONDS,
                )
            )
        except asyncio.CancelledError:
            await self._withdraw(key)
            raise
        except (JobFailed, JobStuck) as error:
            for clone in clones:
                await self._devices.jobs.remember(clone.volume, "cut", error.gone)
            if not error.gone.is_set():
                self._unended[key] = error.gone
                end = asyncio.create_task(self._end(key, error.gone), name=f"end of the cut {key}")
                self._ends.add(end)
                end.add_done_callback(self._ends.discard)
            elif not error.gone.frozen:
                await self._withdraw(key)
            raise await self._refusal(clones, error) from error
        self._layout.crash_point("thawed")
        await self._withdraw(key)
        return SnapshotResult(
            int(result["moment"]), SnapshotTimings(float(result["frozen_seconds"]), float(result["clone_seconds"]))
        )

    async def _announce(self, key: str, mounts: list[dict[str, object]]) -> None:
        try:
            await self._in_thread(journal.record, str(self._layout.freezes), key, mounts)
        except OSError:
            await self._withdraw(key)  # it may be there, though not durably, and nothing is frozen
            raise

    async def _withdraw(self, key: str) -> None:
        await self._in_thread(journal.remove, str(self._layout.freezes), key)

    async def _end(self, key: str, gone: JobEnded) -> None:
        """Take back what a cut announced that ends after its answer, if it ends well: whoever freezes then is somebody else."""
        await gone.wait()
        if not gone.frozen:
            with suppress(OSError):  # a pool in trouble: it stays announced
                await self._withdraw(key)
        del self._unended[key]

    async def close(self) -> None:
        """Wait for no cut any more. What is announced stays so: the next start looks at it."""
        for end in self._ends:
            end.cancel()
        if self._ends:
            await asyncio.wait(self._ends, timeout=_CLOSE_SECONDS)

    async def _refusal(self, clones: Sequence[ImageClone], error: JobFailed | JobStuck) -> DriverError:
        if isinstance(error, JobStuck) or error.type in {"Deadline", "SyncTimeout", "StillFrozen", "ThawFailed"}:
            counts = ", ".join([f"{c.volume.id} has {await self._extents(c)} extents" for c in clones])
            return Busy(
                f"the cut was given up and undone ({error}): {counts}; try again when the volume is quieter, or raise "
                f"--freeze-deadline above {self._deadline:g} s"
            )
        if error.type in {"NotOurs", "ThawedElsewhere"}:
            return Busy(f"the mount changed during the cut, which was undone ({error.message}): try again")
        if error.type == "FrozenElsewhere":
            return Precondition(f"{error.message} (fsfreeze -u), then try again")
        return translate(error)

    async def _extents(self, clone: ImageClone) -> str:
        # Counting waits for a clone that runs: of one that cannot be killed nothing is known, and nobody waits for it.
        counting = asyncio.ensure_future(self._in_thread(_extent_count, clone.source))
        await asyncio.wait({counting}, timeout=_COUNT_SECONDS)
        return str(counting.result()) if counting.done() and not counting.exception() else "an unknown number of"

    async def _thaw_left(self, held: dict[tuple[int, int], Volume]) -> None:
        """Thaw what an earlier cut of these volumes, by their images, left frozen: it is announced, so it is ours.

        Nothing else of that announcement: another volume may be in a cut of its own now. Raises Busy where it stays frozen.
        """
        directory = str(self._layout.freezes)
        unended = dict(self._unended)
        standing = await self._in_thread(journal.announced, directory) if held else {}
        for key, facts in standing.items():
            gone = unended.get(key)
            if gone is not None and gone.is_set() and not gone.frozen:
                continue  # it has ended well, and is being taken back
            for fact in self._of_this_boot(key, facts):
                volume = held.get(tuple(fact.get("backing") or ()))
                if volume is None:
                    continue
                try:
                    await self._devices.jobs.run(volume, "thaw", QUICK, mounts=[fact])
                except DriverError as error:
                    raise Busy(f"an earlier cut of {volume.id} may have left it frozen: {error}") from error
                async with self._dropping:
                    await self._in_thread(journal.remove_entry, directory, key, fact)

    async def thaw_announced(self) -> None:
        """At start: thaw exactly what an earlier agent announced and cannot have thawed, of this boot of the kernel.

        Raises Precondition where one announcement is another version's, after all that the others tell is done.
        """
        refused: Precondition | None = None
        for key, found in (await self._in_thread(journal.announced, str(self._layout.freezes))).items():
            try:
                mounts = self._of_this_boot(key, found)
                if mounts:
                    await self._children.run("thaw", SLOW, mounts=mounts)
            except Precondition as error:
                refused = error
                continue
            except (JobFailed, JobStuck):
                # It stays announced, and its volume answers for itself; the others are served.
                continue
            await self._withdraw(key)
        if refused is not None:
            raise refused

    def _of_this_boot(self, key: str, found: object) -> list[dict[str, Any]]:
        """What an announcement says is frozen. Raises Precondition where nobody here can tell."""
        try:
            return journal.of_boot(found, journal.boot_id())
        except ValueError as error:
            raise Precondition(
                f"pool {self._layout.name}: {self._layout.freezes}/{key}.frozen.json tells of frozen file systems and is not "
                f"followed: {error}; start the newer driver that wrote it, or thaw what is frozen (fsfreeze -u) and remove it"
            ) from error


def _clone_all(clones: Sequence[ImageClone]) -> None:
    for clone in clones:
        with clone.source.open("rb") as source, clone.target.open("r+b") as target:
            files.reflink(source.fileno(), target.fileno())


def _extent_count(image: Path) -> int:
    with image.open("rb") as file:
        return extents.extent_count(file.fileno())

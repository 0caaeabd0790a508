"""The cut: several images cloned at one moment, their file systems frozen for it, and thawed whatever happens."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_driver.backends.base import CutReport
from csi_driver.backends.jobs import to_its_end, translate
from csi_driver.backends.kernel import QUICK, SLOW, BlockDevice
from csi_driver.backends.reflink.layout import Layout
from csi_driver.backends.reflink.loops import LoopDevices
from csi_driver.domain.errors import Busy, DriverError, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host import announcements, extents, files, frozen, mountinfo
from csi_driver.host.children import Children, JobFailed, JobStuck
from csi_driver.host.runs import Gone

_SYNC_SECONDS = 30.0
_COUNT_SECONDS = 2.0
_CLOSE_SECONDS = 5.0
_SPARE = 10.0
"""Seconds beyond its own limits after which a cut that does not answer is given up."""


@dataclass(frozen=True, slots=True)
class Clone:
    """One image to be cloned: its volume, its file, and the empty file that is to share its blocks."""

    volume: Volume
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Moment:
    """When the cut was (Unix nanoseconds), and what it cost."""

    moment: int
    report: CutReport


class Cutter:
    """Cuts volumes of one pool; the caller holds their locks, so that nobody stages or unstages them meanwhile."""

    def __init__(
        self,
        layout: Layout,
        devices: LoopDevices,
        children: Children,
        deadline: float,
        in_thread: Callable[..., Awaitable[Any]],
    ) -> None:
        self._layout = layout
        self._devices = devices
        self._children = children
        self._deadline = deadline
        self._in_thread = in_thread
        self._unended: dict[str, Gone] = {}
        """Cuts that were still at work when they were answered, by their announcements."""
        self._ends: set[asyncio.Task[None]] = set()
        self._dropping = asyncio.Lock()  # members of a group may take their parts of its announcement back at once

    async def cut(self, clones: Sequence[Clone]) -> Moment:
        """Clone all at one moment. Raises Busy past the deadline, Precondition where it cannot be one moment."""
        mounts: list[dict[str, object]] = []
        mounted: list[Clone] = []
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
            points = [m.point for m in shown if (m.major, m.minor) == (device.major, device.minor)]
            if points:
                mounts.append(announcements.freeze_facts(points[0], device.major, device.minor, backing))
                mounted.append(clone)
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
            if frozen.living(device.name):
                raise Busy(
                    f"{volume.id} is mounted where the agent does not see it, in another mount namespace: end what holds "
                    f"{device.path} there (grep {device.name} /proc/*/mountinfo), then try again"
                )
        for volume, device in raw + unseen:
            await self._devices.jobs.run(volume, "sync_device", SLOW, device=device.path)
        # What is mounted nowhere cannot change now: no writer waits for its clone.
        started, moment = time.monotonic(), time.time_ns()
        await self._in_thread(_clone_all, [clone for clone in clones if clone not in mounted])
        if not mounts:
            return Moment(moment, CutReport(0.0, time.monotonic() - started))
        return await self._frozen(mounted, mounts)

    async def _frozen(self, clones: Sequence[Clone], mounts: list[dict[str, object]]) -> Moment:
        # Of this cut alone: what an earlier one announced and may have left frozen must outlast it.
        key = f"{clones[0].volume.id.hash}-{secrets.token_hex(4)}"
        for clone in clones:
            self._devices.jobs.refuse_hanging(clone.volume)
        # Announced durably before it is made: the kernel does not tell whether a file system is frozen.
        try:
            await self._announce(key, mounts)
            self._layout.crash_point("freeze announced")
            result = await to_its_end(
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
        return Moment(int(result["moment"]), CutReport(float(result["frozen_seconds"]), float(result["clone_seconds"])))

    async def _announce(self, key: str, mounts: list[dict[str, object]]) -> None:
        try:
            await self._in_thread(announcements.announce, str(self._layout.freezes), key, mounts)
        except OSError:
            await self._withdraw(key)  # it may be there, though not durably, and nothing is frozen
            raise

    async def _withdraw(self, key: str) -> None:
        await self._in_thread(announcements.withdraw, str(self._layout.freezes), key)

    async def _end(self, key: str, gone: Gone) -> None:
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

    async def _refusal(self, clones: Sequence[Clone], error: JobFailed | JobStuck) -> DriverError:
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

    async def _extents(self, clone: Clone) -> str:
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
        standing = await self._in_thread(announcements.announced, directory) if held else {}
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
                    await self._in_thread(announcements.drop, directory, key, fact)

    async def thaw_announced(self) -> None:
        """At start: thaw exactly what an earlier agent announced and cannot have thawed, of this boot of the kernel.

        Raises Precondition where one announcement is another version's, after all that the others tell is done.
        """
        refused: Precondition | None = None
        for key, found in (await self._in_thread(announcements.announced, str(self._layout.freezes))).items():
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
            return announcements.of_boot(found, announcements.boot_id())
        except ValueError as error:
            raise Precondition(
                f"pool {self._layout.name}: {self._layout.freezes}/{key}.frozen.json tells of frozen file systems and is not "
                f"followed: {error}; start the newer driver that wrote it, or thaw what is frozen (fsfreeze -u) and remove it"
            ) from error


def _clone_all(clones: Sequence[Clone]) -> None:
    for clone in clones:
        with clone.source.open("rb") as source, clone.target.open("r+b") as target:
            files.reflink(source.fileno(), target.fileno())


def _extent_count(image: Path) -> int:
    with image.open("rb") as file:
        return extents.extent_count(file.fileno())

"""Freezing volumes for one action, whatever the technology: the journal, the freeze, the action, the thaw, and what is left of them.

The freeze itself, its deadline and its watchdog are the helper processes' (host/freeze). This side records it before it is made,
removes the record once all is known to be thawed, and thaws what an earlier freeze has left.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from csi_driver.backends.block_access import FAST_TIMEOUT, SLOW_TIMEOUT
from csi_driver.backends.volume_helpers import VolumeHelpers, finish_despite_cancel, translate
from csi_driver.domain.errors import Busy, DriverError, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.freeze import journal
from csi_driver.host.freeze.journal import Journal
from csi_driver.host.helper.client import JobFailed, JobStuck
from csi_driver.host.helper.job import JobEnded

_SYNC_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_SPARE = 10.0
"""Seconds beyond its own limits after which a freeze that does not answer is given up."""


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A volume to be frozen where it is mounted. `backing`: (st_dev, st_ino) of the image behind it, if it is one.

    `suspend`: its device is one of the device mapper, and is suspended inside the freeze. `point`: empty if it is only that (raw).
    """

    volume: Volume
    device: BlockDevice
    point: str
    backing: tuple[int, int] | None = None
    suspend: bool = False

    @property
    def entry(self) -> dict[str, object]:
        """What the journal says of it."""
        number = self.device.major, self.device.minor
        identity = self.device.identity
        return journal.entry_for(
            self.point, *number, self.backing, identity, self.volume.id.hash, identity if self.suspend else ""
        )


@dataclass(frozen=True, slots=True)
class FreezeResult:
    """When all were frozen (Unix nanoseconds), for how long, and how long the action took, in seconds."""

    moment: int
    frozen: float
    action: float


class FreezeSession:
    """The freezes of one pool's volumes; the caller holds their locks, so that nobody stages or unstages them meanwhile.

    `explain`: what a message about a freeze that took too long says of its volumes. `crash_point`: for tests alone.
    """

    def __init__(
        self,
        pool: str,
        helpers: VolumeHelpers,
        deadline: float,
        in_thread: Callable[..., Awaitable[Any]],
        explain: Callable[[Sequence[Volume]], Awaitable[str]],
        crash_point: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._helpers = helpers
        self._deadline = deadline
        self._in_thread = in_thread
        self._explain = explain
        self._crash_point = crash_point
        self._journal = Journal("")
        self._unfinished: dict[str, JobEnded] = {}
        """Freezes that were still at work when they were answered, by their keys in the journal."""
        self._ends: set[asyncio.Task[None]] = set()
        self._removing = asyncio.Lock()  # members of a group may remove their facts of its entry at once

    async def open(self, place: Journal) -> None:
        """Take the pool's journal, and thaw exactly what an earlier agent recorded and cannot have thawed, of this boot.

        Raises Precondition if one entry is another version's, after all that the others tell is done; OSError.
        """
        self._journal = place
        await self._in_thread(place.prepare)
        refused: Precondition | None = None
        for key, found in (await self._in_thread(place.entries)).items():
            try:
                mounts = self._of_this_boot(key, found)
            except Precondition as error:
                refused = error
                continue
            try:
                if mounts:
                    await self._helpers.run(None, "thaw", SLOW_TIMEOUT, **journal.thaw_arguments(mounts))
            except DriverError:
                # It stays recorded, and its volume answers for itself; the others are served.
                continue
            await self._remove(key)
        if refused is not None:
            raise refused

    async def close(self) -> None:
        """Stop waiting for freezes that have not ended. What is recorded stays so: the next start looks at it."""
        for end in self._ends:
            end.cancel()
        if self._ends:
            await asyncio.wait(self._ends, timeout=_CLOSE_SECONDS)
        self._journal.release()  # in memory, and the pool's threads may have ended: one closes twice

    async def run(self, members: Sequence[MountedVolume], action: Mapping[str, Any]) -> FreezeResult:
        """Freeze volumes, perform `action` (host/freeze/action.py) and thaw them, whatever happens.

        Raises Busy past the deadline or while an earlier helper process hangs, Precondition if somebody else froze one,
        Unavailable if a file system refuses the freeze for an error of its own.
        """
        # Of this freeze alone: what an earlier one recorded and may have left frozen must outlast it.
        key = f"{members[0].volume.id.hash}-{secrets.token_hex(4)}"
        volumes = [member.volume for member in members]
        self._helpers.refuse_hanging(*volumes)
        mounts = [member.entry for member in members]
        # Recorded before it is made: the kernel does not tell whether a file system is frozen.
        try:
            await self._record(key, mounts)
            self._crash_point("freeze announced")
            result = await finish_despite_cancel(
                self._helpers.run(
                    volumes,
                    "cut",
                    _SYNC_SECONDS + self._deadline + _SPARE,
                    **journal.thaw_arguments(mounts),
                    action=action,
                    deadline=self._deadline,
                    sync_timeout=_SYNC_SECONDS,
                )
            )
        except asyncio.CancelledError:
            await self._remove(key)
            raise
        except DriverError as error:
            failure = error.__cause__
            if not isinstance(failure, JobFailed | JobStuck):
                await self._remove(key)  # refused before it was begun
                raise
            if not failure.gone.is_set():
                self._unfinished[key] = failure.gone
                end = asyncio.create_task(self._end(key, failure.gone), name=f"end of the freeze {key}")
                self._ends.add(end)
                end.add_done_callback(self._ends.discard)
            elif not failure.gone.frozen:
                await self._remove(key)
            raise await self._refusal(volumes, failure) from failure
        self._crash_point("thawed")
        await self._remove(key)
        return FreezeResult(int(result["moment"]), float(result["frozen_seconds"]), float(result["action_seconds"]))

    async def thaw_left(self, attached: Sequence[tuple[Volume, BlockDevice]]) -> None:
        """Thaw what an earlier freeze of these volumes left frozen: it is recorded, so it is ours.

        Nothing else of that entry: another volume may be in a freeze of its own now. Raises Busy if it stays frozen.
        """
        unfinished = dict(self._unfinished)
        standing = await self._in_thread(self._journal.entries) if attached else {}
        for key, facts in standing.items():
            gone = unfinished.get(key)
            if gone is not None and gone.is_set() and not gone.frozen:
                continue  # it has ended well, and is being removed
            for fact in self._of_this_boot(key, facts):
                volume = next((volume for volume, device in attached if _is_of(fact, volume, device)), None)
                if volume is None:
                    continue
                try:
                    await self._helpers.run(volume, "thaw", FAST_TIMEOUT, **journal.thaw_arguments([fact]))
                except DriverError as error:
                    raise Busy(f"an earlier snapshot of {volume.id} may have left it frozen: {error}") from error
                async with self._removing:
                    await self._in_thread(self._journal.remove_entry, key, fact)

    async def _record(self, key: str, mounts: list[dict[str, object]]) -> None:
        try:
            await self._in_thread(self._journal.record, key, mounts)
        except OSError:
            await self._remove(key)  # it may be there, though not durably, and nothing is frozen
            raise

    async def _remove(self, key: str) -> None:
        await self._in_thread(self._journal.remove, key)

    async def _end(self, key: str, gone: JobEnded) -> None:
        """Remove the entry of a freeze that ends after its answer, if it ends well: whoever freezes then is somebody else."""
        await gone.wait()
        if not gone.frozen:
            with suppress(OSError):  # a pool in trouble: it stays recorded
                await self._remove(key)
        del self._unfinished[key]

    async def _refusal(self, volumes: Sequence[Volume], error: JobFailed | JobStuck) -> DriverError:
        if isinstance(error, JobStuck) or error.type in {"Deadline", "SyncTimeout", "StillFrozen", "ThawFailed"}:
            return Busy(
                f"the snapshot was aborted and undone ({error}): {await self._explain(volumes)}; try again when the volume is "
                f"quieter, or raise --freeze-deadline above {self._deadline:g} s"
            )
        if error.type in {"NotOurs", "ThawedElsewhere"}:
            return Busy(f"the mount changed during the snapshot, which was undone ({error.message}): try again")
        if error.type == "FrozenElsewhere":
            return Precondition(f"{error.message} (fsfreeze -u), then try again")
        if error.type == "SuspendedElsewhere":
            return Precondition(f"{error.message} (dmsetup resume), then try again")
        return translate(error)

    def _of_this_boot(self, key: str, found: object) -> list[dict[str, Any]]:
        """Return what an entry says is frozen. Raises Precondition if nobody here can tell."""
        try:
            return journal.of_boot(found, journal.boot_id())
        except ValueError as error:
            raise Precondition(
                f"pool {self._pool}: {self._journal.path(key)} tells of frozen file systems and is not followed: {error}; start "
                "the newer driver that wrote it, or thaw what is frozen (fsfreeze -u) and remove it"
            ) from error


def _is_of(fact: Mapping[str, Any], volume: Volume, device: BlockDevice) -> bool:
    """Return whether a fact is of this volume. Agents before this one name the device alone, which the thaw verifies."""
    if "volume" in fact:
        return bool(fact["volume"] == volume.id.hash)
    return (fact["major"], fact["minor"]) == (device.major, device.minor)

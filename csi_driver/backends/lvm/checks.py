"""Checks of volumes' file systems: on a thin snapshot, which is the volume's next generation as soon as its record says so.

The snapshot has the tag CHECK while it is checked, and no record. Adopting it is one commit: the tag goes, the record comes, and its
generation is the higher one. What the volume held has the tag KEPT from before on, which keeps it from being trash for a while.
What the runner leaves (host/fs/fsck.py) lies in a directory of the node that is empty after a boot, `<hash>` for each volume.
"""

import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from csi_driver.backends.base import KEPT_SECONDS, Check
from csi_driver.backends.block_access import FAST_TIMEOUT
from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.devices import ThinDevices
from csi_driver.backends.lvm.names import CHECK, KEPT, parse
from csi_driver.backends.lvm.table import Table
from csi_driver.domain.errors import Busy, NotFound
from csi_driver.domain.model import Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host.fs import condition, files, fsck
from csi_driver.host.lvm.tags import to_tags

_LOG = logging.getLogger(__name__)
_JOB = "job.json"
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Job:
    """What was noted when a check was begun: `of` which logical volume and size it is, and the name of the copy."""

    why: str
    started: int
    of: str
    size: int
    copy: str


class ThinChecks:
    """The Checks port of a pool of logical volumes. `directory` is known after `open`. The caller holds the volume's lock, but for
    `forget_old`. `trash`: takes the names of logical volumes that nobody needs any more.
    """

    def __init__(
        self,
        table: Table,
        changes: Changes,
        devices: ThinDevices,
        in_thread: Callable[..., Awaitable[Any]],
        trash: Callable[[Sequence[str]], None],
    ) -> None:
        self._table = table
        self._changes = changes
        self._devices = devices
        self._in_thread = in_thread
        self._trash = trash
        self.directory = ""

    async def complaint(self, volume: Volume, is_ext4: bool) -> str:
        """See Checks. Who asks is about to mount it: it gets its device for that now."""
        source = await self._devices.source(volume)
        found: str = await self._devices.jobs.run(volume, "complaint", FAST_TIMEOUT, source=source, is_ext4=is_ext4)
        return found

    async def current(self, volume: Volume) -> Check | None:
        """See Checks."""
        job = _read(self._place(volume.id.hash))
        if job is None:
            return None
        lv = self._table.of(volume)
        outcome = await self._in_thread(fsck.outcome, self._place(volume.id.hash))
        # Rolled back, grown or attached since: what was checked is not what the volume holds. Its process ends by itself.
        if (job.of, job.size) != (lv.name, lv.size) or outcome.result == "interrupted":
            if outcome.result == "interrupted":
                _LOG.warning("the check of %s was interrupted (%s); nothing was changed", volume.id, outcome.message)
            await self.drop(volume)
            return None
        # Where not even a copy of the superblock was found, there will be none next time.
        hopeless = outcome.result == "failed" and job.why == condition.LOST
        return Check(job.why, job.started, job.of, "damaged" if hopeless else outcome.result, outcome.message)

    async def begin(self, volume: Volume, why: str, now: int) -> Check:
        """See Checks."""
        lv, place = self._table.of(volume), self._place(volume.id.hash)
        (name,) = self._table.next_names("volume", [volume.id.hash])
        job = _Job(why, now, lv.name, lv.size, str(name))
        await self._in_thread(_note, place, job)
        self._changes.crash_point("check noted")
        try:
            await self._changes.clone(name, lv, [CHECK])
            await self._changes.activate(str(name))
            device = self._devices.of(str(name))
            if device is None:
                raise NotFound(
                    f"the copy of {volume.id} that is to be checked has no device: see the node's kernel log"
                )
            await self._in_thread(fsck.start, place, f"/dev/dm-{device.minor}")
        except BaseException:
            await self._in_thread(shutil.rmtree, place, True)
            await self._changes.discard([str(name)])
            raise
        self._changes.crash_point("check begun")
        return Check(why, now, lv.name, "running")

    async def adopt(self, volume: Volume) -> None:
        """See Checks."""
        place = self._place(volume.id.hash)
        job = _read(place)
        name = parse(job.copy) if job is not None else None
        if job is None or name is None or job.copy not in self._table:
            raise NotFound(f"the checked copy of {volume.id} is gone: the next stage checks it again")
        await self._changes.deactivate(job.copy)
        await self._changes.retag(job.of, [f"{KEPT}{job.started}"], keep=True)
        record = to_tags(dump_volume(volume), "volume", name.hash, name.generation)
        await self._changes.retag(job.copy, record, drop=[CHECK])
        self._table.show(name)
        await self._in_thread(shutil.rmtree, place, True)

    async def drop(self, volume: Volume) -> None:
        """See Checks."""
        await self._drop(volume.id.hash)

    async def forget_old(self, now: int) -> None:
        """See Checks."""
        self._trash([name for name, kept in self._kept().items() if kept + KEPT_SECONDS * _SECOND <= now])

    def refuse_running(self, digest: str) -> None:
        """Raise Busy while the copy of a volume is being checked: nothing removes it then."""
        place = self._place(digest)
        if _read(place) is not None and fsck.outcome(place).result == "running":
            raise Busy(f"a copy of the volume {digest} is being checked: try again when e2fsck has ended")

    async def forget(self, digest: str) -> None:
        """Before the deletion of a volume: take away its check. What was kept of it goes with its generations."""
        self.refuse_running(digest)
        await self._in_thread(shutil.rmtree, self._place(digest), True)

    def invalidate(self, digest: str) -> None:
        """Note that a volume is attached, so that a check of it says nothing any more."""
        try:
            os.unlink(os.path.join(self._place(digest), _JOB))
        except FileNotFoundError:
            return

    def sweep(self) -> list[str]:
        """At start: return what a crash left of checks, and what was kept of volumes that are gone."""
        noted = {job.copy for name in _names(self.directory) if (job := _read(self._place(name))) is not None}
        left = [lv.name for lv in self._table.values() if CHECK in lv.tags and lv.name not in noted]
        alone = [name for name in self._kept() if (n := parse(name)) and not self._table.named("volume", n.hash)]
        return left + alone

    async def _drop(self, digest: str) -> None:
        copies = [name for name in self._table.generations("volume", digest) if CHECK in self._table[name].tags]
        await self._in_thread(shutil.rmtree, self._place(digest), True)
        self._trash(copies)

    def _kept(self) -> dict[str, int]:
        """The logical volumes that are kept, with the times from when on. The object itself is none of them."""
        found = {}
        for lv in self._table.values():
            times = [tag.removeprefix(KEPT) for tag in lv.tags if tag.startswith(KEPT)]
            name = parse(lv.name)
            if times and times[0].isdecimal() and name and self._table.named(name.kind, name.hash) != lv.name:
                found[lv.name] = int(times[0])
        return found

    def _place(self, digest: str) -> str:
        return os.path.join(self.directory, digest)


def _note(place: str, job: _Job) -> None:
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place, mode=0o700)
    files.write_durably(os.path.join(place, _JOB), json.dumps(asdict(job)).encode())


def _read(place: str) -> _Job | None:
    try:
        raw = json.loads(files.read_small(os.path.join(place, _JOB)))
        return _Job(str(raw["why"]), int(raw["started"]), str(raw["of"]), int(raw["size"]), str(raw["copy"]))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []

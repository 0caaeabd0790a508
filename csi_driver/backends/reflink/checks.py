"""Checks of volumes' file systems: on a copy, which takes the volume's place in one step; what the volume held is kept for a while.

A check has a directory of its own, `.check/<hash>`, and in it `job.json`, what the runner leaves there (host/fs/fsck.py), and
`copy`, which is like a volume's directory. What was exchanged goes to `.kept/<hash>-<nanoseconds>`. The volume's record names
that, so it says at any later moment whether `copy` is the checked one or what was there before.
"""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_driver.backends.base import KEPT_SECONDS, Check
from csi_driver.backends.reflink.layout import IMAGE, RECORD, Layout
from csi_driver.domain.model import Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host.freeze import journal
from csi_driver.host.fs import condition, files, fsck

_LOG = logging.getLogger(__name__)

_JOB = "job.json"
_COPY = "copy"
_KEPT = re.compile(r"([0-9a-f]{32})-([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class _Job:
    """What was noted when a check was begun: the image that it is about, and where that will be kept."""

    why: str
    started: int
    kept: str
    stamp: str
    boot: str


class ReflinkChecks:
    """The Checks port of a reflink pool. The caller holds the volume's lock, but for `forget_old`."""

    def __init__(
        self,
        layout: Layout,
        image: Callable[[Volume], Path],
        take_size: Callable[[int, Volume], None],
        in_thread: Callable[..., Awaitable[Any]],
        emptied: Callable[[], object],
    ) -> None:
        """`take_size`: gives a clone its size, and blocks of its own where the volume is thick; `emptied`: has the trash emptied."""
        self._layout = layout
        self._image = image
        self._take_size = take_size
        self._in_thread = in_thread
        self._emptied = emptied

    async def complaint(self, volume: Volume, is_ext4: bool) -> str:
        """See Checks."""
        with self._layout.translated(f"looking at {volume.id}"):
            found: str = await self._in_thread(_complaint, self._image(volume), is_ext4)
            return found

    async def current(self, volume: Volume) -> Check | None:
        """See Checks."""
        with self._layout.translated(f"looking for a check of {volume.id}"):
            check: Check | None = await self._in_thread(self._found, volume)
            return check

    async def begin(self, volume: Volume, why: str, now: int) -> Check:
        """See Checks."""
        with self._layout.translated(f"a check of {volume.id}"):
            check: Check = await self._in_thread(self._begin, volume, why, now)
            return check

    async def adopt(self, volume: Volume) -> None:
        """See Checks."""
        with self._layout.translated(f"the end of a check of {volume.id}"):
            await self._in_thread(self._adopt, volume)

    async def drop(self, volume: Volume) -> None:
        """See Checks."""
        with self._layout.translated(f"the end of a check of {volume.id}"):
            await self._in_thread(self._discard, self._place(volume))

    async def forget_old(self, now: int) -> None:
        """See Checks."""
        with self._layout.translated("forgetting what was kept"):
            await self._in_thread(self._forget_old, now)

    def forget(self, volume: Volume) -> None:
        """After the deletion of a volume: take away its check and what was kept of it. What cannot go now goes at a later look."""
        with suppress(OSError):
            self._discard(self._place(volume))
            for kept in sorted(self._layout.kept.glob(f"{volume.id.hash}-*")):
                self._discard(kept)

    def sweep(self, volumes: Mapping[str, Volume]) -> None:
        """At start: end what a crash left half-done. A check that is at work or has ended is left to the next stage."""
        for place in sorted(self._layout.checks.iterdir()):
            volume = volumes.get(place.name)
            if volume is None:
                self._layout.move_to_trash(place)
            else:
                self._standing(volume)
        for kept in sorted(self._layout.kept.iterdir()):
            named = _KEPT.fullmatch(kept.name)
            # A name of another form is a later version's, and what it keeps is data.
            if named is not None and named[1] not in volumes:
                self._layout.move_to_trash(kept)

    def _found(self, volume: Volume) -> Check | None:
        standing = self._standing(volume)
        if standing is None:
            return None
        job, outcome = standing
        assert outcome.result != "interrupted"
        if change_token(self._image(volume)) != job.stamp:
            # Rolled back, grown or written to since: what was checked is not what the volume holds. Its process ends by itself.
            self._discard(self._place(volume))
            return None
        # Where not even a copy of the superblock was found, there will be none next time.
        hopeless = outcome.result == "failed" and job.why == condition.LOST
        kept = f"{self._layout.kept.name}/{job.kept}"
        return Check(job.why, job.started, kept, "damaged" if hopeless else outcome.result, outcome.message)

    def _standing(self, volume: Volume) -> tuple[_Job, fsck.Outcome] | None:
        """A volume's check, if there is one that may still be of use; what is left of any other is cleared away."""
        place = self._place(volume)
        if not place.exists():
            return None
        job = _read(place)
        if job is not None and _is_adopted(volume, job):
            self._end(place, job)
            return None
        if job is None or job.boot != journal.boot_id():
            self._discard(place)
            return None
        outcome = fsck.outcome(str(place))
        if outcome.result == "interrupted":
            _LOG.warning(
                "the check of %s was interrupted (%s); nothing was changed, and the next stage starts it again",
                volume.id,
                outcome.message,
            )
            self._discard(place)
            return None
        return job, outcome

    def _begin(self, volume: Volume, why: str, now: int) -> Check:
        place, image = self._place(volume), self._image(volume)
        draft = self._layout.draft_path()
        try:
            self._layout.create_draft(draft)
            self._layout.create_draft(draft / _COPY, IMAGE)
            with image.open("rb") as source, (draft / _COPY / IMAGE).open("r+b") as copy:
                files.reflink(source.fileno(), copy.fileno())
                self._take_size(copy.fileno(), volume)
            job = _Job(why, now, f"{volume.id.hash}-{now}", change_token(image), journal.boot_id())
            noted = {"why": job.why, "started": now, "kept": job.kept, "stamp": job.stamp, "boot": job.boot}
            files.write_durably(draft / _JOB, json.dumps(noted).encode())
            self._layout.crash_point("check prepared")
            files.rename_new(draft, place)
        except BaseException:
            self._layout.remove_draft(draft)
            raise
        self._layout.crash_point("check shown")
        fsck.start(str(place), str(place / _COPY / IMAGE))
        self._layout.crash_point("check begun")
        return Check(why, now, f"{self._layout.kept.name}/{job.kept}", "running")

    def _adopt(self, volume: Volume) -> None:
        place = self._place(volume)
        job = _read(place)
        if job is None:
            raise FileNotFoundError(f"{place} is gone")
        with suppress(FileNotFoundError):
            (place / _COPY / RECORD).unlink()  # of a try that failed
        kept = self._layout.kept / job.kept
        self._layout.exchange_kept(place / _COPY, dump_volume(volume), self._image(volume).parent, kept)
        self._end(place, job)

    def _end(self, place: Path, job: _Job) -> None:
        """After the exchange, which cannot fail any more: keep what was there, with the check's words, and clear the rest away."""
        kept = self._layout.kept / job.kept
        with suppress(OSError):
            if (place / _COPY).exists():
                self._layout.keep(place / _COPY, kept)
        if kept.exists():
            with suppress(OSError):
                os.rename(place / fsck.LOG, kept / fsck.LOG)
            with suppress(OSError):
                self._discard(place)

    def _discard(self, place: Path) -> None:
        if place.exists():
            self._layout.move_to_trash(place)
            self._emptied()

    def _forget_old(self, now: int) -> None:
        for place in sorted(self._layout.checks.iterdir()):
            if not (self._layout.volumes / place.name).exists():
                self._discard(place)
        for kept in sorted(self._layout.kept.iterdir()):
            named = _KEPT.fullmatch(kept.name)
            if named is None:
                continue
            alive = (self._layout.volumes / named[1]).exists()
            if not alive or int(named[2]) + KEPT_SECONDS * 1_000_000_000 <= now:
                self._discard(kept)

    def _place(self, volume: Volume) -> Path:
        return self._layout.checks / volume.id.hash


def change_token(image: Path) -> str:
    """What is another one whenever the image is. Raises OSError."""
    status = image.stat()
    return f"{status.st_ino}:{status.st_ctime_ns}"


def _complaint(image: Path, is_ext4: bool) -> str:
    return condition.complaint(image, is_ext4=is_ext4)


def _is_adopted(volume: Volume, job: _Job) -> bool:
    return volume.condition is not None and os.path.basename(volume.condition.kept) == job.kept


def _read(place: Path) -> _Job | None:
    try:
        raw = json.loads(files.read_small(place / _JOB))
        job = _Job(str(raw["why"]), int(raw["started"]), str(raw["kept"]), str(raw["stamp"]), str(raw["boot"]))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    return job if _KEPT.fullmatch(job.kept) else None

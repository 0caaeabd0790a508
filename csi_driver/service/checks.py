"""Checks of ext4 volumes before they are mounted: when one is needed, while it runs, and its result.

The call that starts a check is always answered Busy, however short the check is: the message names where the old content is
kept, and a cluster shows it as an event of the pod. The next try continues.
"""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

from csi_driver.backends.base import KEPT_SECONDS, Check, SpaceOperation
from csi_driver.domain.durations import format_duration
from csi_driver.domain.errors import BEING_CHECKED, Busy, NotMountable, OutOfSpace
from csi_driver.domain.model import Condition, Volume
from csi_driver.service.conditions import is_damaged
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool
from csi_driver.service.reservations import reserve_space

_LOG = logging.getLogger(__name__)

_SECOND = 1_000_000_000
WAY_OUT = (
    "roll it back to a snapshot, or repair the data: take a snapshot, restore it with volumeMode Block, run e2fsck or xfs_repair "
    "on the device, take a snapshot of the result and restore that as a file system (docs/how-to/repair.md)"
)
"""What a person can do about a file system that e2fsck does not repair. It follows a colon."""


class Checks:
    """Checks file systems before they are mounted. The caller has locked the volume."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context

    async def ensure_not_running(self, pool: Pool, volume: Volume) -> None:
        """Raise Busy while a check of the volume runs: it works on the content from when it began."""
        check = await pool.backend.checks.current(volume)
        if check is not None and check.result == "running":
            raise self._running(pool, volume, check)

    async def ensure_mountable(self, pool: Pool, volume: Volume, fs_type: str) -> tuple[Volume, bool]:
        """Return the volume as it may be mounted, and whether a check has just ended.

        Raises Busy while a check runs or starts, NotMountable if it is known that no check repairs the volume. XFS is never
        checked: it replays its log at the mount, and the kernel refuses what is then still wrong.
        """
        if fs_type != "ext4":
            return volume, False
        checks = pool.backend.checks
        check = await checks.current(volume)
        if check is not None:
            return await self._take_result(pool, volume, check), True
        known = volume.condition
        if known is not None and known.state == "damaged" and known.stamp == pool.backend.change_token(volume):
            raise not_mountable(volume, known.said)
        why = await checks.complaint(volume, is_ext4=volume.format == "ext4")
        if why:
            await self.start(pool, volume, why)
        return volume, False

    async def start(self, pool: Pool, volume: Volume, why: str) -> NoReturn:
        """Start a check of a volume that is not mounted, and raise Busy. Raises InUse if its device is in use anyway."""
        backend = pool.backend
        await backend.access.detach(volume)
        # A thick volume takes its space twice, as in a rollback: the old content is kept beside the new.
        needed = backend.space_needed(SpaceOperation("check", volume=volume))
        async with reserve_space(pool, "the check of a thick volume", needed):
            check = await backend.checks.begin(volume, why, self._context.now())
        _LOG.warning("checking %s before it is mounted, because %s", volume.id, why)
        raise self._running(pool, volume, check)

    async def mark_damaged(self, pool: Pool, volume: Volume, said: str) -> NoReturn:
        """Record that the volume cannot be mounted and no check repairs it, and raise NotMountable."""
        await pool.backend.access.detach(volume)  # first: what it writes back changes the image's change token
        raise not_mountable(await self._note(pool, volume, said), said)

    async def clear_damage(self, pool: Pool, volume: Volume) -> Volume:
        """Return the volume after a successful mount: it is no longer recorded as damaged."""
        if volume.condition is None or volume.condition.state != "damaged":
            return volume
        self._context.conditions.note(volume, None)
        try:
            return await self._save(pool, replace(volume, condition=None))
        except (
            OutOfSpace
        ) as error:  # its change token is another one now, so the record is ignored, and the pod has its data
            _LOG.warning("%s is mounted, but its record still says damaged: %s", volume.id, error)
            return volume

    async def _take_result(self, pool: Pool, volume: Volume, check: Check) -> Volume:
        """Act on the result of a check."""
        checks = pool.backend.checks
        if check.result == "running":
            raise self._running(pool, volume, check)
        self._context.observer.checked(pool.name, check.result)
        if check.result == "mended":
            await pool.backend.access.detach(volume)
            repaired = replace(volume, condition=Condition("mended", self._context.now(), check.said, kept=check.kept))
            await checks.adopt(repaired)
            pool.put_volume(repaired)
            self._context.conditions.note(repaired, None)
            _LOG.warning("%s was checked and repaired: %s", volume.id, check.said)
            return repaired
        if check.result == "damaged":
            volume = await self._note(pool, volume, check.said)
        await checks.drop(volume)
        if check.result == "damaged":
            raise not_mountable(volume, check.said)
        raise NotMountable(
            f"{volume.id} is not mounted, because {check.why}, and e2fsck failed ({check.said}): the next try checks it "
            f"again; if that fails too, {WAY_OUT}"
        )

    async def _note(self, pool: Pool, volume: Volume, said: str) -> Volume:
        stamp = pool.backend.change_token(volume)
        volume = await self._save(
            pool, replace(volume, condition=Condition("damaged", self._context.now(), said, stamp=stamp))
        )
        self._context.conditions.note(volume, is_damaged(said))
        return volume

    def _running(self, pool: Pool, volume: Volume, check: Check) -> Busy:
        seconds = max(0, self._context.now() - check.started) // _SECOND
        until = datetime.fromtimestamp(check.started // _SECOND + KEPT_SECONDS, UTC)
        return Busy(
            f"{volume.id} {BEING_CHECKED}, because {check.why}: e2fsck has been running for "
            f"{format_duration(seconds)}, and the next try continues. The old content is kept at "
            f"{pool.backend.identity.path}/{check.kept} until {until:%Y-%m-%d}: try again"
        )

    async def _save(self, pool: Pool, volume: Volume) -> Volume:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)
        return volume


def not_mountable(volume: Volume, said: str) -> NotMountable:
    """Return the error for a volume whose file system no check repairs."""
    return NotMountable(
        f"{volume.id} cannot be mounted: its file system is damaged and cannot be repaired automatically ({said}). Nothing was "
        f"changed: {WAY_OUT}"
    )

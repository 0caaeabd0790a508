"""Before an ext4 is mounted: whether it asks for a check, the check while it runs, and what comes of it.

Whoever begins a check is always answered with Busy, however quick it may be: the message names what is kept of the volume, and a
cluster shows it as an event of the pod. The next try goes on.
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
    "go back to a snapshot of it, or look at the data: snapshot it, restore that with volumeMode Block, run e2fsck or xfs_repair "
    "on the device, snapshot the result and restore that as a file system (docs/how-to/repair.md)"
)
"""What a person can do with a file system that is not mended by itself. It begins after a colon."""


class Checks:
    """Checks of file systems before they are mounted. The caller holds the volume's lock."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context

    async def refuse_running(self, pool: Pool, volume: Volume) -> None:
        """Raise Busy while a check of the volume runs: what it mends is what the volume held when it began."""
        check = await pool.backend.checks.current(volume)
        if check is not None and check.result == "running":
            raise self._running(pool, volume, check)

    async def mended(self, pool: Pool, volume: Volume, fs_type: str) -> tuple[Volume, bool]:
        """The volume as it may be mounted, and whether a check that has just ended made it so.

        Raises Busy while a check runs or is begun, NotMountable where it is known that none will mend it. XFS is never
        checked: it replays its log when it is mounted, and refuses what it then finds wrong.
        """
        if fs_type != "ext4":
            return volume, False
        checks = pool.backend.checks
        check = await checks.current(volume)
        if check is not None:
            return await self._taken(pool, volume, check), True
        known = volume.condition
        if known is not None and known.state == "damaged" and known.stamp == pool.backend.change_token(volume):
            raise damaged(volume, known.said)
        why = await checks.complaint(volume, is_ext4=volume.format == "ext4")
        if why:
            await self.begin(pool, volume, why)
        return volume, False

    async def begin(self, pool: Pool, volume: Volume, why: str) -> NoReturn:
        """Begin a check of a volume that is not mounted, and raise Busy. Raises InUse where its device is in use all the same."""
        backend = pool.backend
        await backend.access.detach(volume)
        # A thick one takes its space a second time, as for a rollback: what it held is kept beside what it will hold.
        needed = backend.space_needed(SpaceOperation("check", volume=volume))
        async with reserve_space(pool, "the check of a thick volume", needed):
            check = await backend.checks.begin(volume, why, self._context.now())
        _LOG.warning("%s is checked before it is mounted, since %s", volume.id, why)
        raise self._running(pool, volume, check)

    async def give_up(self, pool: Pool, volume: Volume, said: str) -> NoReturn:
        """Note that a volume cannot be mounted and no check will change that, and raise NotMountable."""
        await pool.backend.access.detach(volume)  # first, since what it writes back makes the image another one
        raise damaged(await self._note(pool, volume, said), said)

    async def mounted(self, pool: Pool, volume: Volume) -> Volume:
        """The volume after its mount: whatever made it damaged is no longer so."""
        if volume.condition is None or volume.condition.state != "damaged":
            return volume
        self._context.conditions.note(volume, None)
        try:
            return await self._save(pool, replace(volume, condition=None))
        except OutOfSpace as error:  # of another image now, the note binds nobody, and the pod has its data
            _LOG.warning("%s is mounted, and its record still calls it damaged: %s", volume.id, error)
            return volume

    async def _taken(self, pool: Pool, volume: Volume, check: Check) -> Volume:
        """What came of a check that has ended."""
        checks = pool.backend.checks
        if check.result == "running":
            raise self._running(pool, volume, check)
        self._context.observer.checked(pool.name, check.result)
        if check.result == "mended":
            await pool.backend.access.detach(volume)
            done = replace(volume, condition=Condition("mended", self._context.now(), check.said, kept=check.kept))
            await checks.adopt(done)
            pool.put_volume(done)
            self._context.conditions.note(done, None)
            _LOG.warning("%s was checked and mended: %s", volume.id, check.said)
            return done
        if check.result == "damaged":
            volume = await self._note(pool, volume, check.said)
        await checks.drop(volume)
        if check.result == "damaged":
            raise damaged(volume, check.said)
        raise NotMountable(
            f"{volume.id} is not mounted, since {check.why}, and e2fsck could not check it ({check.said}): the next try checks it "
            f"again; if that ends the same way, {WAY_OUT}"
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
            f"{volume.id} {BEING_CHECKED}, since {check.why}: e2fsck has been at work for "
            f"{format_duration(seconds)}, and the next try goes on. What the volume held stays at "
            f"{pool.backend.identity.path}/{check.kept} until {until:%Y-%m-%d}: try again"
        )

    async def _save(self, pool: Pool, volume: Volume) -> Volume:
        await pool.backend.save_volume(volume)
        pool.put_volume(volume)
        return volume


def damaged(volume: Volume, said: str) -> NotMountable:
    """Why a volume is refused whose file system no check mends."""
    return NotMountable(
        f"{volume.id} cannot be mounted: its file system is damaged, and is not mended without a person ({said}). Nothing was "
        f"changed: {WAY_OUT}"
    )

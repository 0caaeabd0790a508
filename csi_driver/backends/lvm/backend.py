"""One pool of logical volumes behind the Backend port."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from csi_driver.backends.base import (
    Checks,
    Draft,
    Moment,
    PoolContents,
    PoolIdentity,
    SpaceNeeded,
    SpaceOperation,
    Target,
    Traits,
    VolumeAccess,
)
from csi_driver.backends.block_access import FAST_TIMEOUT, BlockDeviceAccess
from csi_driver.backends.local_pool import LocalPool
from csi_driver.backends.lvm import catalogue, opening
from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.checks import ThinChecks
from csi_driver.backends.lvm.clones import ThinClones
from csi_driver.backends.lvm.commands import Commands
from csi_driver.backends.lvm.devices import ThinDevices
from csi_driver.backends.lvm.names import split_path
from csi_driver.backends.lvm.objects import ThinObjects
from csi_driver.backends.lvm.pool_status import PoolStatus, area_of
from csi_driver.backends.lvm.table import Table
from csi_driver.backends.lvm.thick import ThickVolumes
from csi_driver.backends.lvm.usage import ThinUsage
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.snapshotter import Snapshotter
from csi_driver.backends.volume_helpers import finish_despite_cancel
from csi_driver.domain.capacity import Space
from csi_driver.domain.errors import DriverError, Precondition
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume
from csi_driver.host.block import sources as sources_of
from csi_driver.host.dm import ioctl, status
from csi_driver.host.freeze.journal import Journal
from csi_driver.host.helper.client import HelperPool
from csi_driver.host.lvm.reports import dm_uuid

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_THREADS = 4
"""For the journal of freezes alone: lvm and the devices are helper processes' work."""
_AREA_AGE = 60.0
"""Seconds for which the answer about the metadata area counts."""


class LvmBackend(LocalPool):
    """Volumes and snapshots as thin volumes of one volume group, with their records as tags."""

    traits = Traits(thick_copies=False, counts_extents=False, record_cost=0.4, suspends=True)

    def __init__(self, options: PoolOptions, helpers: HelperPool) -> None:
        self._options = options
        self._helpers = helpers
        self._vg, self._pool = split_path(options.path)
        self.table = Table()
        self._commands = Commands(helpers, self._vg, in_container=options.in_container)
        self.changes = Changes(self._commands, self.table, self._vg, self._pool)
        self._devices = ThinDevices(self._vg, self.table, self.changes, helpers)
        self._kernel = BlockDeviceAccess(self._devices, seen_outside=options.in_container)
        self.access: VolumeAccess = self._kernel
        self._clones = ThinClones(self.table, self.changes, self._devices.jobs)
        self._snapshotter = Snapshotter(
            options.name,
            self._devices,
            self._clones,
            options.freeze_deadline,
            self._in_thread,
            lambda name: self.changes.crash_point(name),  # noqa: PLW0108 - a test replaces it later
        )
        self._status = PoolStatus(options.name)
        self._usage = ThinUsage(self._status, self._devices.jobs)
        self._objects = ThinObjects(self.table, self.changes, self._empty_trash)
        self._thick = ThickVolumes(self.table, self.changes, self._devices)
        self._devices.completed = self._thick.finish
        self._checks = ThinChecks(self.table, self.changes, self._devices, self._in_thread, self._empty_trash)
        self._devices.attached = self._checks.invalidate
        self.checks: Checks = self._checks
        self.identity = PoolIdentity(options.name, options.owner, "", "lvm", options.path)
        self._lock = -1
        self._area_read = 0, 0.0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"pool-{options.name}")
        self._trash: set[str] = set()
        self._janitor: asyncio.Task[None] | None = None

    space_max_age = 0.0

    @property
    def attached_devices(self) -> int:
        """See Backend."""
        return self._devices.count()

    async def open(self) -> PoolContents:
        """See Backend. Order matters: what hangs is resumed and thawed before anything may wait for it, or refuse the pool."""
        try:
            self._lock = await self._in_thread(opening.lock, self._options, self._vg)
            group = await self._commands.open()  # resumes what a killed lvm left suspended, before its first command
            uuid = opening.known_uuid(group)
            if uuid:
                await self._thaw(uuid)
            opening.check_group(self._options.name, group)
            report, pools = await opening.read(self._commands)
            pool = opening.check_pool(self._options.name, self._vg, self._pool, pools)
            foreign = [lv.name for lv in report if lv.name != self._pool]
            found = opening.identify(self._options, group, foreign)
            if not uuid:
                await self._thaw(found.uuid)
            self._devices.vg_uuid = group.uuid
            self.changes.group_tags = group.tags
            self._status.uuid = self._clones.pool_uuid = f"{dm_uuid(group.uuid, pool.uuid)}-tpool"
            self._status.chunk, self._status.area = pool.chunk_size, area_of(group)
            self._status.vg_free = group.free
            self.traits = replace(self.traits, granule=group.extent_size)
            await self.changes.tag_group(add=found.add, drop=found.drop)
            self.table.load(report)
            known = catalogue.read(self._options.owner, self._options.name, self._vg, report, group.tags)
            self.table.adopt(known)
            if pool.attributes[4:5] != "a":
                await self.changes.activate(self._pool)
            self._status.check()
            await self._devices.jobs.run(None, "remove_left", FAST_TIMEOUT, pool=self._status.uuid)
            await self._devices.sweep()
            await self._kernel.sweep(known.contents.volumes)
        except BaseException:
            self._unlock()  # or the next try would find the pool locked, by this one
            raise
        self._area_read = self.changes.count, time.monotonic()
        self._empty_trash([*known.trash, *self._checks.sweep()])
        return known.contents

    async def _thaw(self, uuid: str) -> None:
        """Thaw what an earlier agent of the pool with this uuid left frozen, on this node and since its start."""
        self.identity = replace(self.identity, uuid=uuid)
        await self._snapshotter.freezes.open(await self._in_thread(self._journal))

    def _journal(self) -> Journal:
        journal = self._runtime_directory("freezes")
        self._checks.directory = self._runtime_directory("checks")
        return Journal(journal)

    def _runtime_directory(self, name: str) -> str:
        runtime = self._options.runtime_directory or opening.RUNTIME
        directory = os.path.join(runtime, name, self.identity.uuid)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise Precondition(
                f"--runtime-dir {runtime} cannot be used ({error.strerror}): name a directory of the node's /run that the agent "
                "may write to"
            ) from error
        return directory

    async def close(self) -> None:
        """See Backend."""
        await self._snapshotter.freezes.close()
        if self._janitor is not None:
            self._janitor.cancel()
            with suppress(asyncio.CancelledError):
                await self._janitor
        await self._thick.close()
        await self._commands.close()
        self._threads.shutdown(wait=False)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check(self) -> None:
        """See Backend."""
        self._status.check()

    async def space(self) -> Space:
        """See Backend. What lvm alone tells of the volume group is asked again after changes, once a minute at most."""
        if self.changes.count != self._area_read[0] and time.monotonic() - self._area_read[1] > _AREA_AGE:
            self._area_read = self.changes.count, time.monotonic()
            with suppress(DriverError):  # an lvm hangs: what it said last counts
                group = await self._commands.volume_group()
                self._status.area, self._status.vg_free = area_of(group), group.free
        return self._status.space()

    def space_needed(self, operation: SpaceOperation) -> SpaceNeeded:
        """See Backend. A thin volume takes nothing before it is written to; a thick one all, beside the thin pool."""
        made = operation.volume
        if operation.kind == "create" and made is not None and made.thick:
            return SpaceNeeded(made.size, "the whole size, which is set aside in the volume group")
        return SpaceNeeded(0, "nothing before it is written to")

    def allocated(self, volume: Volume) -> int | None:
        """See Backend. Known of a thin volume that has a device; of another one it would have to be counted."""
        lv = self.table.of(volume)
        if not lv.pool:
            return lv.size
        device = self._devices.of(lv.name)
        return _mapped(device.uuid) if device else None

    async def content_format(self, item: Volume | Snapshot) -> str:
        """See Backend. What has no device is read by one that lvm knows nothing of: activation would take a second, twice."""
        lv = self.table.of(item)
        if device := self._devices.of(lv.name):
            source = {"kind": "device", "name": f"dm-{device.minor}", "identity": device.uuid}
            return str(await self._run(item, "content_format", source=source))
        await self.changes.learn_ids([lv.name])
        lv = self.table[lv.name]
        where = {"pool": self._status.uuid, "thin_id": lv.thin_id, "size": lv.size}
        return str(await self._run(item, "probe_thin", **where))

    async def _run(self, item: Volume | Snapshot, job: str, **arguments: Any) -> Any:
        volume = item if isinstance(item, Volume) else None
        return await self._devices.jobs.run(volume, job, FAST_TIMEOUT, **arguments)

    async def create_volume(self, volume: Volume, source: Snapshot | None) -> None:
        """See Backend."""
        if volume.thick:
            assert source is None, "the services look first"
            await self._thick.create(volume)
            self._area_read = -1, 0.0
        else:
            await self._objects.create(volume, source)

    async def save_volume(self, volume: Volume) -> None:
        """See Backend."""
        await self._objects.save(volume)

    async def expand_volume(self, volume: Volume) -> None:
        """See Backend."""
        if volume.thick:
            self._area_read = -1, 0.0
        await (self._thick if volume.thick else self._objects).expand(volume)

    async def is_empty(self, volume: Volume) -> bool:
        """See Backend. The kernel tells it of a device alone; who asks is about to use it."""
        device = await self._devices.attach(volume)
        if volume.thick:
            # What the driver makes is zero. What somebody wrote by hand is found where anything begins or ends.
            source = sources_of.present(device)
            return not await self._devices.jobs.run(volume, "has_data_at_ends", FAST_TIMEOUT, source=source)
        return _mapped(device.identity) == 0

    async def erase(self, volume: Volume) -> None:
        """See Backend."""
        if volume.thick:
            await self._thick.erase(volume)
        else:
            await self._objects.replace(volume, None)

    async def delete_volume(self, volume: Volume) -> None:
        """See Backend."""
        if volume.thick:
            self._area_read = -1, 0.0
        await self._checks.forget(volume.id.hash)
        await self._objects.delete("volume", volume.id.hash)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See Backend."""
        await self._objects.delete("snapshot", snapshot.id.hash)

    async def delete_group(self, group: GroupSnapshot) -> None:
        """See Backend."""
        await self._objects.delete_group(group)

    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """See Backend."""
        await self._objects.replace(volume, snapshot)

    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """See Backend."""
        return await self._clones.prepare(target, sources)

    async def quick(self, draft: Draft[Any]) -> Moment:
        """See Backend. No lvm of the pool runs meanwhile: both send messages to the thin pool."""
        async with self._commands.exclusive():
            return await self._snapshotter.quick(draft)

    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """See Backend."""
        return await self._clones.publish(draft, moment)

    async def abandon(self, draft: Draft[Any]) -> None:
        """See Backend."""
        await self._clones.abandon(draft)

    def change_token(self, item: Volume | Snapshot) -> str:
        """See Backend. A volume changes through its device alone, and the kernel counts what is written to that."""
        return self._devices.change_token(self.table.of(item).name)

    async def usage(self, item: Volume | Snapshot) -> Usage:
        """See Backend."""
        return await self._usage.of(await self._with_id(item))

    async def freed_together(self, chosen: Sequence[Volume | Snapshot]) -> int:
        """See Backend."""
        return await self._usage.freed_together([await self._with_id(item) for item in chosen])

    async def _with_id(self, item: Volume | Snapshot) -> Any:
        name = self.table.of(item).name
        await self.changes.learn_ids([name])
        return self.table[name]

    def _empty_trash(self, names: Sequence[str]) -> None:
        """Remove logical volumes that nobody sees any more, in the background; what cannot go now goes at the next start."""
        self._trash.update(names)
        if self._trash and (self._janitor is None or self._janitor.done()):
            self._janitor = asyncio.create_task(self._remove_trash(), name=f"trash of {self._options.name}")

    async def _remove_trash(self) -> None:
        while self._trash:
            names = sorted(self._trash)
            self._trash.clear()
            try:
                await self.changes.remove(names)
            except DriverError as error:
                _LOG.warning(
                    "%d removed logical volumes of pool %s stay for now: %s", len(names), self._options.name, error
                )

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await finish_despite_cancel(asyncio.get_running_loop().run_in_executor(self._threads, function, *args))


def _mapped(uuid: str) -> int:
    """The bytes that a thin volume has of its pool, by the dm uuid of its device."""
    return status.thin(ioctl.status(uuid=uuid)).mapped * status.SECTOR

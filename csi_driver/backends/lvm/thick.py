"""Thick volumes of a pool of logical volumes: linear ones beside the thin pool, which have all of their space from the beginning.

Their extents hold what former owners left, so they are made zero before anybody sees them, and so is what they grow by. That takes
as long as writing it: a caller that gives up finds it done, or further, when it calls again.
"""

import asyncio

from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.devices import ThinDevices
from csi_driver.backends.lvm.names import ZEROED, LvName
from csi_driver.backends.lvm.table import Table
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.domain.model import Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host.block import sources
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.lvm.tags import DRAFT, to_tags

_SLOWEST = 20 << 20
"""Bytes a second that any disk zeroes: a helper process that takes longer hangs."""
_LEAST_SECONDS = 60.0


class ThickVolumes:
    """Makes and grows thick volumes."""

    def __init__(self, table: Table, changes: Changes, devices: ThinDevices) -> None:
        self._table = table
        self._changes = changes
        self._devices = devices
        self._making: dict[tuple[str, int], asyncio.Task[LvName]] = {}
        self._finishing: dict[str, asyncio.Task[None]] = {}

    async def create(self, volume: Volume) -> None:
        """Make a volume that reads as zeroes. Raises DriverError."""
        key = volume.id.hash, volume.size
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.create_task(self._make(*key), name=f"zeroing {volume.id}")
        try:
            name = await asyncio.shield(task)
        finally:
            if task.done():
                del self._making[key]
        try:
            await self._changes.retag(name, to_tags(dump_volume(volume), "volume", name.hash, name.generation))
        except BaseException:
            await self._changes.discard([str(name)])
            raise
        self._table.show(name)

    async def erase(self, volume: Volume) -> None:
        """Make a volume without a device zero again."""
        name = self._table.of(volume).name
        await self._mark(name, 0)
        await self.finish(name)

    async def expand(self, volume: Volume) -> None:
        """Make a volume larger that has no device: whoever had it open would see what former owners left in the new part."""
        lv = self._table.of(volume)
        if lv.size < volume.size:
            if self._devices.of(lv.name) is not None:
                raise Precondition(
                    f"{volume.id} is thick and in use, and in an LVM pool a thick volume grows only while it is not: end its pods, then "
                    "expand it; or use a class without provisioning: thick"
                )
            await self._mark(lv.name, lv.size)
            self._changes.crash_point("growth noted")
            await self._changes.extend(lv.name, volume.size)
        await self.finish(lv.name)

    async def finish(self, name: str) -> None:
        """Make zero what is not so yet of a logical volume without a device. Raises DriverError."""
        if _zeroed(self._table[name].tags) is None:
            return
        task = self._finishing.get(name)
        if task is None:
            task = self._finishing[name] = asyncio.create_task(self._finish(name), name=f"zeroing {name}")
        try:
            await asyncio.shield(task)
        finally:
            if task.done():
                self._finishing.pop(name, None)

    async def close(self) -> None:
        """Stop what is being zeroed. A volume that was being made is a draft, and goes at the next start."""
        tasks = [*self._making.values(), *self._finishing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, digest: str, size: int) -> LvName:
        (name,) = self._table.next_names("volume", [digest])
        try:
            await self._changes.create_linear(name, size, [DRAFT])
            await self._zero(str(name), 0)
            await self._changes.deactivate(str(name))
        except BaseException:
            await self._changes.discard([str(name)])
            raise
        return name

    async def _finish(self, name: str) -> None:
        start = _zeroed(self._table[name].tags) or 0
        await self._changes.activate(name)
        try:
            await self._zero(name, start)
        finally:
            await self._changes.deactivate(name)
        await self._changes.retag(name, (), drop=[f"{ZEROED}{start}"], keep=True)

    async def _mark(self, name: str, start: int) -> None:
        """Note that a logical volume is zero up to there alone, unless less is noted already."""
        known = _zeroed(self._table[name].tags)
        if known is None or start < known:
            drop = [] if known is None else [f"{ZEROED}{known}"]
            await self._changes.retag(name, [f"{ZEROED}{start}"], drop, keep=True)

    async def _zero(self, name: str, start: int) -> None:
        found = self._devices.of(name)
        if found is None:
            raise Unavailable(f"{name} has no device after lvm activated it: see the node's kernel log")
        device = BlockDevice(f"/dev/dm-{found.minor}", f"dm-{found.minor}", found.major, found.minor, found.uuid)
        seconds = _LEAST_SECONDS + (self._table[name].size - start) / _SLOWEST
        await self._devices.jobs.run(None, "zero", seconds, source=sources.present(device), start=start)
        self._changes.crash_point("zeroed")


def _zeroed(tags: tuple[str, ...]) -> int | None:
    """Up to where a logical volume is zero, by its tags; None: it is all that it should be."""
    found = [tag.removeprefix(ZEROED) for tag in tags if tag.startswith(ZEROED)]
    return min(map(int, found)) if found else None

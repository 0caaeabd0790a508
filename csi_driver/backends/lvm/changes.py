"""The changes of a pool, each one command of lvm and so one commit of the volume group, and what is done about one that failed.

A command that was killed may have committed or not. So what it was to make is in doubt from then on: before anything else is
changed, the volume group is read again, and what is in doubt is removed. Nothing can be attached or made meanwhile, so it is never
two things.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from csi_driver.backends.lvm.commands import Commands
from csi_driver.backends.lvm.names import LvName
from csi_driver.backends.lvm.table import Table
from csi_driver.backends.volume_helpers import finish_despite_cancel
from csi_driver.domain.errors import DriverError
from csi_driver.host.lvm import tags as lvm_tags
from csi_driver.host.lvm.reports import LogicalVolume

_OURS = "tm."
_BATCH = 32
"""Logical volumes that one lvremove takes away: four at once take 2.5 s, one 1.7 to 3.4 s, and nothing else runs meanwhile."""

CrashPoint = Callable[[str], None]
"""Called with a name between any two steps of a change; tests end the process there."""


class Changes:
    """Makes, changes and removes the logical volumes of one pool, one at a time, and keeps the table of them current."""

    def __init__(self, commands: Commands, table: Table, vg: str, pool: str) -> None:
        self._commands = commands
        self._table = table
        self._vg, self._pool = vg, pool
        self._turn = asyncio.Lock()
        self._in_doubt: set[str] = set()
        self._tags_in_doubt: set[str] = set()
        self._stale = False
        self.group_tags: tuple[str, ...] = ()
        self.count = 0
        """How many changes were begun."""
        self.crash_point: CrashPoint = lambda _: None

    async def create(self, name: LvName, size: int, tags: Sequence[str], *, read_only: bool = False) -> None:
        """Make an empty thin volume, inactive. `read_only`: a snapshot's, which nothing activates by itself either."""
        kind = ("-ky", "-pr") if read_only else ("-kn",)
        argv = ("lvcreate", "-V", f"{size}b", "-T", f"{self._vg}/{self._pool}", "-an", *kind, "-n", str(name))
        await self._make(LogicalVolume(str(name), "", size, tuple(tags), self._pool, "", None, "", None), argv)

    async def create_linear(self, name: LvName, size: int, tags: Sequence[str]) -> None:
        """Make a linear volume, active: it holds what its extents held before."""
        argv = ("lvcreate", "-L", f"{size}b", "-ay", "-Zn", "-Wn", "-n", str(name), self._vg)
        await self._make(LogicalVolume(str(name), "", size, tuple(tags), "", "", None, "", None), argv)

    async def clone(self, name: LvName, origin: LogicalVolume, tags: Sequence[str]) -> None:
        """Make a thin snapshot of an inactive logical volume: of an active one, lvm would suspend the device."""
        argv = ("lvcreate", "-s", "-an", "-kn", "-prw", "-n", str(name), f"{self._vg}/{origin.name}")
        made = LogicalVolume(str(name), "", origin.size, tuple(tags), self._pool, origin.name, None, "", None)
        await self._make(made, argv)

    async def extend(self, name: LvName | str, size: int) -> None:
        """Make a logical volume larger; its device follows, if it has one."""
        name = str(name)
        async with self._turn:
            await self._settle()
            await self._run("extended", "lvextend", "-L", f"{size}b", f"{self._vg}/{name}")
            self._table.put(replace(self._table[name], size=size))

    async def retag(
        self, name: LvName | str, tags: Sequence[str], drop: Sequence[str] = (), *, keep: bool = False
    ) -> None:
        """Replace the record's tags that a logical volume has, or keep them and add these; those of others stay. `drop`: go too."""
        name = str(name)
        async with self._turn:
            await self._settle()
            before = self._table[name].tags
            stay = [tag for tag in before if tag not in drop and (keep or not tag.startswith(_OURS))]
            after = tuple(dict.fromkeys([*stay, *tags]))
            if arguments := lvm_tags.changes(before, after):
                await self._run("tags changed", "lvchange", *arguments, f"{self._vg}/{name}")
                self._table.put(replace(self._table[name], tags=after))

    async def tag_group(self, add: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        """Add tags to the volume group and take others away."""
        async with self._turn:
            await self._settle()
            await self._tag_group(add, drop)

    async def remove(self, names: Sequence[str]) -> None:
        """Remove logical volumes, in this order. Those that are gone are fine."""
        async with self._turn:
            await self._settle()
            await self._remove(names)

    async def discard(self, names: Sequence[str], tags: Sequence[str] = ()) -> None:
        """Remove what an operation that failed has made: now, or before the next change. `tags`: of the volume group."""
        self._in_doubt.update(names)
        self._tags_in_doubt.update(tags)

        async def settle() -> None:
            with suppress(DriverError):
                async with self._turn:
                    await self._settle()

        await finish_despite_cancel(settle())

    async def activate(self, name: str) -> None:
        """Give a logical volume its device."""
        async with self._turn:
            await self._settle()
            await self._run("activated", "lvchange", "-ay", "-K", f"{self._vg}/{name}")

    async def deactivate(self, name: str) -> None:
        """Take a logical volume's device away. Raises InUse."""
        async with self._turn:
            await self._settle()
            await self._run("deactivated", "lvchange", "-an", f"{self._vg}/{name}")

    async def learn_ids(self, names: Sequence[str]) -> None:
        """Read uuids and thin ids of logical volumes that were made since the last report."""
        if any(self._table[name].thin_id is None for name in names):
            for lv in await self._commands.logical_volumes():
                if lv.name in self._table:
                    self._table.learn(lv.name, lv.uuid, lv.thin_id)

    async def _settle(self) -> None:
        """After a change that failed: read the volume group again, and remove what may have been made. Raises DriverError."""
        if self._stale:
            self._table.load(await self._commands.logical_volumes())
            self.group_tags = (await self._commands.volume_group()).tags
            self._stale = False
        # The record of a group first: without its members it would be damage.
        await self._tag_group((), [tag for tag in self.group_tags if tag in self._tags_in_doubt])
        self._tags_in_doubt.clear()
        await self._remove(sorted(self._in_doubt))
        self._in_doubt.clear()

    async def _make(self, lv: LogicalVolume, argv: Sequence[str]) -> None:
        async with self._turn:
            await self._settle()
            try:
                await self._run("made", *argv, *lvm_tags.additions(lv.tags))
            except BaseException:
                self._in_doubt.add(lv.name)
                raise
            self._table.put(lv)

    async def _tag_group(self, add: Sequence[str], drop: Sequence[str]) -> None:
        after = (*(tag for tag in self.group_tags if tag not in drop), *add)
        if arguments := lvm_tags.changes(self.group_tags, after):
            await self._run("group's tags changed", "vgchange", *arguments, self._vg)
            self.group_tags = after

    async def _remove(self, names: Sequence[str]) -> None:
        left = [name for name in names if name in self._table]
        for at in range(0, len(left), _BATCH):
            batch = left[at : at + _BATCH]
            await self._run("removed", "lvremove", "--yes", "--force", *(f"{self._vg}/{name}" for name in batch))
            for name in batch:
                self._table.drop(name)

    async def _run(self, what: str, *argv: str) -> None:
        """Run a command to its end, also when the caller is cancelled: what it did must be known."""
        self.count += 1
        try:
            await finish_despite_cancel(self._commands.change(*argv))
        except BaseException:
            self._stale = True
            raise
        self.crash_point(f"{argv[0]}: {what}")

"""The crash suite on pools of logical volumes: each run has a copy of a disk that was prepared, attached while it is looked at."""

import asyncio
import atexit
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from crash_killer import Killer
from crash_rig import State, World
from support import thin_disks
from support.fork_servers import helper_pool
from support.lvm_rig import LvmRig
from support.node_rig import Rig
from support.pool_disk import Disk, clean, mounts_below, share
from support.sizes import GIB

from csi_driver.host.dm import ioctl

_EXTENT = "1m"
"""The granule: what the scenarios have as the size of a small volume."""


_templates: dict[Callable[..., Any], Path] = {}
"""Images that were prepared, for all tests of this process: to make one takes as long as three kills."""
_before: dict[Callable[..., Any], State] = {}


@cache
def _place() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="crash-templates-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


class LvmWorld(World):
    """`Disk.image` of each rig is the image of a disk with a volume group."""

    kind = "lvm"
    options = {"children": True, "jobs": True}  # noqa: RUF012 - as in World
    _attached: Path | None = None

    def rig(self, pool: Path) -> Rig:
        """See World."""
        self.attach(pool)
        return LvmRig(self.place, Disk(pool, pool, None), self.children, options={"init": True})  # type: ignore[arg-type]

    def attach(self, pool: Path) -> None:
        """All copies have the same uuids: only one is there at a time."""
        if self._attached != pool:
            self.detach()
            thin_disks.attach(pool)
            self._attached = pool

    def detach(self) -> None:
        thin_disks.detach()
        self._attached = None

    async def template(self, prepare: Callable[[Rig], Awaitable[Any]]) -> Path:
        """See World."""
        if prepare not in _templates:
            self.detach()
            path = _place() / f"template-{len(_templates)}.img"
            thin_disks.make_disk_image(path, 2 * GIB, _EXTENT, "1g")
            self._attached = path
            async with self.opened(path) as rig:
                await prepare(rig)
            self.settle(path)
            self.detach()
            _templates[prepare] = path
        return _templates[prepare]

    async def copy(self, prepare: Callable[[Rig], Awaitable[Any]]) -> Path:
        """See World."""
        self.runs += 1
        path = self.place / f"run-{self.runs}.img"
        template = await self.template(prepare)
        self.detach()
        thin_disks.copy(template, path)
        self.attach(path)
        return path

    def drop(self, pool: Path) -> None:
        """See World."""
        self.detach()
        pool.unlink()

    def settle(self, pool: Path) -> None:
        """See World. A status that commits writes the thin pool's metadata."""
        os.sync()
        if thin_disks.is_active():
            ioctl.status(uuid=thin_disks.thin_pool().uuid, commit=True)

    def remount(self, pool: Path) -> None:
        """See World. What the kernel had of the pool and not written to its disk is not in a copy of the disk."""
        left = pool.with_suffix(".cut")
        thin_disks.copy(pool, left)
        self.detach()
        left.rename(pool)
        self.attach(pool)

    def tree(self, pool: Path) -> Any:
        """See World."""
        self.attach(pool)
        return thin_disks.sequence()

    async def check_tidy(self, rig: Rig, at_end: bool = False) -> None:
        """No logical volume and no thin device but those of objects; nothing suspended; no freeze in the journal."""
        items = [*rig.pool.volumes.values(), *rig.pool.snapshots.values()]
        until = time.monotonic() + 30
        while True:  # what nobody sees any more is removed in the background
            wanted = sorted(rig.backend.table.of(item).name for item in items)
            found = thin_disks.logical_volumes()
            names = sorted(lv.name for lv in found)
            if names == wanted or time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
        assert names == wanted, "logical volumes of no object, or objects without one"
        assert not any("tm.draft" in lv.tags for lv in found)
        assert thin_disks.kernel_ids() == {lv.thin_id for lv in found}, (
            "the kernel has other thin volumes than the group"
        )
        assert thin_disks.suspended() == []
        assert rig.left_inside() == []


@asynccontextmanager
async def lvm_world(place: Path, killer: Killer) -> AsyncIterator[World]:
    """A world in `place`; nothing may be left of it at the end."""
    share(place)
    try:
        async with helper_pool() as helpers:
            yield LvmWorld(place, None, helpers, killer, before=_before)  # type: ignore[arg-type]
    finally:
        thin_disks.detach()
        clean(place)
    assert not mounts_below(place)

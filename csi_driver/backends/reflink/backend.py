"""One reflink pool behind the Backend port."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from csi_driver.backends import shared_blocks
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
from csi_driver.backends.block_access import BlockDeviceAccess
from csi_driver.backends.local_pool import LocalPool
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import image_space, pool_lock, pool_reader
from csi_driver.backends.reflink.checks import ReflinkChecks, change_token
from csi_driver.backends.reflink.clones import ImageClones
from csi_driver.backends.reflink.freed import freed_bytes
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.backends.reflink.loop_devices import LoopDevices
from csi_driver.backends.snapshotter import Snapshotter
from csi_driver.backends.volume_helpers import finish_despite_cancel
from csi_driver.domain.capacity import Space
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host.freeze.journal import Journal
from csi_driver.host.fs import allocation, files, filesystems
from csi_driver.host.helper.client import HelperPool

_T = TypeVar("_T")
_THREADS = 16
"""Enough that the syncs of many callers meet in one write of the log."""
_CLOSE_SECONDS = 5.0
"""For the removal of deleted files that is going on at a close: most take milliseconds, a very fragmented one seconds."""
_TRASH_SECONDS = 30.0
"""For that of what a rollback of a thick volume leaves."""


class ReflinkBackend(LocalPool):
    """Volumes and snapshots as files that share their blocks."""

    def __init__(self, options: PoolOptions, helpers: HelperPool) -> None:
        self._options = options
        self.layout = Layout(Path(options.path), options.name)
        self._devices = LoopDevices(self.layout, helpers)
        self._kernel = BlockDeviceAccess(self._devices, seen_outside=options.in_container)
        self.access: VolumeAccess = self._kernel
        self._clones = ImageClones(self.layout, self.image, self._in_thread)
        self._snapshotter = Snapshotter(
            options.name,
            self._devices,
            self._clones,
            options.freeze_deadline,
            self._in_thread,
            lambda name: self.layout.crash_point(name),  # noqa: PLW0108 - a test replaces it later
        )
        self._checks = ReflinkChecks(self.layout, self.image, image_space.take_size, self._in_thread, self._empty_trash)
        self.checks: Checks = self._checks
        self.identity = PoolIdentity(options.name, options.owner, "", "reflink", options.path)
        self._lock = -1
        self._known: tuple[int, int] = (0, 0)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"pool-{options.name}")
        self._janitor = ThreadPoolExecutor(1, thread_name_prefix=f"trash-{options.name}")

    space_max_age = 0.0
    traits = Traits()

    @property
    def attached_devices(self) -> int:
        """See Backend."""
        return self._devices.count()

    async def open(self) -> PoolContents:
        """See Backend. Order matters: what was left frozen is thawed before anything may wait for it, or refuse the pool."""
        try:
            with self.layout.translated("opening"):
                await self._in_thread(self._take)
                await self._snapshotter.freezes.open(self._journal())
                contents = await self._in_thread(self._read)
                await self._devices.sweep()
                await self._kernel.sweep(contents.volumes)
        except BaseException:
            self._unlock()  # or the next try would find the pool locked, by this one
            raise
        self._empty_trash()
        return contents

    def _journal(self) -> Journal:
        runtime = self._options.runtime_directory
        directory = os.path.join(runtime, "freezes", self.identity.uuid) if runtime else ""
        if directory:
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
            except OSError as error:
                raise Precondition(
                    f"--runtime-dir {runtime} cannot be used ({error.strerror}): name a directory of the node's /run that the "
                    "agent may write to"
                ) from error
        return Journal(directory, str(self.layout.freezes))

    async def close(self) -> None:
        """See Backend."""
        await self._snapshotter.freezes.close()
        self._janitor.shutdown(wait=False, cancel_futures=True)
        # What it removes now has a directory of the pool open, which would keep the pool's disk from being unmounted.
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._janitor.shutdown), _CLOSE_SECONDS)
        self._threads.shutdown(wait=False)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check(self) -> None:
        """See Backend. An open finds both an unmounted pool and one whose file system was shut down."""
        try:
            fd = os.open(self.layout.identity, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.layout.error_for("the pool was looked at", error) from error
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if (status.st_dev, status.st_ino) != self._known:
            raise Unavailable(
                f"pool {self.layout.name}: {self.layout.root} is no longer what was opened: mount its disk again"
            )

    async def space(self) -> Space:
        """See Backend."""
        with self.layout.translated("the pool's space was asked for"):
            pool = os.statvfs(self.layout.root)
            free = pool.f_bavail * pool.f_frsize
            if self._options.backing:
                # A sparse image promises what its host may not have: writes would be accepted and lost.
                host = os.statvfs(self._options.backing)
                free = min(free, host.f_bavail * host.f_frsize)
            return Space(pool.f_blocks * pool.f_frsize, free)

    def space_needed(self, operation: SpaceOperation) -> SpaceNeeded:
        """See Backend."""
        allocated = {source.id.hash: self.allocated(source) for source in shared_blocks.thick(operation)}
        return shared_blocks.space_needed(operation, allocated)

    def allocated(self, volume: Volume) -> int:
        """See Backend."""
        with self.layout.translated("a volume's allocation was asked for"):
            return os.stat(self.image(volume)).st_blocks * 512

    async def content_format(self, item: Volume | Snapshot) -> str:
        """See Backend. From the image, which has what was written to a device once nobody has that open any more."""
        with self.layout.translated(f"looking at {item.id}"):
            return await self._in_thread(filesystems.probe, self.image(item))

    async def create_volume(self, volume: Volume, source: Snapshot | None) -> None:
        """See Backend."""
        with self.layout.translated(f"creation of {volume.name!r}"):
            await self._in_thread(self._make_volume, volume, self.image(source) if source is not None else None)

    async def save_volume(self, volume: Volume) -> None:
        """See Backend."""
        with self.layout.translated(f"change of {volume.id}"):
            await self._in_thread(self.layout.rewrite, self._place(volume), dump_volume(volume))

    async def expand_volume(self, volume: Volume) -> None:
        """See Backend."""
        with self.layout.translated(f"expansion of {volume.id}"):
            await self._in_thread(self._expand, volume)

    async def is_empty(self, volume: Volume) -> bool:
        """See Backend."""
        with self.layout.translated(f"looking into {volume.id}"):
            return await self._in_thread(image_space.is_empty, self.image(volume))

    async def erase(self, volume: Volume) -> None:
        """See Backend."""
        with self.layout.translated(f"emptying {volume.id}"):
            await self._in_thread(image_space.erase, self.image(volume), volume)

    async def delete_volume(self, volume: Volume) -> None:
        """See Backend."""
        await self._discard(str(volume.id), self._place(volume))
        await self._in_thread(self._checks.forget, volume)

    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """See Backend."""
        with self.layout.translated(_doing(target, sources)):
            return await self._clones.prepare(target, sources)

    async def quick(self, draft: Draft[Any]) -> Moment:
        """See Backend."""
        with self.layout.translated(_doing(draft.target, draft.sources)):
            return await self._snapshotter.quick(draft)

    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """See Backend."""
        with self.layout.translated(_doing(draft.target, draft.sources)):
            return await self._clones.publish(draft, moment)

    async def abandon(self, draft: Draft[Any]) -> None:
        """See Backend."""
        await self._clones.abandon(draft)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See Backend."""
        await self._discard(str(snapshot.id), self.layout.snapshots / snapshot.id.hash)

    async def delete_group(self, group: GroupSnapshot) -> None:
        """See Backend."""
        await self._discard(str(group.id), self.layout.groups / group.id.hash)

    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """See Backend."""
        with self.layout.translated(f"rollback of {volume.id}"):
            await self._in_thread(self._exchange, volume, self.image(snapshot))
        emptied = self._empty_trash()
        if volume.thick and emptied is not None:
            # When this returns, the room is no longer promised: it should be there for who waits for it.
            await asyncio.wait({asyncio.wrap_future(emptied)}, timeout=_TRASH_SECONDS)

    def change_token(self, item: Volume | Snapshot) -> str:
        """See Backend."""
        with self.layout.translated(f"looking at {item.id}"):
            return change_token(self.image(item))

    async def usage(self, item: Volume | Snapshot) -> Usage:
        """See Backend."""
        with self.layout.translated(f"the usage of {item.id}"):
            return await self._in_thread(image_space.usage, self.image(item))

    async def freed_together(self, chosen: Sequence[Volume | Snapshot]) -> int:
        """See Backend."""
        with self.layout.translated("what a deletion would free was asked for"):
            return await self._in_thread(freed_bytes, self.layout, [self.image(item) for item in chosen])

    def image(self, item: Volume | Snapshot) -> Path:
        """The file that holds an object's bytes."""
        if isinstance(item, Volume):
            return self._place(item) / IMAGE
        if item.group:
            return pool_reader.member_image(self.layout.groups / item.group, item.id.hash)
        return self.layout.snapshots / item.id.hash / IMAGE

    def _place(self, volume: Volume) -> Path:
        return self.layout.volumes / volume.id.hash

    def _take(self) -> None:
        uuid, self._lock = pool_lock.acquire_pool(
            self.layout, self._options.owner, self._options.init, self._options.in_container
        )
        self.identity = replace(self.identity, uuid=uuid)

    def _read(self) -> PoolContents:
        self.layout.make_directories()
        status = os.stat(self.layout.identity)
        self._known = (status.st_dev, status.st_ino)
        self._devices.file_system = status.st_dev
        self.layout.remove_leftovers()
        contents = pool_reader.read(self.layout, self._options.owner)
        self._checks.sweep({volume.id.hash: volume for volume in contents.volumes})
        return contents

    def _make_volume(self, volume: Volume, source: Path | None) -> None:
        with self.layout.new_draft(IMAGE) as draft:
            image = draft / IMAGE
            with image.open("r+b") as file:
                if source is not None:
                    with source.open("rb") as origin:
                        files.reflink(origin.fileno(), file.fileno())
                self.layout.crash_point("image filled")
                image_space.take_size(file.fileno(), volume)
            self.layout.publish(draft, dump_volume(volume), self._place(volume))

    def _expand(self, volume: Volume) -> None:
        with self.image(volume).open("r+b") as file:
            before = os.fstat(file.fileno()).st_size
            if before > volume.size:
                return
            try:
                if volume.thick:
                    # The new part alone: what the rest may lack is made good when it is staged, and must not fail this.
                    allocation.fill(file.fileno(), volume.size, before)
                os.ftruncate(file.fileno(), volume.size)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), before)  # gives back what was allocated past the end
                raise
            self.layout.crash_point("image grown")
            os.fsync(file.fileno())

    def _exchange(self, volume: Volume, source: Path) -> None:
        with self.layout.new_draft(IMAGE) as draft:
            image = draft / IMAGE
            with image.open("r+b") as file, source.open("rb") as origin:
                files.reflink(origin.fileno(), file.fileno())
                self.layout.crash_point("image filled")
                image_space.take_size(file.fileno(), volume)
            self.layout.exchange(draft, dump_volume(volume), self._place(volume))

    async def _discard(self, what: str, place: Path) -> None:
        with self.layout.translated(f"deletion of {what}"):
            await self._in_thread(self.layout.move_to_trash, place)
        self._empty_trash()

    def _empty_trash(self) -> Future[None] | None:
        with suppress(RuntimeError):  # closing: the next start empties it
            return self._janitor.submit(self.layout.empty_trash)
        return None

    async def _in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        return await finish_despite_cancel(asyncio.get_running_loop().run_in_executor(self._threads, function, *args))


def _doing(target: Volume | Snapshot | GroupSnapshot, sources: Sequence[Volume]) -> str:
    if isinstance(target, Snapshot):
        return f"snapshot {target.name!r} of {sources[0].id}"
    return f"{'creation of' if isinstance(target, Volume) else 'group snapshot'} {target.name!r}"

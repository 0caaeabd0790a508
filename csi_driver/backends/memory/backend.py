"""A pool in memory, for trying the driver and for tests: no root, no disk, nothing left afterwards.

It keeps every promise of the Backend port but these: contents end with the process; only raw block access, never
read-only; a copy costs what its source has allocated, in memory and in time (1 GiB takes about half a second, and
nothing else is served meanwhile), so it is for small images; and a snapshot is one moment only for writers that wait for it.
Usage is counted as a pool that shares blocks would count it, see `MemoryBackend.usage`.
"""

import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from csi_driver.backends import shared_blocks
from csi_driver.backends.base import (
    Changes,
    Checks,
    Draft,
    Moment,
    PoolContents,
    PoolIdentity,
    SnapshotTimings,
    SpaceNeeded,
    SpaceOperation,
    Target,
    Traits,
    VolumeAccess,
)
from csi_driver.backends.local_pool import LocalPool
from csi_driver.backends.memory.access import MemoryAccess, NoChecks, block_only
from csi_driver.backends.memory.faults import Faults, creation, faulty, translated
from csi_driver.backends.memory.images import Image
from csi_driver.backends.snapshots import filled
from csi_driver.domain.capacity import GIB, Limit, Space
from csi_driver.domain.errors import Damaged, OutOfSpace, Precondition, Unavailable
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume, VolumeUsage
from csi_driver.domain.records import dump_group, dump_snapshot, dump_volume, load_group, load_snapshot, load_volume
from csi_driver.host.fs import filesystems

__all__ = ["DEFAULT_TOTAL", "Faults", "MemoryBackend"]

DEFAULT_TOTAL = 64 * GIB
TRAITS = Traits(mounts=False, read_only=False, shares_blocks=False)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record, as it would lie on a disk, and the images that belong to it, by their objects' hashes."""

    record: bytes
    images: dict[str, Image]


class MemoryBackend(LocalPool):
    """One pool in memory. `total` is what it says of its size; memory is taken as it is written.

    Close and open it again, and it behaves as after a restart of the agent: what was made is there, as it was recorded.
    `discard` gives the memory back for good. `now` is the clock of the snapshots, in Unix nanoseconds. `traits`: so that tests
    can have a pool of another technology's traits; it is up to the services to keep them.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        total: int = DEFAULT_TOTAL,
        *,
        faults: Faults | None = None,
        now: Callable[[], int] = time.time_ns,
        traits: Traits = TRAITS,
    ) -> None:
        self.traits = traits
        self.limits: tuple[Limit, ...] = ()
        """What the pool says that it runs out of, for tests of what is then refused."""
        self.identity = PoolIdentity(name, owner, str(uuid.uuid4()), "memory", "")
        self.pool = name
        self.faults = faults or Faults()
        self._access = MemoryAccess(name, self._image, self.faults)
        self.access: VolumeAccess = self._access
        self.checks: Checks = NoChecks()
        self._total = total
        self._now = now
        self._open = False
        self._volumes: MutableMapping[str, StoredRecord] = {}
        self._snapshots: MutableMapping[str, StoredRecord] = {}
        self._groups: MutableMapping[str, StoredRecord] = {}

    space_max_age = 0.0

    @property
    def attached_devices(self) -> int:
        """See Backend. Images need no device here."""
        return 0

    @faulty
    async def open(self) -> PoolContents:
        """See Backend."""
        if self._open:
            raise Precondition(f"pool {self.pool} is open already: close it first")
        self._access.restart()
        self._open = True
        return self._contents_of(self._volumes, self._snapshots, self._groups)

    @staticmethod
    def _contents_of(
        volumes: Mapping[str, StoredRecord], snapshots: Mapping[str, StoredRecord], groups: Mapping[str, StoredRecord]
    ) -> PoolContents:
        return PoolContents(
            tuple(load_volume(held.record, held.images[key].size) for key, held in volumes.items()),
            tuple(load_snapshot(held.record, held.images[key].size) for key, held in snapshots.items()),
            tuple(
                load_group(held.record, {key: image.size for key, image in held.images.items()})
                for held in groups.values()
            ),
        )

    @faulty
    async def close(self) -> None:
        """See Backend."""
        self._open = False

    def discard(self) -> None:
        """Throw away all that is in the pool; its memory comes back. Links that show a volume are dead from now on."""
        for kind in (self._volumes, self._snapshots, self._groups):
            for held in kind.values():
                close_images(held)
            kind.clear()
        self._open = False

    def check(self) -> None:
        """See Backend."""
        self.faults.reach_now("check")
        if not self._open:
            raise Unavailable(f"pool {self.pool} is closed: open it")

    async def space(self) -> Space:
        """See Backend."""
        self.faults.reach_now("space")
        return self._space()

    def _space(self) -> Space:
        free = max(0, self._total - sum(image.allocated for image in self._images()))
        return Space(self._total, free, self.limits)

    def space_needed(self, operation: SpaceOperation) -> SpaceNeeded:
        """See Backend."""
        self.faults.reach_now("space_needed")
        allocated = {source.id.hash: self.allocated(source) for source in shared_blocks.thick(operation)}
        return shared_blocks.space_needed(operation, allocated)

    def allocated(self, volume: Volume) -> int:
        """See Backend."""
        self.faults.reach_now("allocated")
        return self._image(volume).allocated

    @faulty
    async def content_format(self, item: Volume | Snapshot) -> str:
        """See Backend."""
        return filesystems.probe(self._image(item).path)

    @faulty
    async def create_volume(self, volume: Volume, source: Snapshot | None) -> None:
        """See Backend. InvalidRequest for a volume that is to be mounted."""
        self._refuse_new(volume)
        with self._drafts() as draft:
            image = draft(volume, source)
            await self.faults.reach("create_volume", "half")
            self._volumes[volume.id.hash] = StoredRecord(dump_volume(volume), {volume.id.hash: image})

    @faulty
    async def save_volume(self, volume: Volume) -> None:
        """See Backend."""
        held = _known(self._volumes, volume)
        self._volumes[volume.id.hash] = replace(held, record=dump_volume(volume))

    @faulty
    async def expand_volume(self, volume: Volume) -> None:
        """See Backend."""
        self._ensure_writable()
        image = self._image(volume)
        if volume.thick:
            self._refuse_full(volume.size - image.allocated)
        image.grow(volume.size, volume.thick)

    @faulty
    async def is_empty(self, volume: Volume) -> bool:
        """See Backend."""
        return self._image(volume).is_empty()

    @faulty
    async def erase(self, volume: Volume) -> None:
        """See Backend."""
        self._ensure_writable()
        image = self._image(volume)
        image.erase()
        image.grow(volume.size, volume.thick)

    @faulty
    async def delete_volume(self, volume: Volume) -> None:
        """See Backend."""
        held = _known(self._volumes, volume)
        del self._volumes[volume.id.hash]
        close_images(held)
        self._access.forget(volume)

    @faulty
    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """See Backend. Members of a group in use are refused, as raw block volumes are anywhere: they cannot be frozen."""
        with translated(self.pool, creation(target)):
            await self.faults.reach(creation(target), "before")
            self._refuse_new(target)
            used = [source for source in sources if self._access.paths(source)]
            if used and len(sources) > 1:
                raise Precondition(
                    f"{used[0].id} is in use as a raw block device, which cannot be frozen; snapshot it "
                    "individually, or in a group while it is not staged"
                )
            images: dict[str, Image] = {}
            return Draft(target, tuple(sources), images)

    @faulty
    async def quick(self, draft: Draft[Any]) -> Moment:
        """See Backend."""
        name = creation(draft.target)
        with translated(self.pool, name), self._drafts() as copy:
            started, moment = time.monotonic(), self._now()
            for item, source in zip(_contents(draft.target), draft.sources, strict=True):
                draft.place[item.id.hash] = copy(item, source)
                if len(draft.place) == 1 and len(draft.sources) > 1:
                    await self.faults.reach(name, "half")
            timings = SnapshotTimings(cloned=time.monotonic() - started)
            if len(draft.sources) == 1:
                await self.faults.reach(name, "half")
            return Moment(moment, timings)

    @faulty
    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """See Backend."""
        images: dict[str, Image] = draft.place
        with translated(self.pool, creation(draft.target)):
            made = filled(draft, moment, [images[item.id.hash].size for item in _contents(draft.target)])
            if isinstance(made, Volume):
                self._volumes[made.id.hash] = StoredRecord(dump_volume(made), dict(images))
            elif isinstance(made, Snapshot):
                self._snapshots[made.id.hash] = StoredRecord(dump_snapshot(made), dict(images))
            else:
                self._groups[made.id.hash] = StoredRecord(dump_group(made), dict(images))
            images.clear()  # they are the pool's now, whatever becomes of this call
            await self.faults.reach(creation(draft.target), "after")
            return made

    @faulty
    async def abandon(self, draft: Draft[Any]) -> None:
        """See Backend."""
        for image in draft.place.values():
            image.close()

    @faulty
    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See Backend."""
        held = _known(self._snapshots, snapshot)
        del self._snapshots[snapshot.id.hash]
        close_images(held)

    @faulty
    async def delete_group(self, group: GroupSnapshot) -> None:
        """See Backend."""
        held = _known(self._groups, group)
        del self._groups[group.id.hash]
        close_images(held)

    @faulty
    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """See Backend."""
        old = _known(self._volumes, volume)
        with self._drafts() as draft:
            image = draft(volume, snapshot)
            await self.faults.reach("roll_back", "half")
            self._volumes[volume.id.hash] = StoredRecord(dump_volume(volume), {volume.id.hash: image})
        close_images(old)

    def change_token(self, item: Volume | Snapshot) -> str:
        """See Backend."""
        self.faults.reach_now("change_token")
        status = os.fstat(self._image(item).fd)
        return f"{status.st_ino}:{status.st_mtime_ns}"

    @faulty
    async def usage(self, item: Volume | Snapshot) -> Usage:
        """See Backend. Nothing is really shared here, so a block of 4096 bytes counts as shared where any other image of
        the pool holds the same bytes at the same offset: what a pool that shares blocks would say, but for equal bytes
        that were written twice. Reads the whole pool.
        """
        image = self._image(item)
        mine = image.blocks()
        shared: set[int] = set()
        for other in self._images():
            if other is not image and len(shared) < len(mine):
                theirs = other.blocks()
                shared |= {at for at, digest in mine.items() if theirs.get(at) == digest}
        size = len(shared) * 4096
        extents = sum(1 for _ in image.runs()) if self.traits.counts_extents else None
        return Usage(max(0, image.allocated - size), size, extents)

    @faulty
    async def freed_together(self, chosen: Sequence[Volume | Snapshot]) -> int:
        """See Backend. By the rule of `usage`, equal blocks at one offset being one; reads the whole pool."""
        images = [self._image(item) for item in chosen]
        kept: set[tuple[int, bytes]] = set()
        for other in self._images():
            if other not in images:
                kept.update(other.blocks().items())
        freed: set[tuple[int, bytes]] = set()
        unwritten = 0
        for image in images:
            blocks = image.blocks()
            freed.update(blocks.items())
            unwritten += max(0, image.allocated - len(blocks) * 4096)
        return unwritten + len(freed - kept) * 4096

    @asynccontextmanager
    async def guard(
        self, exclusive: Collection[str], shared: Collection[str], existence: Collection[str]
    ) -> AsyncIterator[Changes | None]:
        """See Backend. `after` is when the block begins."""
        await self.faults.reach("guard", "before")
        async with super().guard(exclusive, shared, existence) as changes:
            await self.faults.reach("guard", "after")
            yield changes

    @faulty
    async def users(self, volume: Volume) -> VolumeUsage:
        """See Backend."""
        return await super().users(volume)

    @faulty
    async def refresh(self) -> Changes | None:
        """See Backend."""
        return await super().refresh()

    def _ensure_writable(self) -> None:
        """Raise Unavailable where what is not in a record may be changed no more either."""

    def _refuse_new(self, target: Volume | Snapshot | GroupSnapshot) -> None:
        if isinstance(target, Volume):
            if any(capability.access != "block" for capability in target.request.capabilities):
                raise block_only(self.pool)
            _refuse_taken(self._volumes, target)
        else:
            _refuse_taken(self._snapshots if isinstance(target, Snapshot) else self._groups, target)

    def _images(self) -> Iterator[Image]:
        for kind in (self._volumes, self._snapshots, self._groups):
            for held in kind.values():
                yield from held.images.values()

    def _image(self, item: Volume | Snapshot) -> Image:
        if isinstance(item, Volume):
            return _known(self._volumes, item).images[item.id.hash]
        if not item.group:
            return _known(self._snapshots, item).images[item.id.hash]
        held = self._groups.get(item.group)
        if held is None or item.id.hash not in held.images:
            raise _lost(item)
        return held.images[item.id.hash]

    @contextmanager
    def _drafts(self) -> Iterator[Callable[[Volume | Snapshot, Volume | Snapshot | None], Image]]:
        """Make images that are closed again unless the block ends well."""
        made: list[Image] = []

        def draft(item: Volume | Snapshot, source: Volume | Snapshot | None) -> Image:
            origin = self._image(source) if source is not None else None
            thick = isinstance(item, Volume) and item.thick
            self._refuse_full(item.size if thick else origin.allocated if origin else 0)
            image = Image(item.id.hash)
            made.append(image)
            if origin is not None:
                image.take(origin)
            if isinstance(item, Volume):
                image.grow(item.size, item.thick)
                return image.keep_length()
            return image.seal()

        try:
            yield draft
        except BaseException:
            for image in made:
                image.close()
            raise

    def _refuse_full(self, needed: int) -> None:
        free = self._space().free
        if needed > free:
            raise OutOfSpace(f"pool {self.pool} has {free} bytes free and {needed} are needed: delete something first")


def _known(kind: MutableMapping[str, StoredRecord], item: Volume | Snapshot | GroupSnapshot) -> StoredRecord:
    held = kind.get(item.id.hash)
    if held is None:
        raise _lost(item)
    return held


def _contents(target: Volume | Snapshot | GroupSnapshot) -> Sequence[Volume | Snapshot]:
    return target.members if isinstance(target, GroupSnapshot) else (target,)


def _lost(item: Volume | Snapshot | GroupSnapshot) -> Damaged:
    return Damaged(f"{item.id} is not in its pool although it was read from it: restart the agent and report this")


def _refuse_taken(kind: MutableMapping[str, StoredRecord], item: Volume | Snapshot | GroupSnapshot) -> None:
    if item.id.hash in kind:
        raise Damaged(f"{item.id} exists although no record of it was read: restart the agent; nothing was changed")


def close_images(held: StoredRecord) -> None:
    for image in held.images.values():
        image.close()

"""A pool in memory, for trying the driver and for tests: no root, no disk, nothing left afterwards.

It keeps every promise of the Backend port but these: contents end with the process; only raw block access, never
read-only; a copy costs what its source has allocated, in memory and in time (1 GiB takes about half a second, and
nothing else is served meanwhile), so it is for small images; and a snapshot is one moment only for writers that wait for it.
Usage is counted as a pool that shares blocks would count it, see `MemoryBackend.usage`.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from csi_driver.backends import shared_blocks
from csi_driver.backends.base import (
    Checks,
    PoolContents,
    PoolIdentity,
    SnapshotTimings,
    SpaceNeeded,
    SpaceOperation,
    VolumeAccess,
)
from csi_driver.backends.memory.access import MemoryAccess, NoChecks, block_only
from csi_driver.backends.memory.faults import Faults, faulty
from csi_driver.backends.memory.images import Image
from csi_driver.domain.capacity import GIB, Space
from csi_driver.domain.errors import Damaged, OutOfSpace, Precondition, Unavailable
from csi_driver.domain.model import GroupSnapshot, Snapshot, Usage, Volume
from csi_driver.domain.records import dump_group, dump_snapshot, dump_volume, load_group, load_snapshot, load_volume
from csi_driver.host.fs import filesystems

__all__ = ["DEFAULT_TOTAL", "Faults", "MemoryBackend"]

DEFAULT_TOTAL = 64 * GIB


@dataclass(frozen=True, slots=True)
class _Held:
    """A record, as it would lie on a disk, and the images that belong to it, by their objects' hashes."""

    record: bytes
    images: dict[str, Image]


class MemoryBackend:
    """One pool in memory. `total` is what it says of its size; memory is taken as it is written.

    Close and open it again, and it behaves as after a restart of the agent: what was made is there, as it was recorded.
    `discard` gives the memory back for good. `now` is the clock of the snapshots, in Unix nanoseconds.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        total: int = DEFAULT_TOTAL,
        *,
        faults: Faults | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.identity = PoolIdentity(name, owner, str(uuid.uuid4()), "memory", "")
        self.pool = name
        self.faults = faults or Faults()
        self._access = MemoryAccess(name, self._image, self.faults)
        self.access: VolumeAccess = self._access
        self.checks: Checks = NoChecks()
        self._total = total
        self._now = now
        self._open = False
        self._volumes: dict[str, _Held] = {}
        self._snapshots: dict[str, _Held] = {}
        self._groups: dict[str, _Held] = {}

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
        return PoolContents(
            tuple(load_volume(held.record, held.images[key].size) for key, held in self._volumes.items()),
            tuple(load_snapshot(held.record, held.images[key].size) for key, held in self._snapshots.items()),
            tuple(
                load_group(held.record, {key: image.size for key, image in held.images.items()})
                for held in self._groups.values()
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
                _close(held)
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
        return Space(self._total, max(0, self._total - sum(image.allocated for image in self._images())))

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
    async def create_volume(self, volume: Volume, source: Volume | Snapshot | None) -> SnapshotTimings:
        """See Backend. InvalidRequest for a volume that is to be mounted."""
        if any(capability.access != "block" for capability in volume.request.capabilities):
            raise block_only(self.pool)
        _refuse_taken(self._volumes, volume)
        with self._drafts() as draft:
            started = time.monotonic()
            image = draft(volume, source)
            cloned = time.monotonic() - started
            await self.faults.reach("create_volume", "half")
            self._volumes[volume.id.hash] = _Held(dump_volume(volume), {volume.id.hash: image})
        return SnapshotTimings(cloned=cloned if isinstance(source, Volume) else 0.0)

    @faulty
    async def save_volume(self, volume: Volume) -> None:
        """See Backend."""
        held = _known(self._volumes, volume)
        self._volumes[volume.id.hash] = replace(held, record=dump_volume(volume))

    @faulty
    async def expand_volume(self, volume: Volume) -> None:
        """See Backend."""
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
        image = self._image(volume)
        image.erase()
        image.grow(volume.size, volume.thick)

    @faulty
    async def delete_volume(self, volume: Volume) -> None:
        """See Backend."""
        _close(_known(self._volumes, volume))
        del self._volumes[volume.id.hash]
        self._access.forget(volume)

    @faulty
    async def create_snapshot(self, snapshot: Snapshot, source: Volume) -> tuple[Snapshot, SnapshotTimings]:
        """See Backend."""
        _refuse_taken(self._snapshots, snapshot)
        with self._drafts() as draft:
            started, moment = time.monotonic(), self._now()
            image = draft(snapshot, source)
            cloned = time.monotonic() - started
            await self.faults.reach("create_snapshot", "half")
            made = replace(snapshot, size=image.size, created=moment)
            self._snapshots[made.id.hash] = _Held(dump_snapshot(made), {made.id.hash: image})
        return made, SnapshotTimings(cloned=cloned)

    @faulty
    async def create_group(
        self, group: GroupSnapshot, sources: Sequence[Volume]
    ) -> tuple[GroupSnapshot, SnapshotTimings]:
        """See Backend. Members in use are refused, as raw block volumes are anywhere: they cannot be frozen."""
        _refuse_taken(self._groups, group)
        used = [source for source in sources if self._access.paths(source)]
        if used and len(sources) > 1:
            raise Precondition(
                f"{used[0].id} is in use as a raw block device, which cannot be frozen; snapshot it "
                "individually, or in a group while it is not staged"
            )
        with self._drafts() as draft:
            started, moment = time.monotonic(), self._now()
            images: dict[str, Image] = {}
            for member, source in zip(group.members, sources, strict=True):
                images[member.id.hash] = draft(member, source)
                if len(images) == 1:
                    await self.faults.reach("create_group", "half")
            cloned = time.monotonic() - started
            members = tuple(replace(m, size=images[m.id.hash].size, created=moment) for m in group.members)
            made = replace(group, members=members, created=moment)
            self._groups[made.id.hash] = _Held(dump_group(made), images)
        return made, SnapshotTimings(cloned=cloned)

    @faulty
    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See Backend."""
        _close(_known(self._snapshots, snapshot))
        del self._snapshots[snapshot.id.hash]

    @faulty
    async def delete_group(self, group: GroupSnapshot) -> None:
        """See Backend."""
        _close(_known(self._groups, group))
        del self._groups[group.id.hash]

    @faulty
    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """See Backend."""
        old = _known(self._volumes, volume)
        with self._drafts() as draft:
            image = draft(volume, snapshot)
            await self.faults.reach("roll_back", "half")
            self._volumes[volume.id.hash] = _Held(dump_volume(volume), {volume.id.hash: image})
        _close(old)

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
        return Usage(max(0, image.allocated - size), size, sum(1 for _ in image.runs()))

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


def _known(kind: dict[str, _Held], item: Volume | Snapshot | GroupSnapshot) -> _Held:
    held = kind.get(item.id.hash)
    if held is None:
        raise _lost(item)
    return held


def _lost(item: Volume | Snapshot | GroupSnapshot) -> Damaged:
    return Damaged(f"{item.id} is not in its pool although it was read from it: restart the agent and report this")


def _refuse_taken(kind: dict[str, _Held], item: Volume | Snapshot | GroupSnapshot) -> None:
    if item.id.hash in kind:
        raise Damaged(f"{item.id} exists although no record of it was read: restart the agent; nothing was changed")


def _close(held: _Held) -> None:
    for image in held.images.values():
        image.close()

"""One agent's side of a memory pool that several agents share: for tests of what they do to each other.

    catalogue = new_catalogue(clock)
    a = SharedMemoryBackend("p", "node-1", catalogue)
    b = SharedMemoryBackend("p", "node-2", catalogue)

An agent is a backend from `open` to `close`; to restart one, make another of the same node.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace

from csi_driver.backends.base import Changes, PoolContents, PoolIdentity, Traits, VolumeAccess
from csi_driver.backends.memory.access import MemoryAccess
from csi_driver.backends.memory.backend import DEFAULT_TOTAL, TRAITS, MemoryBackend, StoredRecord, close_images
from csi_driver.backends.memory.catalogue import Catalogue, Session, View
from csi_driver.backends.memory.faults import Faults, faulty
from csi_driver.domain.errors import Unavailable
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.model import Volume, VolumeUsage

SHARED_TRAITS = replace(TRAITS, shared=True)


def new_catalogue(now: Callable[[], int] = time.time_ns) -> Catalogue[StoredRecord]:
    """Return an empty pool. `now` is Unix time in nanoseconds."""
    return Catalogue(now)


def discard(catalogue: Catalogue[StoredRecord]) -> None:
    """Throw away all that is in a pool; its memory comes back."""
    for table in (catalogue.volumes, catalogue.snapshots, catalogue.groups):
        for entry in table.entries.values():
            close_images(entry.value)
        table.entries.clear()


class SharedMemoryBackend(MemoryBackend):
    """The pool as the agent of `node` reaches it."""

    def __init__(
        self,
        name: str,
        node: str,
        catalogue: Catalogue[StoredRecord],
        total: int = DEFAULT_TOTAL,
        *,
        faults: Faults | None = None,
        now: Callable[[], int] = time.time_ns,
        traits: Traits = SHARED_TRAITS,
    ) -> None:
        super().__init__(name, ANY_OWNER, total, faults=faults, now=now, traits=traits)
        self.identity = PoolIdentity(name, ANY_OWNER, catalogue.uuid, "memory", "")
        self.node = node
        self._catalogue = catalogue
        self._session: Session | None = None
        self._volumes = self._volume_view = View(catalogue, catalogue.volumes, self.current_session, _sizes)
        self._snapshots = self._snapshot_view = View(catalogue, catalogue.snapshots, self.current_session, _sizes)
        self._groups = self._group_view = View(catalogue, catalogue.groups, self.current_session, _sizes)
        self._access = _SharedAccess(self)
        self.access: VolumeAccess = self._access

    def current_session(self) -> Session:
        """The agent's session. Raises Unavailable before `open`."""
        if self._session is None:
            raise Unavailable(f"pool {self.pool} is closed: open it")
        return self._session

    async def open(self) -> PoolContents:
        """See Backend. Fences what is left of an earlier agent of the same node."""
        self._session = self._catalogue.enter(self.node)
        contents = await super().open()
        for view in (self._volume_view, self._snapshot_view, self._group_view):
            view.changed()
        return contents

    async def close(self) -> None:
        """See Backend."""
        await super().close()
        if self._session is not None:
            self._catalogue.leave(self._session)

    def check(self) -> None:
        """See Backend. Unavailable for an agent that was fenced: what it knows is old."""
        super().check()
        self._catalogue.check(self.current_session())

    @asynccontextmanager
    async def guard(
        self, exclusive: Collection[str], shared: Collection[str], existence: Collection[str]
    ) -> AsyncIterator[Changes | None]:
        """See Backend."""
        await self.faults.reach("guard", "before")
        lock = self._catalogue.lock(self.current_session(), {*exclusive, *existence}, shared)
        try:
            await self.faults.reach("guard", "after")
            yield self._changes({*exclusive, *shared, *existence})
        finally:
            self._catalogue.unlock(lock)

    @faulty
    async def users(self, volume: Volume) -> VolumeUsage:
        """See Backend."""
        use = await self.access.use(volume)
        node = self._catalogue.attached_on(volume.uid)
        return replace(use, nodes=(node,) if node not in ("", self.node) else ())

    @faulty
    async def refresh(self) -> Changes | None:
        """See Backend."""
        self._catalogue.check(self.current_session())
        return self._changes(None)

    def _ensure_writable(self) -> None:
        self._catalogue.check(self.current_session())

    def _changes(self, keys: Collection[str] | None) -> Changes:
        volumes, no_volumes = self._volume_view.changed(keys)
        snapshots, no_snapshots = self._snapshot_view.changed(keys)
        groups, no_groups = self._group_view.changed(keys)
        contents = self._contents_of(volumes, snapshots, groups)
        gone = frozenset(no_volumes | no_snapshots | no_groups)
        return Changes(contents.volumes, contents.snapshots, contents.groups, gone)


def _sizes(held: StoredRecord) -> object:
    """What a record says of its images by having them: one that has grown is another, although the record is the same."""
    return tuple(image.size for image in held.images.values())


class _SharedAccess(MemoryAccess):
    """Shows volumes on one node. Which node has a volume is written in the pool: one at a time."""

    def __init__(self, backend: SharedMemoryBackend) -> None:
        super().__init__(backend.pool, backend._image, backend.faults)
        self._backend = backend
        self._links = backend._catalogue.links.setdefault(backend.node, {})

    async def attach(self, volume: Volume) -> str:
        """See VolumeAccess. Raises InUse while another node has it."""
        self._backend._catalogue.attach(self._backend.current_session(), volume)
        return await super().attach(volume)

    async def detach(self, volume: Volume) -> None:
        """See VolumeAccess. The pool is told last: until then the volume is in use."""
        await super().detach(volume)
        self._backend._catalogue.detach(self._backend.current_session(), volume.uid)

    def forget(self, volume: Volume) -> None:
        """See MemoryAccess."""
        super().forget(volume)
        self._backend._catalogue.detach(self._backend.current_session(), volume.uid)

    def restart(self) -> None:
        """See MemoryAccess: what this node has attached and shows nowhere is let go."""
        super().restart()
        session = self._backend.current_session()
        for uid in self._backend._catalogue.attached_by(session):
            if not self._links.get(uid):
                self._backend._catalogue.detach(session, uid)

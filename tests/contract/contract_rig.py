"""What the contract suite runs on: one entry in RIGS for each technology, and a World of services above it."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from lvm_rig import in_machine, lvm_rig
from support.clocks import Clock
from support.files import write_pieces
from support.fork_servers import helper_pool

from csi_driver.backends.base import Backend, Traits
from csi_driver.backends.memory.backend import Faults, MemoryBackend
from csi_driver.backends.memory.shared import SharedMemoryBackend, discard, new_catalogue
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.registry import BACKENDS
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.ids import ANY_OWNER, Kind, name_hash
from csi_driver.domain.model import (
    AccessMode,
    Capability,
    CompletedRollback,
    GroupSnapshot,
    Hold,
    SizeRange,
    Snapshot,
    Source,
    Volume,
    VolumeRequest,
)
from csi_driver.service.build import build_services
from csi_driver.service.group_snapshots import GroupSnapshots
from csi_driver.service.node_volumes import NodeVolumes
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.rollbacks import RollbackRequest, Rollbacks
from csi_driver.service.snapshots import SnapshotRequest, Snapshots
from csi_driver.service.volumes import Volumes

OWNER = "node-1"
POOL = "contract"
BLOCK = 4096
SIZE = 16 * BLOCK
RAW_BLOCK = Capability("block", AccessMode.WRITER)
MOUNTED = Capability("mount", AccessMode.WRITER, "ext4")


def block(mode: AccessMode) -> Capability:
    return Capability("block", mode)


class Rig(Protocol):
    """One pool of one technology, which can be left and entered again."""

    kind: str
    """As in backends/registry.py."""
    owner: str = OWNER
    """Of the ids in the pool."""
    knows_when_closed: bool = False
    """Whether a closed pool says so. Others own a lock that the operating system takes from them."""
    frees_at_once: bool = False
    """Whether space is back when a deletion returns: it may come later."""
    random_steps: int = 40
    """How many operations a random history has, for a few seconds' work."""
    faults: Faults | None = None

    async def backend(self) -> Backend:
        """A backend on the pool, not open; the one before was closed."""
        ...


class InMemory:
    """What holds of every pool in memory."""

    kind = "memory"
    owner = OWNER
    knows_when_closed = True
    frees_at_once = True
    random_steps = 250

    def __init__(self) -> None:
        self.faults: Faults | None = Faults()


class MemoryRig(InMemory):
    def __init__(self) -> None:
        super().__init__()
        self.pool = MemoryBackend(POOL, OWNER, faults=self.faults)

    async def backend(self) -> Backend:
        return self.pool


@asynccontextmanager
async def memory_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = MemoryRig()
    try:
        yield rig
    finally:
        rig.pool.discard()


class SharedMemoryRig(InMemory):
    """A pool in memory that every node reaches; `backend` is the agent of one."""

    owner = ANY_OWNER

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        super().__init__()
        self.catalogue = new_catalogue(now)

    async def backend(self, node: str = OWNER, faults: Faults | None = None) -> SharedMemoryBackend:
        return SharedMemoryBackend(POOL, node, self.catalogue, faults=faults or self.faults)


@asynccontextmanager
async def shared_memory_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = SharedMemoryRig()
    try:
        yield rig
    finally:
        discard(rig.catalogue)


class ReflinkRig:
    kind = "reflink"
    owner = OWNER
    knows_when_closed = False
    frees_at_once = False
    random_steps = 40
    faults: Faults | None = None

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._make = make

    async def backend(self) -> Backend:
        return self._make()


@asynccontextmanager
async def reflink_rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    root: Path = request.getfixturevalue("xfs")
    directory = root / f"pool-{time.monotonic_ns()}"
    directory.mkdir()
    async with helper_pool() as helpers:
        yield ReflinkRig(lambda: BACKENDS["reflink"].make(PoolOptions(POOL, OWNER, str(directory), init=True), helpers))


RIGS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Rig]]] = {
    "memory": memory_rig,
    "memory-shared": shared_memory_rig,
    "reflink": reflink_rig,
    "lvm": lvm_rig,
}
"""At least one for each kind of backends/registry.py, which is what comes before the dash."""


def kind_of(name: str) -> str:
    """The technology of a rig."""
    return name.partition("-")[0]


def runs_here(name: str) -> bool:
    """Whether a rig runs in this process: that of LVM in a machine of its own, and there nothing else (tests/lvm/test_inside.py)."""
    return (name == "lvm") == in_machine()


assert {kind_of(name) for name in RIGS} == BACKENDS.keys()


class World:
    """The services of one agent over one pool, and short words for what tests do with them."""

    volumes: Volumes
    snapshots: Snapshots
    groups: GroupSnapshots
    rollbacks: Rollbacks
    nodes: NodeVolumes

    def __init__(self, rig: Rig, directory: Path, node: str = OWNER) -> None:
        self.rig = rig
        self.node = node
        self.directory = directory
        self.clock = Clock()
        self._count = 0

    async def open(self, policy: CapacityPolicy | None = None) -> None:
        self.backend = await self.rig.backend()
        self.pool = Pool(self.backend, policy or CapacityPolicy(reserve=0))
        await self.pool.open()
        self.pools = Pools(self.node, [self.pool])
        self.pools.locks.patience = (
            0.0  # what stands still here stands until the test lets it go: nobody need wait to see that
        )
        self.services = build_services(self.pools, now=self.clock)
        self.context = self.services.dependencies
        self.volumes = self.services.volumes
        self.snapshots = self.services.snapshots
        self.groups = self.services.group_snapshots
        self.rollbacks = self.services.rollbacks
        self.nodes = self.services.node_volumes

    @property
    def traits(self) -> Traits:
        """What the technology does otherwise."""
        return self.backend.traits

    def id_of(self, kind: Kind, name: str) -> str:
        """The id that a thing of this name has, or will have."""
        return str(self.pool.ref.object_id(name_hash(kind, name)))

    @property
    def unknown(self) -> str:
        """An id that nothing in the pool has."""
        return str(self.pool.ref.object_id("0" * 32))

    async def reopen(self) -> None:
        """A restart of the agent; what is staged and published stays."""
        await self.backend.close()
        await self.open(self.pool.policy)

    async def clean(self) -> None:
        """Take away everything that is shown, so that nothing stays attached after the test."""
        for volume in list(self.pool.volumes.values()):
            for path in (await self.backend.access.use(volume)).paths:
                await self.backend.access.unmount(volume, path)
            await self.backend.access.detach(volume)
        await self.backend.close()

    # ---- volumes and snapshots

    async def volume(
        self,
        name: str,
        size: int = SIZE,
        source: Volume | Snapshot | None = None,
        limit: int = 0,
        capabilities: tuple[Capability, ...] = (RAW_BLOCK,),
        **parameters: str,
    ) -> Volume:
        return await self.volumes.create(request(name, size, source, limit, capabilities, **parameters))

    async def snapshot(self, name: str, volume: Volume) -> Snapshot:
        return await self.snapshots.create(SnapshotRequest(name, str(volume.id)))

    async def group(self, name: str, *volumes: Volume) -> GroupSnapshot:
        return await self.groups.create(name, [str(v.id) for v in volumes], {})

    async def expand(self, volume: Volume, size: int) -> Volume:
        return await self.volumes.expand(str(volume.id), SizeRange(size))

    async def hold(self, volume: Volume, holder: str) -> Hold:
        return await self.rollbacks.hold(str(volume.id), holder)

    async def roll_back(
        self, volume: Volume, snapshot: Snapshot, name: str, holder: str = "", safety: str | None = None
    ) -> tuple[CompletedRollback, bool]:
        """`safety`: empty for one that the driver makes, an id for the caller's own, None for none."""
        return await self.rollbacks.roll_back(
            RollbackRequest(
                str(volume.id), str(snapshot.id), name, holder, skip_safety=safety is None, safety=safety or ""
            )
        )

    def now(self, volume: Volume) -> Volume:
        """The volume as it is now."""
        return self.volumes.get(str(volume.id))

    # ---- showing

    def staging(self, volume: Volume) -> str:
        path = self.directory / "staging" / volume.id.hash
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def target(self, volume: Volume, where: str = "a") -> str:
        path = self.directory / "targets" / where / volume.id.hash
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    async def stage(self, volume: Volume, capability: Capability = RAW_BLOCK) -> None:
        await self.nodes.stage(str(volume.id), self.staging(volume), capability)

    async def stage_id(self, text: str) -> None:
        await self.nodes.stage(text, str(self.directory), RAW_BLOCK)

    async def publish(
        self, volume: Volume, where: str = "a", capability: Capability = RAW_BLOCK, read_only: bool = False
    ) -> str:
        target = self.target(volume, where)
        await self.nodes.publish(str(volume.id), self.staging(volume), target, capability, read_only)
        return target

    async def unpublish(self, volume: Volume, where: str = "a") -> None:
        await self.nodes.unpublish(str(volume.id), self.target(volume, where))

    async def unstage(self, volume: Volume) -> None:
        await self.nodes.unstage(str(volume.id), self.staging(volume))

    @asynccontextmanager
    async def shown(self, volume: Volume) -> AsyncIterator[str]:
        """The path of a volume, staged and published for as long as the block runs."""
        await self.stage(volume)
        try:
            target = await self.publish(volume, "shown")
            try:
                yield target
            finally:
                await self.unpublish(volume, "shown")
        finally:
            await self.unstage(volume)

    # ---- bytes

    async def write(self, volume: Volume, *pieces: tuple[int, bytes]) -> None:
        """Write through the published path, durably."""
        async with self.shown(volume) as path:
            write_pieces(path, *pieces)

    async def read(self, volume: Volume) -> bytes:
        """All bytes, through the published path."""
        async with self.shown(volume) as path:
            return read_all(path)

    async def content(self, snapshot: Snapshot) -> bytes:
        """What a snapshot holds, by way of a volume made from it."""
        self._count += 1
        probe = await self.volume(f"probe-{self._count}", 0, source=snapshot)
        try:
            return await self.read(probe)
        finally:
            await self.volumes.delete(str(probe.id))


def request(
    name: str,
    size: int = SIZE,
    source: Volume | Snapshot | None = None,
    limit: int = 0,
    capabilities: tuple[Capability, ...] = (RAW_BLOCK,),
    **parameters: str,
) -> VolumeRequest:
    origin = None
    if source is not None:
        origin = Source("volume" if isinstance(source, Volume) else "snapshot", str(source.id))
    return VolumeRequest(name, SizeRange(size, limit), capabilities, parameters, {}, origin)


def read_all(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def filled(*blocks: str, size: int = SIZE) -> bytes:
    """The model: what a disk of `size` holds whose first blocks were filled with these letters; '.' is a block of zeroes."""
    model = bytearray(size)
    for index, letter in enumerate(blocks):
        if letter != ".":
            model[index * BLOCK : (index + 1) * BLOCK] = letter.encode() * BLOCK
    return bytes(model)


def piece(index: int, letter: str) -> tuple[int, bytes]:
    """One block to write: its offset and content."""
    return index * BLOCK, letter.encode() * BLOCK

"""The port of a storage technology: one Backend is one pool. No implementation is imported here.

All methods that take time are coroutines and leave the pool as it was if they fail. The service calls them under the
locks of the objects that they change, so a backend never sees two operations on one object at a time. Errors are those
of domain.errors; anything else is a defect. docs/architecture.md ("What a backend does") has a table of what each method does.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from csi_driver.domain.capacity import Space
from csi_driver.domain.model import Capability, GroupSnapshot, Snapshot, Usage, Volume, VolumeCondition, VolumeUsage
from csi_driver.domain.sizes import BLOCK

STAGED_NODE = "device"
"""The name under which a staged block volume is visible inside its staging directory."""


DEAR_RECORD_SECONDS = 0.05
"""A record that takes longer to write is written as seldom as is safe. A file and its sync take 2 ms, a change of LVM 400."""

KEPT_SECONDS = 7 * 86400
"""How long what a volume held before its file system was mended is kept: time to find out that something is missing."""


@dataclass(frozen=True, slots=True)
class PoolContents:
    """All objects of a pool, as read when it is opened."""

    volumes: tuple[Volume, ...]
    snapshots: tuple[Snapshot, ...]
    groups: tuple[GroupSnapshot, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What other agents did in a shared pool: the records that are others now, and the hashes of what is there no more."""

    volumes: tuple[Volume, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    groups: tuple[GroupSnapshot, ...] = ()
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SnapshotTimings:
    """How long a snapshot held file systems frozen (0 if none was mounted) and how long it cloned, in seconds."""

    frozen: float = 0.0
    cloned: float = 0.0


Target = TypeVar("Target", Volume, Snapshot, GroupSnapshot)
"""What holds volumes as they are at one moment. A volume: the clone of another one."""


@dataclass(frozen=True, slots=True)
class Draft(Generic[Target]):
    """Something that is being made, and that nobody sees yet.

    `target`: its record; `publish` fills in what only the moment tells. `sources`: the volumes that it holds, for a group in the order of its
    members. `place`: the technology's own.
    """

    target: Target
    sources: tuple[Volume, ...]
    place: Any


@dataclass(frozen=True, slots=True)
class Moment:
    """When the sources of a draft were taken (Unix nanoseconds), and what that cost.

    `conditions`: what was wrong with file systems then, by their volumes' hashes.
    """

    at: int
    timings: SnapshotTimings
    conditions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpaceOperation:
    """An operation that takes space: it shares the blocks of `sources`, and makes the content of `volume` (None: of none) again.

    create: an empty volume, or one from a snapshot. clone: a volume from a volume. check: a file system is mended beside what the
    volume holds. rollback: the volume's content is replaced.
    """

    kind: Literal["create", "clone", "snapshot", "check", "rollback"]
    sources: tuple[Volume, ...] = ()
    volume: Volume | None = None


@dataclass(frozen=True, slots=True)
class SpaceNeeded:
    """Bytes that an operation takes at once, and how they come about, in words for a refusal."""

    bytes: int
    formula: str


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """The identity of a pool."""

    name: str
    owner: str
    uuid: str
    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What differs between technologies, as facts. Services and tests ask these, and never which technology a pool is of.

    `shared`: every node reaches the pool, so that its owner is `*` and other agents change it too. `granule`: sizes are multiples
    of it, in bytes; itself a multiple of 4096. `thick`: thick volumes are served; `thick_copies`: they can be snapshotted and cloned
    as well. `max_relatives`: how many snapshots one volume may have by the technology; 0: no limit. `counts_extents`: `Usage.extents`
    is counted. `record_cost`: seconds that one `save_volume` takes: a caller writes several changes at once where it is high.
    `suspends`: raw block volumes in use are stopped for the moment of a snapshot, so that a group may have them. `mounts`: volumes
    can be mounted, not only shown as devices. `read_only`: a raw block volume can be published so that nobody writes to it.
    `shares_blocks`: copies share the blocks of their source, so that they cost no space.
    """

    shared: bool = False
    granule: int = BLOCK
    thick: bool = True
    thick_copies: bool = True
    max_relatives: int = 0
    counts_extents: bool = True
    record_cost: float = 0.002
    suspends: bool = False
    mounts: bool = True
    read_only: bool = True
    shares_blocks: bool = True

    @property
    def records_are_dear(self) -> bool:
        """Whether changes of a record are folded into one, even where each has a step of its own."""
        return self.record_cost > DEAR_RECORD_SECONDS


@dataclass(frozen=True, slots=True)
class FileSystemStats:
    """The answer to NodeGetVolumeStats: bytes always, inodes for file systems."""

    total: int
    used: int = 0
    available: int = 0
    inodes: int = 0
    inodes_used: int = 0
    inodes_free: int = 0
    condition: VolumeCondition | None = None
    """The condition of the file system; None: nothing is wrong as far as the kernel knows."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a volume's file system, begun at `started` (Unix nanoseconds) since `why`; `said`: in the program's words.

    mended: the checked copy can take the volume's place. damaged: it is beyond what is mended without a person. failed: the
    check could not do its work. In each case the volume still is what it was. `kept`: where in the pool it will lie.
    """

    why: str
    started: int
    kept: str
    result: Literal["running", "mended", "damaged", "failed"]
    said: str = ""


class VolumeAccess(Protocol):
    """Attaches, stages and publishes a pool's volumes on this node. State is the kernel's: nothing is remembered between calls."""

    async def use(self, volume: Volume) -> VolumeUsage:
        """Return the volume's device and every path at which it is visible now."""
        ...

    async def attach(self, volume: Volume) -> str:
        """Give the volume a device, or find the one that it has, at the volume's size; return its path. Never a second one."""
        ...

    async def detach(self, volume: Volume) -> None:
        """Detach an unused device, verified. Raises InUse if anything still uses it; fine if there is none."""
        ...

    async def make_file_system(self, volume: Volume, fs_type: str) -> None:
        """Attach the volume and format it. The caller has made the intent durable."""
        ...

    async def mount(self, volume: Volume, point: str, fs_type: str, flags: Sequence[str]) -> bool:
        """Attach the volume and mount it at `point`; the same mount again is fine, another is AlreadyExists.

        Returns whether its file system is smaller than the volume, so that `grow` has something to do. Raises NotMountable if
        the file system contradicts itself, Precondition if what is mounted already is in trouble.
        """
        ...

    async def grow(self, volume: Volume, point: str) -> None:
        """Grow device and mounted file system (or the device alone for block) to the volume's size.

        Raises Precondition if it cannot grow as it is mounted.
        """
        ...

    async def bind(self, volume: Volume, source: str, target: str, how: Capability, read_only: bool) -> None:
        """Publish a staged volume at `target`: a directory for mount, a device node for block; verified to be this volume."""
        ...

    async def stage_block(self, volume: Volume, point: str) -> None:
        """Bind the attached device's node inside the staging directory, so that the kernel remembers the stage."""
        ...

    async def unmount(self, volume: Volume | None, path: str, its_own: bool = False) -> None:
        """Remove what is mounted at `path`; fine if nothing is. Leaves the (empty) path to the caller.

        `its_own`: only if it is this very volume's now.
        """
        ...

    async def cleanup_unavailable(self, digest: str, path: str, last: bool) -> None:
        """Do as `unmount`, for the volume with this hash in a pool that is unavailable: by what the kernel still says.

        `last`: its device is detached too. Raises Precondition if it is mounted elsewhere.
        """
        ...

    async def stats(self, volume: Volume, path: str) -> FileSystemStats:
        """Return the space at `path`, and what is wrong there. Raises NotFound if the volume is not mounted there."""
        ...

    async def condition(self, volume: Volume) -> VolumeCondition | None:
        """Return what is wrong with the volume's mounted file system; None: nothing that the kernel knows of."""
        ...


class Checks(Protocol):
    """Checks of file systems before they are mounted. They may take hours, so they outlast calls, and agents.

    The caller holds the volume's lock, but for `forget_old`.
    """

    async def complaint(self, volume: Volume, is_ext4: bool) -> str:
        """Why the volume's file system asks for a check, as the rest of "since ..."; empty where it does not. Costs one read.

        `is_ext4`: that is known; otherwise it is only so if it looks like one.
        """
        ...

    async def current(self, volume: Volume) -> Check | None:
        """The check of what the volume holds now, at work or ended; None: there is none."""
        ...

    async def begin(self, volume: Volume, why: str, now: int) -> Check:
        """Begin a check of a volume that has no device and no check. A thick volume takes its size once more. OutOfSpace."""
        ...

    async def adopt(self, volume: Volume) -> None:
        """Replace the volume's content and record by the mended copy and `volume`, in one step; `volume.condition` says where
        what it held is kept. It has no device.
        """
        ...

    async def drop(self, volume: Volume) -> None:
        """Forget a check that has ended."""
        ...

    async def forget_old(self, now: int) -> None:
        """Throw away what was kept for longer than KEPT_SECONDS, or of volumes that are gone."""
        ...


class Backend(Protocol):
    """One pool of volumes and snapshots."""

    identity: PoolIdentity
    traits: Traits
    """Known from the start as far as the technology says; what the pool itself says (`granule`) after `open`."""
    access: VolumeAccess
    checks: Checks

    @property
    def attached_devices(self) -> int:
        """How many devices the pool's volumes have now; read from the kernel's lists, in microseconds each."""
        ...

    async def open(self) -> PoolContents:
        """Take the pool, undo what a crash left, and read it. Raises Unavailable or Precondition with the reason."""
        ...

    async def close(self) -> None:
        """Let the pool go; volumes in use stay in use."""
        ...

    def check(self) -> None:
        """Raise Unavailable if the pool has gone since it was opened (unmounted, shut down). Takes microseconds."""
        ...

    def guard(
        self, exclusive: Collection[str], shared: Collection[str], existence: Collection[str]
    ) -> AbstractAsyncContextManager[Changes | None]:
        """Keep other agents from the objects with these hashes while the block runs; as `Locks.hold`, and entered after it.

        `existence`: objects that the block creates or deletes. Gives what was changed of the named objects since this agent read
        them; None: the pool is this agent's alone. If this agent stands still for so long that another takes over, nothing that it
        does afterwards changes the pool. Raises Busy while another agent works on one of them, Unavailable.
        """
        ...

    async def users(self, volume: Volume) -> VolumeUsage:
        """Return everybody who uses the volume, on any node: the question before it is deleted, held or rolled back."""
        ...

    async def refresh(self) -> Changes | None:
        """Return what other agents have changed since this one looked last; None: the pool is this agent's alone. Unavailable."""
        ...

    space_max_age: float
    """Seconds for which an answer of `space` may be used again: 0 if it costs microseconds, more if it starts a process."""

    async def space(self) -> Space:
        """Return size and free bytes now; may take time, and walks nothing. Raises Unavailable if the pool has gone."""
        ...

    def space_needed(self, operation: SpaceOperation) -> SpaceNeeded:
        """Return the space that an operation takes at once on thick volumes, so that it is reserved before it begins.

        Inspects each source once at most.
        """
        ...

    def allocated(self, volume: Volume) -> int | None:
        """Return the bytes that the volume has allocated (shared ones included), in microseconds; None: not known so cheaply.

        A pool that serves thick volumes knows it of them.
        """
        ...

    async def content_format(self, item: Volume | Snapshot) -> str:
        """Return the name of the file system, or of another format, that a volume or snapshot holds; empty if none is known."""
        ...

    async def create_volume(self, volume: Volume, source: Snapshot | None) -> None:
        """Make content and record appear together, durably: empty, or with the snapshot's content grown to `volume.size`."""
        ...

    async def save_volume(self, volume: Volume) -> None:
        """Replace the volume's record, durably and atomically. The content is not touched."""
        ...

    async def is_empty(self, volume: Volume) -> bool:
        """Return whether the volume holds no data at all."""
        ...

    async def erase(self, volume: Volume) -> None:
        """Make a volume without a device empty, durably: only one whose format never completed."""
        ...

    async def expand_volume(self, volume: Volume) -> None:
        """Grow the volume to `volume.size`, durably. A device that it has follows at the next `attach`."""
        ...

    async def delete_volume(self, volume: Volume) -> None:
        """Make the volume disappear, durably; space comes back soon after. Snapshots and clones are unharmed."""
        ...

    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """Do all that is slow of a snapshot, a group snapshot or a clone, before the moment that it holds. Nothing can be seen yet.

        The four methods are called in the order of backends/snapshots.py, under the sources' locks.
        """
        ...

    async def quick(self, draft: Draft[Any]) -> Moment:
        """Take all sources at one moment, those that are in use stopped for it: the only part that writers wait for.

        Raises Busy past the deadline, Precondition if it cannot be one moment, OutOfSpace.
        """
        ...

    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """Make the draft appear, durably and in one step; return its record with moment, sizes and conditions filled in."""
        ...

    async def abandon(self, draft: Draft[Any]) -> None:
        """Remove a draft after any failure, as far as that can be done now: the next `open` does the rest."""
        ...

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Make a snapshot disappear, durably."""
        ...

    async def delete_group(self, group: GroupSnapshot) -> None:
        """Make a group and all its members disappear at once, durably."""
        ...

    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """Replace the volume's content and record by the snapshot's content and `volume`, in one step."""
        ...

    def change_token(self, item: Volume | Snapshot) -> str:
        """Return a token that changes whenever the content does (for files: inode and ctime): what was counted then still counts."""
        ...

    async def usage(self, item: Volume | Snapshot) -> Usage:
        """Return exclusive and shared bytes and extents of one object, counted now; no extents where traits.counts_extents is false."""
        ...

    async def freed_together(self, chosen: Sequence[Volume | Snapshot]) -> int:
        """Return the bytes that deleting all these objects would free: those that nothing else refers to. Counted now."""
        ...

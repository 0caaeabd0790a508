"""The port of a storage technology: one Backend is one pool. No implementation is imported here.

All methods that take time are coroutines and leave the pool as it was if they fail. The service calls them under the
locks of the objects that they change, so a backend never sees two operations on one object at a time. Errors are those
of domain.errors; anything else is a defect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from csi_driver.domain.model import Capability, Group, Snapshot, Usage, Use, Volume
from csi_driver.domain.space import Space

STAGED_NODE = "device"
"""The name under which a staged block volume is visible inside its staging directory."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that lies in a pool, as read when it is opened."""

    volumes: tuple[Volume, ...]
    snapshots: tuple[Snapshot, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class CutReport:
    """How long a cut held the volumes' file systems frozen (0 where none was mounted) and cloned, in seconds."""

    frozen: float = 0.0
    cloned: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What a pool says of itself."""

    name: str
    owner: str
    uuid: str
    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class FileSystemStats:
    """What NodeGetVolumeStats answers: bytes always, inodes for file systems."""

    total: int
    used: int = 0
    available: int = 0
    inodes: int = 0
    inodes_used: int = 0
    inodes_free: int = 0


class Access(Protocol):
    """How a pool's volumes are shown on this node. State is the kernel's: nothing is remembered between calls."""

    async def use(self, volume: Volume) -> Use:
        """The volume's device and every path where it is visible now."""
        ...

    async def attach(self, volume: Volume) -> str:
        """Give the volume a device, or find the one that it has, at the image's size; returns its path. Never a second one."""
        ...

    async def detach(self, volume: Volume) -> None:
        """Take an unused device away, verified. InUse where anything still uses it; fine where there is none."""
        ...

    async def is_empty(self, volume: Volume) -> bool:
        """Whether the image holds no data at all."""
        ...

    async def erase(self, volume: Volume) -> None:
        """Make the image empty: only for a volume whose format never completed."""
        ...

    async def make_file_system(self, volume: Volume, fs_type: str) -> None:
        """Format the attached device. The caller has made the intent durable."""
        ...

    async def mount(self, volume: Volume, point: str, fs_type: str, flags: Sequence[str]) -> None:
        """Mount the attached device at `point`; the same mount again is fine, another is AlreadyExists."""
        ...

    async def grow(self, volume: Volume, point: str) -> None:
        """Grow device and mounted file system (or the device alone for block) to the volume's size."""
        ...

    async def bind(self, volume: Volume, source: str, target: str, how: Capability, read_only: bool) -> None:
        """Show a staged volume at `target`: a directory for mount, a device node for block; verified to be this image."""
        ...

    async def stage_block(self, volume: Volume, point: str) -> None:
        """Make the attached device visible inside the staging directory, so that the kernel remembers the stage."""
        ...

    async def unmount(self, volume: Volume | None, path: str, its_own: bool = False) -> None:
        """Remove whatever this pool's node shows at `path`; fine if nothing. Leaves the (empty) path to the caller.

        `its_own`: only what shows this very volume now.
        """
        ...

    async def clear(self, digest: str, path: str, last: bool) -> None:
        """Like `unmount`, for the volume with this hash in a pool that cannot be looked into: by what the kernel still says.

        `last`: its device goes too; Precondition where it is shown elsewhere.
        """
        ...

    async def stats(self, volume: Volume, path: str) -> FileSystemStats:
        """Space at `path`. NotFound where the volume is not shown there."""
        ...


class Backend(Protocol):
    """One pool of volumes and snapshots."""

    identity: PoolIdentity
    access: Access

    @property
    def attached(self) -> int:
        """How many devices hold images of this pool now; read from the kernel's lists, in microseconds each."""
        ...

    async def open(self) -> Contents:
        """Take the pool, undo what a crash left, and read it. Unavailable or Precondition with the reason otherwise."""
        ...

    async def close(self) -> None:
        """Let the pool go; volumes in use stay in use."""
        ...

    def check(self) -> None:
        """Raise Unavailable where the pool has gone since it was opened (unmounted, shut down). Takes microseconds."""
        ...

    def space(self) -> Space:
        """Size and free bytes now; starts no process, walks nothing. Unavailable where the pool has gone."""
        ...

    def allocated(self, volume: Volume) -> int:
        """Bytes that the volume's image has allocated (shared ones included): one stat."""
        ...

    async def found(self, item: Volume | Snapshot) -> str:
        """What lies in an image by its first bytes: the name of a file system or of another format; empty where none is known."""
        ...

    async def create_volume(self, volume: Volume, source: Volume | Snapshot | None) -> CutReport:
        """Make image and record appear together, durably: empty, or with the source's content grown to `volume.size`."""
        ...

    async def save_volume(self, volume: Volume) -> None:
        """Replace the volume's record, durably and atomically. The image is not touched."""
        ...

    async def expand_volume(self, volume: Volume) -> None:
        """Grow the image to `volume.size`, durably. A device that it has follows at the next `attach`."""
        ...

    async def delete_volume(self, volume: Volume) -> None:
        """Make the volume disappear, durably; space comes back soon after. Snapshots and clones are unharmed."""
        ...

    async def create_snapshot(self, snapshot: Snapshot, source: Volume) -> tuple[Snapshot, CutReport]:
        """Cut one volume: mounted ones frozen for the clone. Returns the snapshot with its moment and size filled in."""
        ...

    async def create_group(self, group: Group, sources: Sequence[Volume]) -> tuple[Group, CutReport]:
        """Cut several volumes at one moment, all or none; `sources` in the order of `group.members`."""
        ...

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Make a snapshot disappear, durably."""
        ...

    async def delete_group(self, group: Group) -> None:
        """Make a group and all its members disappear at once, durably."""
        ...

    async def roll_back(self, volume: Volume, snapshot: Snapshot) -> None:
        """Replace the volume's content and record by the snapshot's content and `volume`, in one step."""
        ...

    def stamp(self, item: Volume | Snapshot) -> str:
        """Changes whenever the image does (for files: inode and ctime), so that what is counted need not be counted again."""
        ...

    async def usage(self, item: Volume | Snapshot) -> Usage:
        """Exclusive and shared bytes and extents of one image, counted now."""
        ...

"""Showing volumes of a memory pool: as symbolic links to the memfd, for raw block access alone."""

import os
import re
from collections.abc import Callable, Sequence

from csi_driver.backends.base import STAGED_NODE, Check, FileSystemStats
from csi_driver.backends.memory.faults import Faults, faulty
from csi_driver.backends.memory.images import Image
from csi_driver.domain.errors import AlreadyExists, InUse, InvalidRequest, NotFound, Precondition, Unsupported
from csi_driver.domain.model import Capability, Volume, VolumeCondition, VolumeUsage

_LINK = re.compile(r"/proc/(\d+)/fd/\d+", re.ASCII)


class MemoryAccess:
    """The VolumeAccess port of a memory pool.

    No kernel keeps a list of symbolic links, so the paths are remembered, and each is read again whenever it matters: one
    that was removed from outside does not count, one that was moved is not found.
    """

    def __init__(self, pool: str, image: Callable[[Volume], Image], faults: Faults) -> None:
        self.pool = pool
        self.faults = faults
        self._image = image
        self._attached: set[str] = set()
        self._links: dict[str, set[str]] = {}

    @faulty
    async def use(self, volume: Volume) -> VolumeUsage:
        """See VolumeAccess."""
        paths = self._paths(volume)
        device = self._image(volume).path if paths or volume.uid in self._attached else ""
        return VolumeUsage(device, tuple((path,) for path in paths))

    @faulty
    async def attach(self, volume: Volume) -> str:
        """See VolumeAccess."""
        self._attached.add(volume.uid)
        return self._image(volume).path

    @faulty
    async def detach(self, volume: Volume) -> None:
        """See VolumeAccess."""
        paths = self._paths(volume)
        if paths:
            raise InUse(f"{volume.id} is shown at {', '.join(paths)}: unpublish and unstage it first")
        self._attached.discard(volume.uid)

    @faulty
    async def make_file_system(self, volume: Volume, fs_type: str) -> None:  # noqa: ARG002
        """Refused."""
        raise block_only(self.pool)

    @faulty
    async def mount(self, volume: Volume, point: str, fs_type: str, flags: Sequence[str]) -> bool:  # noqa: ARG002
        """Refused."""
        raise block_only(self.pool)

    @faulty
    async def grow(self, volume: Volume, point: str) -> None:
        """See VolumeAccess. The memfd has grown already, and whoever has it open sees it."""
        if not any(path in (point, os.path.join(point, STAGED_NODE)) for path in self._paths(volume)):
            raise Precondition(f"{volume.id} is not shown at {point}: stage it there first")

    @faulty
    async def stage_block(self, volume: Volume, point: str) -> None:
        """See VolumeAccess."""
        os.makedirs(point, mode=0o750, exist_ok=True)
        self._show(volume, os.path.join(point, STAGED_NODE))

    @faulty
    async def bind(self, volume: Volume, source: str, target: str, how: Capability, read_only: bool) -> None:
        """See VolumeAccess."""
        if how.access != "block":
            raise block_only(self.pool)
        if read_only:
            raise Unsupported(
                f"{volume.id} cannot be published read-only: pool {self.pool} is in memory and shows volumes by a link, "
                "through which anybody may open them for writing; publish it writable, or use a pool on a disk"
            )
        if not self._shows(os.path.join(source, STAGED_NODE), self._image(volume)):
            raise Precondition(f"{volume.id} is not staged at {source}: stage it there first")
        os.makedirs(os.path.dirname(target), mode=0o750, exist_ok=True)
        self._show(volume, target)

    @faulty
    async def unmount(self, volume: Volume | None, path: str, its_own: bool = False) -> None:
        """See VolumeAccess."""
        for link in (os.path.join(path, STAGED_NODE), path):
            if its_own and volume and not self._shows(link, self._image(volume)):
                continue
            if _is_ours(link):
                os.unlink(link)
                for links in self._links.values():
                    links.discard(link)

    @faulty
    async def cleanup_unavailable(self, digest: str, path: str, last: bool) -> None:  # noqa: ARG002
        """See VolumeAccess. A link tells by itself whose it is."""
        await self.unmount(None, path)

    @faulty
    async def stats(self, volume: Volume, path: str) -> FileSystemStats:
        """See VolumeAccess."""
        if path not in self._paths(volume):
            raise NotFound(f"{volume.id} is not shown at {path}")
        return FileSystemStats(total=volume.size)

    @faulty
    async def condition(self, volume: Volume) -> VolumeCondition | None:  # noqa: ARG002
        """See VolumeAccess. What is never mounted has no file system to be in trouble."""
        return None

    def forget(self, volume: Volume) -> None:
        """Drop what is remembered of a deleted volume."""
        self._attached.discard(volume.uid)
        self._links.pop(volume.uid, None)

    def restart(self) -> None:
        """What the end of an agent takes with it: attachments that nothing shows."""
        self._attached.clear()

    def paths(self, volume: Volume) -> tuple[str, ...]:
        """Every path where the volume is visible now."""
        return self._paths(volume)

    def _paths(self, volume: Volume) -> tuple[str, ...]:
        image = self._image(volume)
        return tuple(sorted(link for link in self._links.get(volume.uid, ()) if self._shows(link, image)))

    @staticmethod
    def _shows(link: str, image: Image) -> bool:
        return os.path.islink(link) and os.readlink(link) == image.path

    def _show(self, volume: Volume, path: str) -> None:
        image = self._image(volume)
        if not self._shows(path, image):
            if _is_replaceable(path):
                os.unlink(path)
            try:
                os.symlink(image.path, path)
            except FileExistsError:
                raise AlreadyExists(f"{path} exists and does not show {volume.id}: look at what lies there") from None
        self._links.setdefault(volume.uid, set()).add(path)


class NoChecks:
    """The Checks port of a pool that mounts nothing: there is never anything to check."""

    async def complaint(self, volume: Volume, is_ext4: bool) -> str:  # noqa: ARG002
        """See Checks."""
        return ""

    async def current(self, volume: Volume) -> Check | None:  # noqa: ARG002
        """See Checks."""
        return None

    async def begin(self, volume: Volume, why: str, now: int) -> Check:  # noqa: ARG002
        """Refused."""
        raise block_only(volume.id.pool)

    async def adopt(self, volume: Volume) -> None:
        """Refused."""
        raise block_only(volume.id.pool)

    async def drop(self, volume: Volume) -> None:
        """See Checks."""

    async def forget_old(self, now: int) -> None:
        """See Checks."""


def block_only(pool: str) -> InvalidRequest:
    """Why this pool mounts nothing."""
    return InvalidRequest(
        f"pool {pool} is in memory and serves raw block volumes only: ask for block access, or use a pool on a disk"
    )


def _is_ours(path: str) -> bool:
    """Whether a link at `path` was made by this process, or by one that is gone."""
    found = _LINK.fullmatch(os.readlink(path)) if os.path.islink(path) else None
    return found is not None and (int(found[1]) == os.getpid() or not os.path.exists(path))


def _is_replaceable(path: str) -> bool:
    """Whether nothing is lost by showing a volume there: an empty file, or the dead link of an agent that is gone."""
    if os.path.islink(path):
        return _is_ours(path) and not os.path.exists(path)
    return os.path.isfile(path) and os.path.getsize(path) == 0

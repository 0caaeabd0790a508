"""Loop devices of a pool's images: told by the image's identity, never by a number that was remembered."""

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from csi_driver.backends.block_access import FAST_TIMEOUT, GROWTH_TIMEOUT, SLOW_TIMEOUT
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.backends.volume_helpers import VolumeHelpers, finish_despite_cancel
from csi_driver.domain.errors import DriverError, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.block import loop_ioctl, sources
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.block.loop import BLOCK_SIZE
from csi_driver.host.errors import Unsupported
from csi_driver.host.fs import allocation, filesystems, mountinfo
from csi_driver.host.helper.client import HelperPool

_T = TypeVar("_T")
_DELETED = " (deleted)"
_DEAD = (0, 0)
"""What loop_identities says of a file that cannot be asked."""
_VOLUME = re.compile(r"/volumes/([0-9a-f]{32})/disk\.img$")


class LoopDevices:
    """The Devices port for a reflink pool."""

    def __init__(self, layout: Layout, helpers: HelperPool) -> None:
        self._layout = layout
        self.jobs = VolumeHelpers(helpers)
        self._seen: dict[str, tuple[int, int]] = {}
        self.file_system = 0
        """The device number (st_dev) of the pool's file system, once the pool was opened."""

    async def find(self, volume: Volume) -> BlockDevice | None:
        """See Devices. By the file that each attachment holds; one whose path names another volume is not asked, it may hang."""
        self.jobs.refuse_hanging(volume)
        bound = _bound()
        # Those whose path says nothing last: seldom is there one, and it may be anybody's.
        for digest in (volume.id.hash, ""):
            possible = [number for number, backing in bound.items() if _hash(backing) == digest]
            if possible and (device := await self._among(volume, possible)) is not None:
                return device
        return None

    async def _among(self, volume: Volume, numbers: list[int]) -> BlockDevice | None:
        """The one of these devices that holds the volume's image. Raises Precondition where more than one does."""
        attachments = {number: loop_ioctl.attachment(number) for number in numbers}
        held = await self._files_of_attachments(attachments)
        with self._layout.translated(f"looking for {volume.id}"):
            status = self._image(volume).stat()
        found = [number for number, file in held.items() if file == (status.st_dev, status.st_ino)]
        if len(found) > 1:
            names = " and ".join(f"/dev/loop{number}" for number in found)
            raise Precondition(f"the image of {volume.id} is attached more than once, which corrupts it: {names}")
        return _device(found[0], attachments[found[0]]) if found else None

    async def source(self, volume: Volume) -> dict[str, Any]:
        """See Devices."""
        return sources.image(str(self._image(volume)), volume.thick, _VOLUME.pattern)

    def note(self, answer: Mapping[str, Any]) -> BlockDevice:
        """See Devices."""
        if answer["identity"]:
            self._seen[answer["identity"]] = tuple(answer["backing"])
        return BlockDevice(answer["path"], answer["name"], answer["major"], answer["minor"], answer["identity"])

    async def _backing_files(self, numbers: list[int]) -> dict[int, tuple[int, int]]:
        """Return device and inode of the file that each loop device holds; (0, 0) if the kernel cannot tell."""
        return await self._files_of_attachments({number: loop_ioctl.attachment(number) for number in numbers})

    async def _files_of_attachments(self, attachments: Mapping[int, str]) -> dict[int, tuple[int, int]]:
        """As `_backing_files`, for these attachments. Each is asked once: the kernel's number of it is never used again."""
        held = {number: self._seen[key] for number, key in attachments.items() if key in self._seen}
        unknown = [number for number in attachments if number not in held]
        if unknown:
            identities = await self.jobs.run(None, "loop_identities", FAST_TIMEOUT, numbers=unknown)
            bound = {loop_ioctl.attachment(number) for number in loop_ioctl.numbers()}
            self._seen = {key: seen for key, seen in self._seen.items() if key in bound}
            for number in unknown:
                held[number] = (identities[str(number)][0], identities[str(number)][1])
                if attachments[number] and attachments[number] == loop_ioctl.attachment(number):
                    self._seen[attachments[number]] = held[number]
        return held

    async def attach(self, volume: Volume) -> BlockDevice:
        """See Devices."""
        return self.note(await self.jobs.run(volume, "attach", FAST_TIMEOUT, source=await self.source(volume)))

    async def detach(self, volume: Volume) -> None:
        """See Devices."""
        await self.jobs.run(volume, "loop_detach", SLOW_TIMEOUT, path=str(self._image(volume)), names=_VOLUME.pattern)

    async def grow_unmounted(self, volume: Volume) -> bool:
        """See Devices. Costs the clone of the image twice: once to make it, once to give the old one's references back.

        A thick volume's space that was never written is not cloned: `restore_allocation` takes it again, after the growth.
        """
        draft, place = self._layout.draft_path(), self._image(volume).parent
        if not await self._with_image(volume, "looking into", "rb", _may_grow):
            return False
        try:
            await self._in_pool(volume, "growing", lambda: self._layout.create_draft(draft, IMAGE))
            paths = {"image": str(place / IMAGE), "copy": str(draft / IMAGE)}
            grown: bool = await self.jobs.run(volume, "grow_copy", GROWTH_TIMEOUT, **paths)
            if grown:
                if await self.find(volume) is not None:
                    await self.detach(volume)
                await self._in_pool(volume, "growing", lambda: self._layout.replace(draft, place, IMAGE))
            return grown
        finally:
            await asyncio.to_thread(self._layout.remove_draft, draft)

    async def restore_allocation(self, volume: Volume) -> None:
        """See Devices. mkfs and file systems may have given blocks back by writing zeroes: they are taken again."""
        if volume.thick:
            await self._with_image(volume, "allocating", "r+b", lambda fd: allocation.fill(fd, volume.size))

    async def _with_image(self, volume: Volume, doing: str, mode: str, work: Callable[[int], _T]) -> _T:
        def run() -> _T:
            with self._image(volume).open(mode) as file:
                return work(file.fileno())

        return await self._in_pool(volume, doing, run)

    async def _in_pool(self, volume: Volume, doing: str, work: Callable[[], _T]) -> _T:
        with self._layout.translated(f"{doing} {volume.id}"):
            return await finish_despite_cancel(asyncio.to_thread(work))

    def count(self) -> int:
        """How many loop devices hold files of this pool."""
        found = map(_hash, _bound().values())
        return sum(1 for digest in found if digest and os.path.exists(self._layout.volumes / digest / IMAGE))

    async def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """See Devices. The device's file lies, or lay before it was deleted, in this pool; or the device holds nothing."""
        number = _loop_number(mount)
        if number is None:
            return False
        backing = loop_ioctl.sysfs(number, "loop/backing_file")
        if backing is None:
            return True
        held = (await self._backing_files([number]))[number]
        if not self._lies_in_pool(held, backing):
            return False
        # A bind of a device's node may be older than what the number holds by now; a file system is what it is.
        living = _hash(backing) if mount.major == loop_ioctl.MAJOR else ""
        return not living or (volume is not None and living == volume.id.hash) or not self._is_image(held, living)

    def is_unbound_device_node(self, mount: mountinfo.Mount) -> bool:
        """See Devices."""
        number = _node_number(mount)
        return number is not None and loop_ioctl.sysfs(number, "loop/backing_file") is None

    def nodes(self) -> list[mountinfo.Mount]:
        """See Devices."""
        return [mount for mount in mountinfo.read_with(b" /loop") if _node_number(mount) is not None]

    def device_generation(self, mount: mountinfo.Mount) -> str:
        """See Devices."""
        number = _loop_number(mount)
        return "" if number is None else _attachment(number)

    async def release_unknown_device(self, mount: mountinfo.Mount, generation: str) -> None:
        """See Devices."""
        number = _loop_number(mount)
        if number is not None and generation:
            await self._detach_if_unused(number, generation)

    async def mounts_of_volume(self, digest: str) -> list[mountinfo.Mount]:
        """See Devices."""
        mounts = mountinfo.read()
        lost = await self._devices_by_path_only(digest)
        return [m for n in lost for m in mountinfo.mounts_of(loop_ioctl.MAJOR, n, f"loop{n}", mounts)]

    async def detach_unavailable(self, digest: str) -> None:
        """See Devices. Where the pool was never opened, a device that is not dead stays: the sweep finds it later."""
        for number, backing in (await self._devices_by_path_only(digest)).items():
            if self.file_system or (await self._backing_files([number]))[number] == _DEAD:
                await self.jobs.run(None, "detach_unverified", SLOW_TIMEOUT, number=number, backing=backing)

    async def _devices_by_path_only(self, digest: str) -> dict[int, str]:
        """The devices, with their files' paths, that hold a volume of this pool if the pool cannot be asked.

        The file of a dead file system has no identity: what is left is the path that the kernel remembers, in which the
        hash says whose it is. A file that has one is another pool's, unless it lies in this one's file system.
        """
        named = _named(digest)
        held = await self._backing_files(list(named))
        possible = {_DEAD[0], self.file_system}
        return {n: path for n, path in named.items() if not self.file_system or held[n][0] in possible}

    async def sweep(self) -> None:
        """Detach devices of this pool that are shown nowhere: a crash left them, and nobody would come back for them.

        By the identity of their files, not by a path: the machine's other containers have loop devices too, and pools at
        paths that read the same.
        """
        bound = list(_bound())
        await self._backing_files(bound)  # all at once
        for number in bound:
            with suppress(DriverError):  # somebody has it open: it is found again at the next stage
                await self._detach_if_unused(number, _attachment(number))

    async def _detach_if_unused(self, number: int, attachment: str) -> None:
        """Detach a device that holds a file of this pool, unless it is shown somewhere or holds another one by now.

        A number that comes free is given to the next volume at once, which is shown nowhere until it is formatted and mounted.
        """
        backing = loop_ioctl.sysfs(number, "loop/backing_file")
        if backing is None or mountinfo.mounts_of(loop_ioctl.MAJOR, number, f"loop{number}"):
            return
        held = (await self._backing_files([number]))[number]
        if self._lies_in_pool(held, backing) and _attachment(number) == attachment:
            await self.jobs.run(None, "loop_detach_held", SLOW_TIMEOUT, number=number, backing=held)

    def _lies_in_pool(self, held: tuple[int, int], backing: str) -> bool:
        """Whether a file is, or was before it was deleted, an image of this pool.

        By its file system, and where that holds other things too, by its inode. The path that the kernel shows is that of
        the mount by which the file was opened: once the mount namespace of a former agent is gone, it begins at that mount.
        So it proves something only where it begins with this pool's own.
        """
        root = self._layout.root
        with self._layout.translated("looking at the pool's devices"):
            if held[0] != os.stat(root).st_dev:
                return False
        mount = mountinfo.at(root)
        has_it_alone = mount is not None and mount.root == "/"
        return has_it_alone or backing.startswith(f"{root}/") or self._is_image(held, _hash(backing))

    def _is_image(self, held: tuple[int, int], digest: str) -> bool:
        try:
            status = (self._layout.volumes / digest / IMAGE).stat()
        except OSError:
            return False
        return bool(digest) and (status.st_dev, status.st_ino) == held

    def _image(self, volume: Volume) -> Path:
        return self._layout.volumes / volume.id.hash / IMAGE


def _bound() -> dict[int, str]:
    """The loop devices that hold an image of some pool, by their files' paths, which are no proof of anything."""
    found = {number: loop_ioctl.sysfs(number, "loop/backing_file") for number in loop_ioctl.numbers()}
    return {
        number: backing
        for number, backing in found.items()
        if backing is not None and os.path.basename(backing.removesuffix(_DELETED)) == IMAGE
    }


def _hash(backing: str) -> str:
    """The hash of the volume that a path names; empty: none."""
    named = _VOLUME.search(backing)
    return named[1] if named else ""


def _named(digest: str) -> dict[int, str]:
    """The loop devices whose file's path names a volume, with that path."""
    return {number: backing for number, backing in _bound().items() if _hash(backing) == digest}


def _attachment(number: int) -> str:
    """Which attachment of a loop device this is. Empty: it holds nothing."""
    bound = loop_ioctl.sysfs(number, "loop/backing_file") is not None
    return loop_ioctl.attachment(number) or f"{number}/" if bound else ""


def _may_grow(fd: int) -> bool:
    """Whether the file system in an image is smaller than the image, as far as can be told."""
    try:
        size = filesystems.size_of_file_system(f"/proc/self/fd/{fd}")
    except Unsupported:
        return True  # the growth says what is wrong with it
    return os.fstat(fd).st_size - size >= BLOCK_SIZE


def _device(number: int, identity: str) -> BlockDevice | None:
    """Return the device of a number; None: it has gone."""
    numbers = loop_ioctl.sysfs(number, "dev")
    if numbers is None:
        return None
    major, minor = map(int, numbers.split(":"))
    return BlockDevice(f"/dev/loop{number}", f"loop{number}", major, minor, identity)


def _loop_number(mount: mountinfo.Mount) -> int | None:
    """The loop device behind a mount: of a file system on it, or of its node."""
    return mount.minor if mount.major == loop_ioctl.MAJOR else _node_number(mount)


def _node_number(mount: mountinfo.Mount) -> int | None:
    node = re.fullmatch(r"/loop(\d+)(//deleted)?", mount.root)
    return int(node[1]) if node and mount.fs_type in {"devtmpfs", "tmpfs"} else None

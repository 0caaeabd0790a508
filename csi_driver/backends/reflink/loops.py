"""Loop devices of a pool's images: told by the image's identity, never by a number that was remembered."""

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from csi_driver.backends.devices import BlockDevice
from csi_driver.backends.jobs import VolumeJobs, to_its_end
from csi_driver.backends.kernel import CHECKED, QUICK, SLOW
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.domain.errors import DriverError, InUse
from csi_driver.domain.model import Volume
from csi_driver.host import allocation, files, loopctl, mountinfo
from csi_driver.host.children import Children

_T = TypeVar("_T")
_LOOP = 7
_DELETED = " (deleted)"
_DEAD = (0, 0)
"""What loop_identities says of a file that cannot be asked."""
_VOLUME = re.compile(r"/volumes/([0-9a-f]{32})/disk\.img$")


class LoopDevices:
    """The Devices port for a reflink pool."""

    def __init__(self, layout: Layout, children: Children) -> None:
        self._layout = layout
        self.jobs = VolumeJobs(children)
        self._seen: dict[str, tuple[int, int]] = {}
        self.file_system = 0
        """The device number (st_dev) of the pool's file system, once the pool was opened."""

    async def find(self, volume: Volume) -> BlockDevice | None:
        """See Devices. Costs no process where sysfs shows no device that could hold this image."""
        self.jobs.refuse_hanging(volume)
        named = {number: _hash(backing) for number, backing in _bound().items()}
        nameless = [number for number, digest in named.items() if not digest]
        if volume.id.hash not in named.values() and not await self._is_among(volume, nameless):
            return None
        found = await self.jobs.run(volume, "loop_find", QUICK, path=str(self._image(volume)))
        return BlockDevice(**found) if found else None

    async def _is_among(self, volume: Volume, numbers: list[int]) -> bool:
        """Whether one of the devices whose file's path tells nothing holds this image."""
        if not numbers:
            return False
        held = await self._held(numbers)
        with self._layout.translated(f"looking for {volume.id}"):
            status = self._image(volume).stat()
        return (status.st_dev, status.st_ino) in held.values()

    async def _held(self, numbers: list[int]) -> dict[int, tuple[int, int]]:
        """Device and inode of the file that each loop device holds; (0, 0) where the kernel cannot say.

        Each attachment is asked once: the kernel's number of it (diskseq) is never used again.
        """
        sequence = {number: _sequence(number) for number in numbers}
        unknown = [number for number, key in sequence.items() if key not in self._seen]
        if unknown:
            told = await self.jobs.run(None, "loop_identities", QUICK, numbers=unknown)
            bound = {_sequence(number) for number in loopctl.numbers()}
            self._seen = {key: seen for key, seen in self._seen.items() if key in bound}
            self._seen |= {sequence[number]: tuple(told[str(number)]) for number in unknown}
        return {number: self._seen.get(key, _DEAD) for number, key in sequence.items()}

    async def attach(self, volume: Volume) -> BlockDevice:
        """See Devices."""
        found = await self.jobs.run(volume, "loop_attach", QUICK, path=str(self._image(volume)), thick=volume.thick)
        device = BlockDevice(found["path"], found["name"], found["major"], found["minor"])
        if found["fresh"]:
            await self._refuse_stale(volume, device)
        return device

    async def detach(self, volume: Volume) -> None:
        """See Devices."""
        await self.jobs.run(volume, "loop_detach", SLOW, path=str(self._image(volume)))

    async def is_empty(self, volume: Volume) -> bool:
        """See Devices."""
        return await self._with_image(volume, "looking into", "rb", lambda fd: not files.has_data(fd))

    async def erase(self, volume: Volume) -> None:
        """See Devices."""

        def erase(fd: int) -> None:
            if volume.thick:
                allocation.renew(fd, volume.size)
            else:
                files.punch_all(fd)
            os.fsync(fd)

        await self._with_image(volume, "emptying", "r+b", erase)

    async def grow_unmounted(self, volume: Volume) -> bool:
        """See Devices. Costs the clone of the image twice: once to make it, once to give the old one's references back.

        A thick volume's space that was never written is not cloned: `settle` takes it again, after the growth.
        """
        draft, place = self._layout.draft_path(), self._image(volume).parent
        try:
            await self._in_pool(volume, "growing", lambda: self._layout.begin(draft, IMAGE))
            paths = {"image": str(place / IMAGE), "copy": str(draft / IMAGE)}
            grown: bool = await self.jobs.run(volume, "grow_copy", CHECKED, **paths)
            if grown:
                await self.detach(volume)
                await self._in_pool(volume, "growing", lambda: self._layout.replace(draft, place, IMAGE))
            return grown
        finally:
            await asyncio.to_thread(self._layout.abandon, draft)

    async def settle(self, volume: Volume) -> None:
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
            return await to_its_end(asyncio.to_thread(work))

    def count(self) -> int:
        """How many loop devices hold files of this pool."""
        found = map(_hash, _bound().values())
        return sum(1 for digest in found if digest and os.path.exists(self._layout.volumes / digest / IMAGE))

    async def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """See Devices. The device's file lies, or lay before it was deleted, in this pool; or the device holds nothing."""
        number = _loop_number(mount)
        if number is None:
            return False
        backing = loopctl.sysfs(number, "loop/backing_file")
        if backing is None:
            return True
        held = (await self._held([number]))[number]
        if not self._lies_in_pool(held, backing):
            return False
        # A bind of a device's node may be older than what the number holds by now; a file system is what it is.
        living = _hash(backing) if mount.major == _LOOP else ""
        return not living or (volume is not None and living == volume.id.hash) or not self._is_image(held, living)

    def is_empty_node(self, mount: mountinfo.Mount) -> bool:
        """See Devices."""
        number = _node_number(mount)
        return number is not None and loopctl.sysfs(number, "loop/backing_file") is None

    def nodes(self) -> list[mountinfo.Mount]:
        """See Devices."""
        return [mount for mount in mountinfo.read_with(b" /loop") if _node_number(mount) is not None]

    def holding(self, mount: mountinfo.Mount) -> str:
        """See Devices."""
        number = _loop_number(mount)
        return "" if number is None else _attachment(number)

    async def reclaim(self, mount: mountinfo.Mount, held: str) -> None:
        """See Devices."""
        number = _loop_number(mount)
        if number is not None and held:
            await self._let_go(number, held)

    def backing(self, volume: Volume) -> str:
        """See Devices."""
        return str(self._image(volume))

    async def shown(self, digest: str) -> list[mountinfo.Mount]:
        """See Devices."""
        mounts = mountinfo.read()
        lost = await self._lost(digest)
        return [m for n in lost for m in mountinfo.mounts_of(_LOOP, n, f"loop{n}", mounts)]

    async def abandon(self, digest: str) -> None:
        """See Devices. Where the pool was never opened, a device that is not dead stays: the sweep finds it later."""
        for number, backing in (await self._lost(digest)).items():
            if self.file_system or (await self._held([number]))[number] == _DEAD:
                await self.jobs.run(None, "loop_abandon", SLOW, number=number, backing=backing)

    async def _lost(self, digest: str) -> dict[int, str]:
        """The devices, with their files' paths, that hold a volume of this pool if the pool cannot be asked.

        The file of a dead file system has no identity: what is left is the path that the kernel remembers, in which the
        hash says whose it is. A file that has one is another pool's, unless it lies in this one's file system.
        """
        named = _named(digest)
        held = await self._held(list(named))
        possible = {_DEAD[0], self.file_system}
        return {n: path for n, path in named.items() if not self.file_system or held[n][0] in possible}

    async def sweep(self) -> None:
        """Detach devices of this pool that are shown nowhere: a crash left them, and nobody would come back for them.

        By the identity of their files, not by a path: the machine's other containers have loop devices too, and pools at
        paths that read the same.
        """
        bound = list(_bound())
        await self._held(bound)  # all at once
        for number in bound:
            with suppress(DriverError):  # somebody has it open: it is found again at the next stage
                await self._let_go(number, _attachment(number))

    async def _let_go(self, number: int, attachment: str) -> None:
        """Detach a device that holds a file of this pool, unless it is shown somewhere or holds another one by now.

        A number that comes free is given to the next volume at once, which is shown nowhere until it is formatted and mounted.
        """
        backing = loopctl.sysfs(number, "loop/backing_file")
        if backing is None or mountinfo.mounts_of(_LOOP, number, f"loop{number}"):
            return
        held = (await self._held([number]))[number]
        if self._lies_in_pool(held, backing) and _attachment(number) == attachment:
            await self.jobs.run(None, "loop_detach_held", SLOW, number=number, backing=held)

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

    async def _refuse_stale(self, volume: Volume, device: BlockDevice) -> None:
        """A new device must be shown nowhere yet: a bind of the number's last owner would hand it this volume's data."""
        stale = [mount.point for mount in mountinfo.mounts_of(device.major, device.minor, device.name)]
        if stale:
            await self.jobs.run(volume, "loop_detach_forced", SLOW, path=str(self._image(volume)))
            raise InUse(
                f"{device.path} is still shown at {', '.join(stale)} for its last owner: unmount it there, then stage again"
            )

    def _image(self, volume: Volume) -> Path:
        return self._layout.volumes / volume.id.hash / IMAGE


def _bound() -> dict[int, str]:
    """The loop devices that hold an image of some pool, by their files' paths, which are no proof of anything."""
    found = {number: loopctl.sysfs(number, "loop/backing_file") for number in loopctl.numbers()}
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


def _sequence(number: int) -> str:
    """What is another one after each attachment of a loop device."""
    return f"{number}/{loopctl.sysfs(number, 'diskseq')}"


def _attachment(number: int) -> str:
    """Which attachment of a loop device this is: none comes twice while the kernel runs. Empty: it holds nothing."""
    bound = loopctl.sysfs(number, "loop/backing_file") is not None
    return _sequence(number) if bound else ""


def _loop_number(mount: mountinfo.Mount) -> int | None:
    """The loop device behind a mount: of a file system on it, or of its node."""
    return mount.minor if mount.major == _LOOP else _node_number(mount)


def _node_number(mount: mountinfo.Mount) -> int | None:
    node = re.fullmatch(r"/loop(\d+)(//deleted)?", mount.root)
    return int(node[1]) if node and mount.fs_type in {"devtmpfs", "tmpfs"} else None

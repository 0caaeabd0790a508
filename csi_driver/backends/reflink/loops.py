"""Loop devices of a pool's images: told by the image's identity, never by a number that was remembered."""

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from csi_driver.backends.jobs import VolumeJobs, to_its_end
from csi_driver.backends.kernel import QUICK, SLOW, BlockDevice
from csi_driver.backends.reflink.layout import IMAGE, Layout
from csi_driver.domain.errors import DriverError, InUse
from csi_driver.domain.model import Volume
from csi_driver.host import files, loopctl, mountinfo
from csi_driver.host.children import Children

_T = TypeVar("_T")
_LOOP = 7
_HASH = re.compile(r"/([0-9a-f]{32})/disk\.img")


class LoopDevices:
    """The Devices port for a reflink pool."""

    def __init__(self, layout: Layout, children: Children) -> None:
        self._layout = layout
        self.jobs = VolumeJobs(children)
        self._seen: dict[str, tuple[int, int]] = {}

    async def find(self, volume: Volume) -> BlockDevice | None:
        """See Devices. Costs no process where sysfs shows no device that could hold this image."""
        self.jobs.refuse_hanging(volume)
        named, nameless = _candidates(volume.id.hash)
        if not named and not await self._is_among(volume, nameless):
            return None
        found = await self.jobs.run(volume, "loop_find", QUICK, path=str(self._image(volume)))
        return BlockDevice(**found) if found else None

    async def _is_among(self, volume: Volume, nameless: dict[str, int]) -> bool:
        """Whether one of the devices whose file's path tells nothing holds this image; each attachment is asked once.

        `nameless` maps the kernel's number of the attachment (diskseq, never used again) to the device's.
        """
        unknown = {seq: number for seq, number in nameless.items() if seq not in self._seen}
        if unknown:
            told = await self.jobs.run(None, "loop_identities", QUICK, numbers=list(unknown.values()))
            self._seen = {seq: seen for seq, seen in self._seen.items() if seq in nameless}
            self._seen |= {seq: tuple(told[str(number)]) for seq, number in unknown.items()}
        if not nameless:
            return False
        with self._layout.translated(f"looking for {volume.id}"):
            status = self._image(volume).stat()
        return (status.st_dev, status.st_ino) in {self._seen[seq] for seq in nameless}

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

    async def follow_size(self, volume: Volume) -> None:
        """Let an attached device take the image's new size."""
        if await self.find(volume) is not None:
            await self.attach(volume)

    async def is_empty(self, volume: Volume) -> bool:
        """See Devices."""
        return await self._with_image(volume, "looking into", "rb", lambda fd: not files.has_data(fd))

    async def erase(self, volume: Volume) -> None:
        """See Devices."""

        def erase(fd: int) -> None:
            files.punch_all(fd)
            if volume.thick:
                files.allocate(fd, volume.size)
            os.fsync(fd)

        await self._with_image(volume, "emptying", "r+b", erase)

    async def settle(self, volume: Volume) -> None:
        """See Devices. mkfs and file systems may have given blocks back by writing zeroes: they are taken again."""
        if volume.thick:
            await self._with_image(volume, "allocating", "r+b", lambda fd: files.allocate(fd, volume.size))

    async def _with_image(self, volume: Volume, doing: str, mode: str, work: Callable[[int], _T]) -> _T:
        def run() -> _T:
            with self._image(volume).open(mode) as file:
                return work(file.fileno())

        with self._layout.translated(f"{doing} {volume.id}"):
            return await to_its_end(asyncio.to_thread(run))

    def count(self) -> int:
        """How many loop devices hold files of this pool."""
        found = (loopctl.sysfs(number, "loop/backing_file") for number in loopctl.numbers())
        return sum(1 for backing in found if backing is not None and backing.startswith(f"{self._layout.root}/"))

    def is_ours(self, mount: mountinfo.Mount, volume: Volume | None) -> bool:
        """See Devices. The device's file lies, or lay before it was deleted, in this pool; or the device holds nothing."""
        number = _loop_number(mount)
        if number is None:
            return False
        backing = loopctl.sysfs(number, "loop/backing_file")
        if backing is None:
            return True
        living = _HASH.search(backing) if backing.startswith(f"{self._layout.volumes}/") else None
        # A bind of a device's node may be older than what the number holds by now; a file system is what it is.
        if mount.major == _LOOP and living and (volume is None or living[1] != volume.id.hash):
            return not os.path.exists(backing)
        return backing.startswith(f"{self._layout.root}/")

    async def reclaim(self, mount: mountinfo.Mount) -> None:
        """See Devices."""
        number = _loop_number(mount)
        backing = loopctl.sysfs(number, "loop/backing_file") if number is not None else None
        if backing is not None and not mountinfo.mounts_of(_LOOP, number or 0, f"loop{number}"):
            await self.jobs.run(None, "loop_detach_number", SLOW, number=number, under=str(self._layout.root))

    async def sweep(self) -> None:
        """Remove bind mounts of device nodes that hold nothing: the next image attached there would be shown instead.

        And devices of this pool that are shown nowhere: a crash left them, and nobody would come back for them.
        """
        for mount in mountinfo.read():
            number = _node_number(mount)
            if (
                number is not None
                and not mount.point.startswith("/dev/")
                and loopctl.sysfs(number, "loop/backing_file") is None
            ):
                await self.jobs.run(None, "umount", SLOW, point=mount.point)
        for number in loopctl.numbers():
            backing = loopctl.sysfs(number, "loop/backing_file") or ""
            if backing.startswith(f"{self._layout.root}/") and not mountinfo.mounts_of(_LOOP, number, f"loop{number}"):
                with suppress(DriverError):  # somebody has it open: it is found again at the next stage
                    await self.jobs.run(None, "loop_detach_number", SLOW, number=number, under=str(self._layout.root))

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


def _candidates(digest: str) -> tuple[bool, dict[str, int]]:
    """Whether a bound loop device's path names the volume, and the devices whose path names nothing that we know."""
    nameless: dict[str, int] = {}
    found = False
    for number in loopctl.numbers():
        backing = loopctl.sysfs(number, "loop/backing_file")
        if backing is None or os.path.basename(backing.removesuffix(" (deleted)")) != IMAGE:
            continue
        named = _HASH.search(backing)
        if named is None:
            nameless[f"{number}/{loopctl.sysfs(number, 'diskseq')}"] = number
        elif named[1] == digest:
            found = True
    return found, nameless


def _loop_number(mount: mountinfo.Mount) -> int | None:
    """The loop device behind a mount: of a file system on it, or of its node."""
    return mount.minor if mount.major == _LOOP else _node_number(mount)


def _node_number(mount: mountinfo.Mount) -> int | None:
    node = re.fullmatch(r"/loop(\d+)(//deleted)?", mount.root)
    return int(node[1]) if node and mount.fs_type in {"devtmpfs", "tmpfs"} else None

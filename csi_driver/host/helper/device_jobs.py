"""What helper processes do to one volume's device and file system. Results are plain JSON; errors are OSErrors with an errno.

Those that take a source (host/block/sources.py) work on a block device of any kind; the jobs of loop devices alone say so in
their names.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from csi_driver.host import syscalls
from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.block.device import BlockDevice, OpenDevice, open_node
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.block.sources import Source, attached, described
from csi_driver.host.errors import Busy, CommandError, Mismatch
from csi_driver.host.fs import condition, files, filesystems, mount_users, mountinfo

_MKFS_SECONDS = 55.0
_GROW_SECONDS = 55.0
_BLKZEROOUT = 0x127F
_ZERO_STEP = 1 << 30
_ENDS = 16 << 20
_CAP_SYS_RESOURCE = 24
# xfs_growfs for EWOULDBLOCK, resize2fs for EBUSY: the exit status of both is 1, as for anything else.
_GROWS_ALREADY = ("in progress already", "Device or resource busy")


def loop_identities(numbers: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return (st_dev, st_ino) of the files behind loop devices; (0, 0) of one that holds nothing or cannot be asked."""
    found = {str(number): (0, 0) for number in numbers}
    for number in numbers:
        try:
            with loop_ioctl.opened(number, os.O_RDONLY) as fd:
                device = loop_ioctl.describe(fd, number)
        except OSError as error:
            # EIO: its file system is dead, and an image that can be asked for by name is not on it.
            if error.errno not in {errno.ENXIO, errno.EIO}:
                raise
            continue
        if device:
            found[str(number)] = device.backing
    return found


def attach(source: Source) -> dict[str, Any]:
    """Attach a volume, or adopt the device that it has: see `sources.attached`. Returns the device."""
    with attached(source) as opened:
        return described(opened)


def loop_detach(path: str, names: str = "") -> None:
    """Detach the image's device, verified; an image that has none is fine. `names`: see `loop.find`. Raises Busy naming the users."""
    device = loop.find(path, names=names)
    if device:
        loop.detach(device)


def loop_detach_held(number: int, backing: Sequence[int]) -> None:
    """Detach a device by number if it still holds the file with this device and inode. Raises Busy naming the users."""
    device = LoopDevice(number, f"/dev/loop{number}", loop_ioctl.MAJOR, number, (backing[0], backing[1]))
    with suppress(Mismatch):
        loop.detach(device)


def set_read_only(source: Source, read_only: bool) -> None:
    """Make a volume's device refuse writes, or take them again. Raises Mismatch, OSError."""
    with attached(source) as opened:
        opened.set_read_only(read_only)


def content_format(source: Source) -> str:
    """Return the format of what a volume holds: see filesystems.probe. Raises what `sources.attached` raises, OSError."""
    with attached(source) as opened:
        return filesystems.probe(opened.path)


def complaint(source: Source, is_ext4: bool) -> str:
    """Return why the ext4 on a volume asks for a check: see condition.complaint. Raises what `sources.attached` raises, OSError."""
    with attached(source) as opened:
        return condition.complaint(opened.path, is_ext4=is_ext4)


def zero(source: Source, start: int) -> None:
    """Make a device read as zeroes from `start` on, durably; the kernel writes them where the disk cannot. Raises OSError."""
    with attached(source) as opened:
        size, fd = opened.size(), open_node(opened.device.name, os.O_WRONLY)
        try:
            for at in range(start, size, _ZERO_STEP):
                span = ctypes.create_string_buffer(struct.pack("=QQ", at, min(_ZERO_STEP, size - at)), 16)
                syscalls.ioctl("BLKZEROOUT", fd, _BLKZEROOUT, span)
            os.fsync(fd)
        finally:
            os.close(fd)


def has_data_at_ends(source: Source) -> bool:
    """Return whether anything but zeroes is in the first or the last 16 MiB of a device. Raises OSError."""
    with attached(source) as opened:
        size, length = opened.size(), min(opened.size(), _ENDS)
        for at in {0, size - length}:
            if any(os.pread(opened.fd, length, at)):
                return True
    return False


def make_file_system(source: Source, fs_type: str) -> dict[str, Any]:
    """Attach a volume that reads as zeroes, format it, and write everything back. Returns the device.

    Raises what `sources.attached` raises, CommandError.
    """
    with attached(source) as opened:
        filesystems.run(filesystems.mkfs_argv(fs_type, opened.path), _MKFS_SECONDS)
        opened.flush()
        return described(opened)


def mount(source: Source, point: str, fs_type: str, options: Sequence[str], mounted: bool) -> dict[str, Any]:
    """Attach a volume and mount it at `point`; `mounted`: it is there already. Returns the device, and what comes next.

    `shut_down`: the file system refuses an open as one that was shut down. `room`: it is smaller than its device. Raises what
    `sources.attached` raises, Mismatch, ValueError.
    """
    with attached(source) as opened:
        device, shut_down = opened.device, False
        if not mounted:
            filesystems.mount(device.path, point, fs_type, [*options, *filesystems.mount_options(fs_type)])
            _check_shown(device, point)
        elif fs_type != "ext4":
            shut_down = condition.is_shut_down(point, device.major, device.minor)
        room = not shut_down and _room_to_grow(opened, point if fs_type == "xfs" else device.path)
        return described(opened) | {"shut_down": shut_down, "room": room}


def _check_shown(device: BlockDevice, point: str) -> None:
    """Raise Mismatch, with nothing left mounted, where somebody else's mount came between."""
    present = mountinfo.at(point)
    if present is None or (present.major, present.minor) != (device.major, device.minor):
        raise Mismatch(errno.ESTALE, f"{point} does not show {device.path}: somebody mounts there too")


def grow_copy(image: str, copy: str) -> bool:
    """Make `copy`, an empty file beside the image, a clone of it in which the ext4 fills the file; False: nothing to grow.

    On a copy, because resize2fs does not survive a kill: of 150 that were killed at a random moment 15 left what `e2fsck -p`
    does not mend. The copy is durable when this returns. Raises CommandError, OSError; then the copy is worth nothing.
    """
    before = filesystems.size_of_file_system(image)
    if os.stat(image).st_size - before < loop.BLOCK_SIZE:
        return False
    with open(image, "rb") as source, open(copy, "r+b") as target:
        files.reflink(source.fileno(), target.fileno())
        try:
            filesystems.run(("e2fsck", "-f", "-p", copy), _GROW_SECONDS)
        except filesystems.CommandError as error:
            if error.rc != 1:  # 1: it mended what a snapshot leaves behind, such as the journal's replay
                raise
        filesystems.run(filesystems.grow_argv("ext4", copy, copy), _GROW_SECONDS)
        os.fsync(target.fileno())
    return filesystems.size_of_file_system(copy) > before


def bind(source: str, target: str, read_only: bool, device_number: Sequence[int] | None) -> None:
    """Show `source` at `target`; with a number only if `source` is on that device's file system, and can be opened.

    Opened, not just looked at: one that shut itself down answers everything else. Raises OSError, EIO for that.
    """
    if device_number is not None:
        fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            shown = os.fstat(fd).st_dev
        finally:
            os.close(fd)
        if shown != os.makedev(*device_number):
            raise Mismatch(errno.ESTALE, f"{source} is no longer the volume's device")
    filesystems.bind(source, target, read_only)


def is_shut_down(point: str, device_number: Sequence[int]) -> bool:
    """Whether the file system of a device, mounted at `point`, was shut down. Raises FreezeError NotOurs, OSError."""
    major, minor = device_number
    return condition.is_shut_down(point, major, minor)


def umount(point: str) -> None:
    """Unmount the topmost mount at `point`. Raises OSError EBUSY while files on it are open, naming who has them."""
    try:
        filesystems.umount(point)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{point} has open files or other mounts below it ({_users(point)})") from error
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise


def _users(point: str) -> str:
    with suppress(OSError, ValueError):  # the refusal is what counts
        if users := mount_users.users(point):
            return ", ".join(users)
    return f"of nobody that is seen from here: `fuser -vm {point}` on the node tells more"


def grow(source: Source, point: str, fs_type: str, read_only: bool = False) -> None:
    """Grow the device of a volume to the volume's size, and the file system that is mounted at `point` to the device's.

    `read_only`: no mount of it can be written through, so that it cannot grow. Raises BlockingIOError while another growth
    of it is under way, such as that of a killed agent, which its freeze held up in the kernel; CommandError, OSError.
    """
    with attached(source) as opened:
        # Less than one allocation group or block group cannot be added; the tools know, and do nothing then.
        if _room_to_grow(opened, point if fs_type == "xfs" else opened.path):
            _grow(opened.device, point, fs_type, read_only)


def _grow(device: BlockDevice, point: str, fs_type: str, read_only: bool) -> None:
    if read_only:
        raise PermissionError(
            errno.EPERM,
            f"the {fs_type} at {point} cannot grow while it is mounted read-only: it grows when the volume is staged "
            "writable the next time",
        )
    if fs_type == "ext4" and not may_grow_mounted_ext4():
        raise PermissionError(
            errno.EPERM,
            f"ext4 at {point} cannot grow while it is mounted: this agent lacks CAP_SYS_RESOURCE; give it that capability, or "
            "unstage and stage the volume, which grows it",
        )
    try:
        filesystems.run(filesystems.grow_argv(fs_type, device.path, point), _GROW_SECONDS)
    except CommandError as error:
        if any(words in error.err for words in _GROWS_ALREADY):
            raise BlockingIOError(errno.EAGAIN, f"the {fs_type} at {point} is growing already") from error
        raise


def _room_to_grow(opened: OpenDevice, file_system: str) -> bool:
    return opened.size() - filesystems.size_of_file_system(file_system) >= loop.BLOCK_SIZE


def may_grow_mounted_ext4() -> bool:
    """Whether the kernel lets this process grow an ext4 that is mounted: it asks for CAP_SYS_RESOURCE."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)

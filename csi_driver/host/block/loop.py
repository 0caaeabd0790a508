"""Loop devices: attach, find, resize, detach. What is attached is read from the kernel each time, never remembered."""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from csi_driver.host import syscalls
from csi_driver.host.block import device as block_device
from csi_driver.host.block import loop_ioctl
from csi_driver.host.block.device import BlockDevice, OpenDevice
from csi_driver.host.block.device_users import TENANTS_DATA, holders, mount_points_of, processes_with_open
from csi_driver.host.block.loop_ioctl import LoopDevice
from csi_driver.host.errors import Busy, HostError, Mismatch, Unsupported
from csi_driver.host.fs import mountinfo

__all__ = [
    "BLOCK_SIZE", "LoopDevice", "attach", "detach", "detach_unverified", "find", "opened", "refuse_discard", "resize", "scan",
    "size", "tune",
]  # fmt: skip

StrPath = str | os.PathLike[str]

BLOCK_SIZE = 4096
_ATTACH_TRIES = 64
_WAIT_TRIES, _WAIT_SECONDS = 50, 0.01


def attach(path: StrPath, *, read_only: bool = False, names: str = "") -> LoopDevice:
    """Bind the image `path`, of a multiple of 4096 bytes, to a free loop device: 4096-byte blocks, direct I/O.

    4096 from the first day, since a file that was ever reflinked takes direct I/O in no smaller units: 512-byte blocks
    would silently become buffered. Both are checked afterwards and the device is let go again where they are not so
    (Unsupported). What the number's last owner may have left behind, read-only or refused discard, is undone; `tune`
    and `refuse_discard` are the caller's. Raises Busy where the file has a device already (two on one file corrupt it),
    else OSError. The caller must hold the volume's lock. `names`: see `find`.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file_fd = os.open(path, flags)
    try:
        status = os.fstat(file_fd)
        if not stat.S_ISREG(status.st_mode) or not status.st_size or status.st_size % BLOCK_SIZE:
            raise HostError(errno.EINVAL, f"{os.fspath(path)} is not a file of a multiple of {BLOCK_SIZE} bytes")
        present = find(status, os.path.basename(os.fspath(path)), os.fspath(path), names)
        if present:
            raise Busy(f"{os.fspath(path)} is attached already, as {present.path}")
        return _bind(file_fd, status, os.fsencode(path), read_only=read_only)
    finally:
        os.close(file_fd)


def _bind(file_fd: int, status: os.stat_result, name: bytes, *, read_only: bool) -> LoopDevice:
    config = loop_ioctl.Config(fd=file_fd, block_size=BLOCK_SIZE)
    config.info.flags = loop_ioctl.DIRECT_IO | (loop_ioctl.READ_ONLY if read_only else 0)
    config.info.file_name = name[-63:]  # for people who read losetup; nothing here goes by it
    attempt = 0
    while True:
        attempt += 1
        number = _free_number()
        try:
            with loop_ioctl.opened(number, os.O_RDONLY if read_only else os.O_RDWR) as fd:
                syscalls.ioctl(f"LOOP_CONFIGURE of loop{number}", fd, loop_ioctl.CONFIGURE, config)
                try:
                    return _checked(fd, number, status, read_only=read_only)
                except BaseException:
                    with suppress(OSError):
                        syscalls.ioctl("LOOP_CLR_FD", fd, loop_ioctl.CLR_FD)
                    raise
        except HostError:
            raise
        except OSError as error:
            # The free number was taken by somebody else, or its last owner is still letting go: ask for another one.
            if error.errno not in (errno.EBUSY, errno.EAGAIN, errno.ENXIO) or attempt == _ATTACH_TRIES:
                raise
            time.sleep(min(0.001 * attempt, 0.05))


def _free_number() -> int:
    for _ in range(_ATTACH_TRIES):
        number = loop_ioctl.control("LOOP_CTL_GET_FREE", loop_ioctl.CTL_GET_FREE)
        if _has_stale_mounts(number):
            # For its last owner: whoever looks there would see our file. The kernel gives out the lowest free number again
            # and again, so another one is chosen, or added.
            others = (n for n in loop_ioctl.numbers() if loop_ioctl.sysfs(n, "loop/backing_file") is None)
            another = next((n for n in others if not _has_stale_mounts(n)), None)
            number = loop_ioctl.control("LOOP_CTL_ADD", loop_ioctl.CTL_ADD, -1) if another is None else another
        if not _discard_permanently_off(number):
            return number
        _recreate(number)
    raise HostError(
        errno.EBUSY, f"loop{number} refuses discard permanently and cannot be removed while another process has it open"
    )


def _has_stale_mounts(number: int) -> bool:
    """Whether the node of a free device is still bind-mounted somewhere."""
    return bool(mountinfo.mounts_of(loop_ioctl.MAJOR, number, f"loop{number}"))


def _discard_permanently_off(number: int) -> bool:
    # Measured on 6.18: discard_max_bytes=0 stays with the number when its file goes, and takes no other value ever
    # after (EINVAL, since discard_granularity is 0 by then): the next volume there, or a stranger's image, could never
    # be trimmed.
    possible = loop_ioctl.sysfs(number, "queue/discard_max_hw_bytes") not in ("0", None)
    return possible and loop_ioctl.sysfs(number, "queue/discard_max_bytes") == "0"


def _recreate(number: int) -> None:
    # Best effort: the kernel refuses while it is bound or open, and then somebody else has it anyway.
    with suppress(OSError):
        loop_ioctl.control("LOOP_CTL_REMOVE", loop_ioctl.CTL_REMOVE, number)
        loop_ioctl.control("LOOP_CTL_ADD", loop_ioctl.CTL_ADD, number)


def _clean(number: int) -> None:
    """Leave nothing of ours with a number that has no file any more: whoever gets it next may be a stranger.

    A device that is made again takes discard and writes again. Else read-only is undone, by an exclusive user: nobody can
    bind a file meanwhile, whose flag this would be.
    """
    if _discard_permanently_off(number):
        _recreate(number)
        return
    if loop_ioctl.sysfs(number, "ro") != "1":
        return
    with suppress(OSError), loop_ioctl.opened(number, os.O_RDONLY | os.O_EXCL) as fd:
        if loop_ioctl.describe(fd, number) is None:
            block_device.set_read_only(fd, False)


def _checked(fd: int, number: int, status: os.stat_result, *, read_only: bool) -> LoopDevice:
    device = loop_ioctl.describe(fd, number)
    if device is None or device.backing != (status.st_dev, status.st_ino):
        raise Mismatch(errno.EIO, f"loop{number} does not hold the file that was attached to it")
    block, direct = loop_ioctl.sysfs(number, "queue/logical_block_size"), loop_ioctl.sysfs(number, "loop/dio")
    if (block, direct) != (str(BLOCK_SIZE), "1"):
        raise Unsupported(
            errno.EOPNOTSUPP,
            f"loop{number} has {block}-byte blocks and dio={direct}, wanted {BLOCK_SIZE} and 1: "
            "the pool's file system or disk does not take direct I/O in such blocks",
        )
    # BLKROSET outlives a detach too (measured): the flag may be the last owner's.
    block_device.set_read_only(fd, read_only)
    return device


def scan(basename: str | None = None) -> list[LoopDevice]:
    """List all bound loop devices; `basename`: only those whose file is called so, or was before its deletion.

    Only with that filter are other people's devices left alone: each one looked at is opened, which can delay its
    detach. Raises OSError rather than leave one out.
    """
    return _scan(basename, {errno.ENXIO})


def _scan(basename: str | None, left_out: set[int], target: str = "", names: str = "") -> list[LoopDevice]:
    found = []
    for number in loop_ioctl.numbers():
        backing = loop_ioctl.sysfs(number, "loop/backing_file")
        if backing is None or (basename and os.path.basename(backing.removesuffix(" (deleted)")) != basename):
            continue
        if names and _is_anothers(backing.removesuffix(" (deleted)"), target, names):
            continue
        try:
            with loop_ioctl.opened(number, os.O_RDONLY) as fd:
                device = loop_ioctl.describe(fd, number)
        except OSError as error:
            if error.errno in left_out:  # ENXIO: it was detached between the two reads
                continue
            raise
        if device:
            found.append(device)
    return found


def find(
    target: StrPath | os.stat_result, basename: str | None = "", path: str = "", names: str = ""
) -> LoopDevice | None:
    """Find the device that holds the file `target`, by device and inode of the file; None: it is not attached.

    Devices that are surely another file's are not asked, since one that hangs does not answer: those whose file is not called
    `basename` (empty: as the target; None: all are asked), and those of whose path the pattern `names` takes another name than
    of `path`, the target's (empty: there is no such pattern). Raises HostError EUCLEAN if the file has more than one device,
    which corrupts it sooner or later: somebody must look. OSError otherwise.
    """
    if not isinstance(target, os.stat_result):
        path = os.fspath(target)
    status = target if isinstance(target, os.stat_result) else os.stat(target, follow_symlinks=False)
    if basename == "":
        basename = os.path.basename(path) or None
    # EIO: the file system of a device's file is dead. The target's is not, so that it is another one: a dead pool must not
    # keep the volumes of others from their devices.
    living = _scan(basename, {errno.ENXIO, errno.EIO}, path, names)
    found = [device for device in living if device.backing == (status.st_dev, status.st_ino)]
    if len(found) > 1:
        paths = " and ".join(device.path for device in found)
        raise HostError(errno.EUCLEAN, f"one file is attached more than once: {paths}")
    return found[0] if found else None


def _is_anothers(backing: str, target: str, names: str) -> bool:
    """Return whether a device's file is surely another one than `target`, by what `names` finds in the two paths.

    Where the path begins depends on who opened the file, so a pattern goes by its end.
    """
    theirs, ours = re.findall(names, backing), re.findall(names, target)
    return bool(theirs and ours) and theirs != ours


@contextmanager
def opened(device: LoopDevice) -> Iterator[OpenDevice]:
    """Open the device for the length of a block, and make sure that it holds the file it should. Raises Mismatch, OSError."""
    with loop_ioctl.held(device) as fd:
        identity = loop_ioctl.attachment(device.number)
        yield OpenDevice(BlockDevice(device.path, device.name, device.major, device.minor, identity), fd)


def detach(device: LoopDevice, mounted: Callable[[LoopDevice], Sequence[str]] = mount_points_of) -> None:
    """Let the file of `device` go; when this returns, it is gone. A device that holds nothing any more is no error.

    Refuses, with nothing changed: Mismatch where the device holds another file by now; Busy naming the users where it
    is mounted (in any namespace), has holders (device mapper), or stays open for half a second. `mounted` names the
    places where file systems of the device or its node are mounted; the default looks in this namespace's mountinfo.
    The kernel would detach under a bind-mounted node at once, and of an open device it says 0 and detaches later.
    """
    try:
        # Exclusive until the end: nobody can mount it between the checks and the detach.
        fd = loop_ioctl.open_node(device.number, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return
        if error.errno == errno.EBUSY:
            raise _in_use(
                device,
                holders(device)
                or mount_points_of(device)
                or ["an exclusive user that is not seen from here: a mount in another namespace?"],
            ) from None
        raise
    try:
        present = loop_ioctl.describe(fd, device.number)
        if present is None:
            return
        if present.backing != device.backing:
            raise Mismatch(errno.ESTALE, f"{device.path} holds another file by now")
        users = [*holders(device), *mounted(device)]
        if users:
            raise _in_use(device, users)
        _detach_open(fd, device)
    finally:
        os.close(fd)
    _wait_until_gone(device)
    _clean(device.number)


def detach_unverified(number: int, backing: str) -> None:
    """Let go of a device whose file's file system may be dead, if the path that the kernel shows of it is still `backing`.

    Such a file has no identity any more that could be asked for. Refuses what `detach` refuses, with nothing changed; of a
    device that somebody has open beside, it raises Busy, and the kernel lets go at the last close.
    """
    try:
        fd = loop_ioctl.open_node(number, os.O_RDONLY | os.O_EXCL)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return
        raise
    try:
        device = LoopDevice(number, f"/dev/loop{number}", loop_ioctl.MAJOR, number, (0, 0))
        if loop_ioctl.sysfs(number, "loop/backing_file") != backing:
            return
        users = [*holders(device), *mount_points_of(device)]
        if users:
            raise _in_use(device, users)
        syscalls.ioctl("LOOP_CLR_FD", fd, loop_ioctl.CLR_FD)
        openers_beside = processes_with_open(device, fd)
    finally:
        os.close(fd)
    for _ in range(_WAIT_TRIES):
        if loop_ioctl.sysfs(number, "loop/backing_file") != backing:
            _clean(number)
            return
        time.sleep(_WAIT_SECONDS)
    raise _in_use(device, openers_beside or ["a process that cannot be seen from here"])


def _in_use(device: LoopDevice, users: Sequence[str]) -> Busy:
    # No pod stacks a device on its volume: the node has looked into what is on it.
    page = f"; {TENANTS_DATA} says how to end that, and how to keep a node from it" if holders(device) else ""
    return Busy(f"{device.path} is in use by {', '.join(users)}{page}")


def _detach_open(fd: int, device: LoopDevice) -> None:
    # LOOP_CLR_FD of a device that somebody else has open too answers 0, sets AUTOCLEAR, and detaches at the last close.
    # Ours is not closed before the flag is off again, and should we be killed, it was on for microseconds only.
    for attempt in range(_WAIT_TRIES):
        if attempt:
            time.sleep(_WAIT_SECONDS)
        try:
            syscalls.ioctl("LOOP_CLR_FD", fd, loop_ioctl.CLR_FD)
            info = loop_ioctl.status(fd)
            info.flags &= ~loop_ioctl.AUTOCLEAR
            syscalls.ioctl("LOOP_SET_STATUS64", fd, loop_ioctl.SET_STATUS64, info)
        except OSError as error:
            if error.errno == errno.ENXIO:  # committed: we alone have it open, and it goes at our close or has gone
                return
            raise
    raise _in_use(device, processes_with_open(device, fd) or ["a process that cannot be seen from here"])


def _wait_until_gone(device: LoopDevice) -> None:
    for _ in range(_WAIT_TRIES):
        if loop_ioctl.sysfs(device.number, "loop/backing_file") is None:
            return
        try:
            with loop_ioctl.opened(device.number, os.O_RDONLY) as fd:
                present = loop_ioctl.describe(fd, device.number)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        else:
            if present is None or present.backing != device.backing:  # gone, and the number taken again at once
                return
        time.sleep(_WAIT_SECONDS)
    raise Busy(f"{device.path} was let go, but the kernel has not finished with it")


def resize(device: LoopDevice) -> int:
    """Have the device take the size that its file has now; return it in bytes, from sysfs. Raises Mismatch, OSError."""
    with loop_ioctl.held(device) as fd:
        syscalls.ioctl("LOOP_SET_CAPACITY", fd, loop_ioctl.SET_CAPACITY)
    return size(device)


def size(device: LoopDevice) -> int:
    """Tell the size of the device in bytes, from sysfs. Raises OSError."""
    # sysfs counts sectors of 512 bytes whatever the block size.
    return int(_attribute(device, "size")) * 512


def _attribute(device: LoopDevice, name: str) -> str:
    value = loop_ioctl.sysfs(device.number, name)
    if value is None:
        raise Mismatch(errno.ENXIO, f"{device.path} has no {name} in sysfs: it is gone")
    return value


def refuse_discard(device: LoopDevice) -> None:
    """Have the device refuse discard until it is detached: nothing takes a thick image's space away.

    Measured on 6.18 with a full image: fstrim and mount -o discard (ext4, xfs), blkdiscard and a punching fallocate of
    the device are refused; what wants zeroes (blkdiscard -z, fallocate, ext4lazyinit) has them written, where it would
    otherwise be answered by allocated unwritten space (BLKZEROOUT) or by a hole (ext4lazyinit). Kernels before 5.19 may
    still punch for ext4lazyinit (not measured; our ext4 profile leaves it nothing to do). Raises Unsupported where it
    is not refused afterwards, Mismatch, OSError.
    """
    with loop_ioctl.held(device):
        # The second exists from 6.17, and is 0 on a loop device so far.
        for name in ("discard_max_bytes", "write_zeroes_unmap_max_bytes"):
            if loop_ioctl.sysfs(device.number, f"queue/{name}") not in ("0", None):
                loop_ioctl.write_sysfs(device.number, f"queue/{name}", "0")
        if loop_ioctl.sysfs(device.number, "queue/discard_max_bytes") != "0":
            raise Unsupported(errno.EOPNOTSUPP, f"{device.path} cannot be made to refuse discard")


def tune(device: LoopDevice) -> None:
    """Set the queue for direct I/O: scheduler none, no write-back throttling; the pool's own device schedules below.

    Measured on 6.18 (XFS pool on a loop on a disk, 2 noisy cores, 3 rounds of fio 4k, queue depth 32, medians in kIOPS,
    random read / write): the image file itself 74 / 49; loop with none 80 / 45; mq-deadline 75 / 39. nr_requests 64,
    nomerges and rq_affinity 2 stayed inside the noise of 20 %, so they are left. Throttling costs no throughput, but
    while a guest wrote 2 GiB through its cache, 99 % of its reads took up to 5.7 ms with it, 0.4 ms without (4 rounds).
    Settings that this kernel does not have are left out: speed is no reason to fail. Raises Mismatch.
    """
    with loop_ioctl.held(device):
        for name, value, shown in (("scheduler", "none", "[none]"), ("wbt_lat_usec", "0", "0")):
            # A write holds the queue still, and whoever uses the device already would wait for that.
            with suppress(OSError):
                if not loop_ioctl.shows(device.number, f"queue/{name}", shown):
                    loop_ioctl.write_sysfs(device.number, f"queue/{name}", value)

"""Thawing what somebody left frozen, wherever it is mounted by now, also where no mount is left."""

import errno
import fcntl
import os
import threading
from collections.abc import Sequence

from csi_driver.host import syscalls
from csi_driver.host.block import device as block_device
from csi_driver.host.block import loop_ioctl
from csi_driver.host.freeze.state import (
    FITHAW,
    FREEZING,
    FROZEN,
    THAWED,
    FreezeError,
    FreezePage,
    living,
    numbers,
    open_mount,
)

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 1, 2, 4, 8, 0x4000, 1 << 19


def thaw(mounts: Sequence[dict[str, object]], *, states: FreezePage | None = None) -> dict[str, object]:
    """Thaw file systems wherever they are mounted by now, also where no mount is left. Returns {"thawed": [bool, ...]}.

    `mounts`: as for `cut`, or the facts of journal entries (without looking at their boot id: that is the sweep's work).
    False: it was not frozen. With "identity" (or "backing", of a loop device) it must still be that device, else it is left
    alone (False): the number is another volume's by now. Raises FreezeError ThawFailed where a file system may still be frozen. May hang,
    one mount never holding up another. `states`: the watchdog's page; only what it tells to be ours and frozen is thawed.
    """
    results: list[bool | BaseException] = [False] * len(mounts)

    def one(index: int) -> None:
        try:
            results[index] = _thaw_one(mounts[index])
            # Not frozen *yet* where a killed FIFREEZE is still on its way: then this byte stays, and the watchdog comes again.
            if states is not None and (results[index] or states[index] == FROZEN):
                states[index] = THAWED
        except BaseException as error:
            results[index] = error

    wanted = [i for i in range(len(mounts)) if states is None or states[i] in (FREEZING, FROZEN)]
    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [(mounts[i]["point"], error) for i, error in enumerate(results) if isinstance(error, BaseException)]
    if failures:
        text = "; ".join(f"{point}: {error}" for point, error in failures)
        raise FreezeError("ThawFailed", f"may still be frozen: {text}", getattr(failures[0][1], "errno", None) or 0)
    return {"thawed": [result is True for result in results]}


def _thaw_one(mount: dict[str, object]) -> bool:
    major, minor = numbers(mount)
    name = block_device.name_of(major, minor)
    if _is_another(mount, name, minor):
        return False
    for point in (str(mount["point"]), *_points(major, minor)):
        try:
            fd = open_mount(point, major, minor)
        except (FreezeError, OSError):
            continue  # moved, covered by another mount, or gone
        try:
            return _fithaw(fd)
        finally:
            os.close(fd)
    fs_type = living(name)
    return bool(fs_type and thaw_device(f"/dev/{name}", fs_type)["thawed"])


def _is_another(mount: dict[str, object], name: str, minor: int) -> bool:
    """Return whether the device that was frozen has gone, and its number is another volume's by now."""
    identity = mount.get("identity")
    if identity:
        return block_device.identity(name) != identity
    # Without: from a kernel that has none, or from an agent before this one, which had loop devices alone.
    backing = mount.get("backing")
    return isinstance(backing, list) and name.startswith("loop") and loop_ioctl.backing(minor) != tuple(backing)


def _points(major: int, minor: int) -> list[str]:
    from csi_driver.host.fs import mountinfo

    return [mount.point for mount in mountinfo.read() if (mount.major, mount.minor) == (major, minor)]


def _fithaw(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:  # was not frozen
            return False
        raise
    return True


def thaw_device(device: str, fs_type: str) -> dict[str, object]:
    """Thaw the file system on the block device node `device` that may have no mount left. Returns {"thawed": bool}.

    It is mounted where nobody else sees it: in a mount namespace of this thread alone, which ends with the process; a second
    mount of a living file system is the same file system, so nothing is replayed or written. xfs and ext4 that are not alive
    are not frozen, and are not mounted (a mount would replay their log). Raises OSError where it cannot be mounted or thawed.
    """
    if fs_type in ("xfs", "ext4") and not os.path.isdir(f"/sys/fs/{fs_type}/{os.path.basename(device)}"):
        return {"thawed": False}
    _private_namespace()
    # An existing directory is covered, in this namespace only: nothing is left behind whenever we are killed.
    target = next(
        path for path in ("/mnt", "/tmp", "/run", "/proc") if os.path.isdir(path) and os.path.realpath(path) == path
    )
    number = os.stat(device).st_rdev
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    data = b"nouuid" if fs_type == "xfs" else None
    arguments = (os.fsencode(device), target.encode(), fs_type.encode())
    try:
        syscalls.call(f"mounting {device} privately", "mount", *arguments, flags, data)
    except OSError as error:
        if error.errno != errno.EBUSY:  # EBUSY: it is alive read-only, and a second mount must be the same
            raise
        syscalls.call(f"mounting {device} privately", "mount", *arguments, flags | _MS_RDONLY, data)
    try:
        fd = open_mount(target, os.major(number), os.minor(number))
        try:
            thawed = _fithaw(fd)
        finally:
            os.close(fd)
    finally:
        syscalls.call(f"unmounting {device}", "umount2", target.encode(), 0)
    return {"thawed": thawed}


def _private_namespace() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        code = ctypes.get_errno()
        raise OSError(code, f"a mount namespace of our own: {os.strerror(code)}")
    # Slave, not private: nothing goes out of it, but unmounts elsewhere come in, so that it never pins another volume's mount.
    syscalls.call("making the namespace a slave", "mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)

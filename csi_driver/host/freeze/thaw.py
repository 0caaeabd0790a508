"""Thawing, and resuming, what somebody left frozen, wherever it is mounted by now, also where no mount is left."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence

from csi_driver.host import syscalls
from csi_driver.host.block import device as block_device
from csi_driver.host.block import loop_ioctl
from csi_driver.host.dm import ioctl as dm
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

_RESUME_GRACE = 1.0
"""Seconds that the thaws wait for resumes that hang."""
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 1, 2, 4, 8, 0x4000, 1 << 19


def thaw(
    mounts: Sequence[dict[str, object]],
    devices: Sequence[dict[str, object]] = (),
    *,
    states: FreezePage | None = None,
) -> dict[str, object]:
    """Resume devices, and thaw file systems wherever they are mounted by now, also where no mount is left.

    Returns {"thawed": [bool, ...]}, and "resumed" alike if there are devices. `mounts`, `devices`: as for `cut`, or the facts of journal entries
    (without looking at their boot id: that is the sweep's work). False: it was not frozen. A mount with "identity" (or "backing",
    of a loop device) must still be that device, else it is left alone (False): the number is another volume's by now. Raises
    FreezeError ThawFailed where something may still be frozen. May hang, one mount or device never holding up another for longer
    than a second. `states`: the watchdog's page; only what it tells to be ours and frozen is thawed.
    """
    thaws = _Thaws(mounts, _thaw_one, states, 0)
    resumes = _Thaws(devices, _resume_one, states, len(mounts))
    resumes.start()
    resumes.join(_RESUME_GRACE)  # a thaw may write
    thaws.start()
    resumes.join()
    thaws.join()
    failures = resumes.failures() + thaws.failures()
    if failures:
        text = "; ".join(f"{name}: {error}" for name, error in failures)
        raise FreezeError("ThawFailed", f"may still be frozen: {text}", getattr(failures[0][1], "errno", None) or 0)
    resumed: dict[str, object] = {"resumed": resumes.done()} if devices else {}
    return {"thawed": thaws.done()} | resumed


class _Thaws:
    """Thaws that run beside each other; their states are those of the page from the index `first` on."""

    def __init__(
        self,
        targets: Sequence[dict[str, object]],
        undo: Callable[[dict[str, object]], bool],
        states: FreezePage | None,
        first: int,
    ) -> None:
        self._targets, self._undo, self._states, self._first = targets, undo, states, first
        self._results: list[bool | BaseException] = [False] * len(targets)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for index in range(len(self._targets)):
            if self._states is None or self._states[self._first + index] in (FREEZING, FROZEN):
                thread = threading.Thread(target=self._one, args=(index,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _one(self, index: int) -> None:
        at = self._first + index
        try:
            self._results[index] = self._undo(self._targets[index])
            # Not frozen *yet* where a killed FIFREEZE is still on its way: then this byte stays, and the watchdog comes again.
            if self._states is not None and (self._results[index] or self._states[at] == FROZEN):
                self._states[at] = THAWED
        except BaseException as error:
            self._results[index] = error

    def join(self, timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def failures(self) -> list[tuple[object, BaseException]]:
        names = [target.get("point") or target.get("uuid") for target in self._targets]
        return [(name, e) for name, e in zip(names, self._results, strict=True) if isinstance(e, BaseException)]

    def done(self) -> list[bool]:
        return [result is True for result in self._results]


def _resume_one(device: dict[str, object]) -> bool:
    uuid = str(device["uuid"])
    try:
        found = dm.info(uuid=uuid)
    except OSError as error:
        if error.errno == errno.ENXIO:  # gone
            return False
        raise
    # With another number it was made again: whoever suspended that one is not us.
    if not found.suspended or (found.major, found.minor) != numbers(device):
        return False
    dm.resume(uuid)
    return True


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

"""What freezing and thawing share: the identity of a mount, the page by which the watchdog knows what is frozen, one error."""

import ctypes
import errno
import os
from collections.abc import Collection, Mapping

from csi_driver.host import syscalls
from csi_driver.host.fs import mountinfo

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

# The state of each mount of a freeze, and of each device after them: one byte each, shared with the watchdog. FREEZING: in the system call, which a
# killed process finishes before it dies, so it is thawed too (if that call was about to answer EBUSY, wrongly: the price of
# a kill within those microseconds, against a file system that nobody would thaw).
UNTOUCHED, FREEZING, FROZEN, THAWED, REFUSED = range(5)
MAX_TARGETS = 4000
"""Mounts and devices in one freeze."""


class FreezePage(ctypes.Structure):
    """The page that a freeze shares with its watchdog: the state of each mount, and of each device after them, and since when."""

    _fields_ = (("_states", ctypes.c_uint8 * MAX_TARGETS), ("_frozen_since", ctypes.c_double))

    def __getitem__(self, index: int) -> int:
        return int(self._states[index])

    def __setitem__(self, index: int, state: int) -> None:
        self._states[index] = state

    @property
    def frozen_since(self) -> float:
        """When the freeze began (CLOCK_MONOTONIC, seconds); 0: not yet."""
        return float(self._frozen_since)

    @frozen_since.setter
    def frozen_since(self, seconds: float) -> None:
        self._frozen_since = seconds

    def any(self, count: int, states: Collection[int]) -> bool:
        """Return whether one of the first `count` mounts and devices is in one of these states."""
        return any(self._states[index] in states for index in range(min(count, MAX_TARGETS)))


class FreezeError(Exception):
    """Why a freeze or thaw did not happen.

    `kind` is one of: NotOurs (the path is not the mount that it should be; nothing was touched), SyncTimeout (nothing
    was frozen), Deadline, FrozenElsewhere (somebody else holds the file system frozen), SuspendedElsewhere
    (or the device suspended), FreezeFailed, CloneFailed, MessageFailed (the action's step, by its kind),
    ThawedElsewhere (somebody thawed inside our freeze: the clones are not one point in time), ThawFailed, StillFrozen
    (a FITHAW has not come back: the watchdog or the next sweep goes on). `errno` is 0 where no system call failed.
    """

    def __init__(self, kind: str, message: str, code: int = 0, **details: object) -> None:
        super().__init__(message)
        self.kind, self.errno, self.details = kind, code, details


def living(name: str) -> str:
    """The type of the file system of ours (ext4, xfs) that is alive on the block device `name`, in whatever namespace it is mounted.

    Empty where there is none. A frozen one outlives its last mount.
    """
    return next((fs_type for fs_type in ("xfs", "ext4") if os.path.isdir(f"/sys/fs/{fs_type}/{name}")), "")


def describe_error(error: BaseException) -> dict[str, object]:
    """Put an exception into the JSON form {"type", "errno", "message", "details"} in which it crosses to the agent."""
    details: dict[str, object] = dict(getattr(error, "details", None) or {})
    for name in ("argv", "rc", "out", "err"):  # of a command that failed
        if hasattr(error, name):
            details[name] = getattr(error, name)
    return {
        "type": getattr(error, "kind", type(error).__name__),
        "errno": getattr(error, "errno", None) or 0,
        "message": _words(error),
        "details": details,
    }


def _words(error: BaseException) -> str:
    """What an error says, without the number that goes beside it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def open_mount(point: str, major: int, minor: int, flags: int = os.O_RDONLY) -> int:
    """Open the file system mounted at `point` if it is the one on the block device `major`:`minor`.

    `flags`: O_PATH for one that was shut down, which refuses any other open and answers statfs all the same. Returns a descriptor
    that stays this file system whatever is mounted there later. Raises FreezeError NotOurs for anything else (a host file
    system is never frozen, synced or thawed because a mount was missing).
    """
    try:
        fd = os.open(point, flags | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FreezeError("NotOurs", f"{point} is not a mount point", error.errno or 0) from None
    try:
        device = _device_of_mount(fd) if flags & os.O_PATH else os.fstat(fd).st_dev
    except BaseException:
        os.close(fd)
        raise
    # 0 as a major is what file systems without a device have (overlay, tmpfs, btrfs): never one of our disks.
    if major == 0 or device != os.makedev(major, minor):
        os.close(fd)
        shown = f"{os.major(device)}:{os.minor(device)}"
        raise FreezeError(
            "NotOurs", f"{point} shows the file system on device {shown}, not {major}:{minor}", errno.ENODEV
        )
    return fd


def _device_of_mount(fd: int) -> int:
    """The device of the mount that a descriptor is on, by mountinfo: on an XFS that was shut down fstat answers EIO."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    return next((os.makedev(mount.major, mount.minor) for mount in mountinfo.read() if mount.id == number), 0)


def sync_mount(point: str, major: int, minor: int) -> None:
    """Write back the file system at `point` (syncfs) after checking that it is the one on `major`:`minor`. Raises as `open_mount`."""
    fd = open_mount(point, major, minor)
    try:
        syscalls.call(f"syncfs of {point}", "syncfs", fd)
    finally:
        os.close(fd)


def numbers(mount: Mapping[str, object]) -> tuple[int, int]:
    """The device number of a mount or device that came as JSON. Raises FreezeError NotOurs."""
    major, minor = mount["major"], mount["minor"]
    if not isinstance(major, int) or not isinstance(minor, int):
        raise FreezeError("NotOurs", f"not a device number: {major!r}:{minor!r}", errno.EINVAL)
    return major, minor

"""What can be frozen: a file system where it is mounted, and a device of the device mapper, which is suspended."""

import errno
import fcntl
import os
from collections.abc import Collection, Mapping
from typing import Protocol

from csi_driver.host import syscalls
from csi_driver.host.block import device as block_device
from csi_driver.host.dm import ioctl
from csi_driver.host.errors import HostError, Mismatch
from csi_driver.host.freeze.state import FIFREEZE, FITHAW, FreezeError, numbers, open_mount


class Target(Protocol):
    """One thing that is frozen. All methods block."""

    name: str
    """What it is, for a message."""

    def sync(self) -> None:
        """Write everything back, so that the freeze finds little to do. Raises OSError."""

    def freeze(self) -> None:
        """Freeze it. Raises OSError."""

    def thaw(self) -> None:
        """Thaw it. Raises OSError: EINVAL if it is not frozen."""

    def refusal(self, error: OSError) -> FreezeError:
        """Return what a failed freeze is."""


class MountTarget:
    """A file system, open where it is mounted."""

    def __init__(self, mount: Mapping[str, object]) -> None:
        """Open it. Raises FreezeError NotOurs, OSError."""
        self.name = str(mount["point"])
        self._fd = open_mount(self.name, *numbers(mount))

    def sync(self) -> None:
        """Write the file system back. Raises OSError."""
        syscalls.call(f"syncfs of {self.name}", "syncfs", self._fd)

    def freeze(self) -> None:
        """Freeze it. Raises OSError: EBUSY if it is frozen."""
        fcntl.ioctl(self._fd, FIFREEZE, 0)

    def thaw(self) -> None:
        """Thaw it. Raises OSError."""
        fcntl.ioctl(self._fd, FITHAW, 0)

    def refusal(self, error: OSError) -> FreezeError:
        """Return FrozenElsewhere or FreezeFailed."""
        return frozen_elsewhere(error, f"the file system at {self.name}", self.name) or FreezeError(
            "FreezeFailed", f"freezing {self.name}: {os.strerror(error.errno or 0)}", error.errno or 0, point=self.name
        )


class DeviceTarget:
    """A device of the device mapper, known by its uuid.

    It is `raw` unless its file system is one of those that are frozen before it: then there is something to write back before the
    suspend, and the suspend itself freezes a file system that somebody else has on it, or writes the device's page cache back.
    """

    def __init__(self, device: Mapping[str, object], mounted: Collection[tuple[int, int]]) -> None:
        """Check that it is the device, and that nobody keeps it suspended: a write to that would hang. Raises FreezeError, OSError."""
        self._uuid, self._number = str(device["uuid"]), numbers(device)
        self.raw = self._number not in mounted
        self.name = self._uuid
        try:
            found = ioctl.verify(self._uuid, *self._number)
        except Mismatch as error:
            raise FreezeError("NotOurs", str(error.strerror), errno.ENODEV) from None
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise FreezeError("NotOurs", f"there is no device {self._uuid} any more", errno.ENXIO) from None
        self.name = f"the device {found.name}"
        if found.suspended:
            raise self.refusal(_suspended())

    def sync(self) -> None:
        """Write the device's page cache back, if its writers are not those of a file system. Raises OSError."""
        if self.raw:
            fd = block_device.open_node(block_device.name_of(*self._number), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def freeze(self) -> None:
        """Suspend it. Raises OSError: EALREADY if it is suspended, EBUSY if its file system is frozen."""
        # The ioctl does not say so: it leaves a suspended device as it is. Who suspends it between the two is not noticed.
        if ioctl.info(uuid=self._uuid).suspended:
            raise _suspended()
        ioctl.suspend(self._uuid, lockfs=self.raw)

    def thaw(self) -> None:
        """Resume it. Raises OSError: EINVAL if it is not suspended."""
        if not ioctl.info(uuid=self._uuid).suspended:
            raise OSError(errno.EINVAL, "no longer suspended")
        ioctl.resume(self._uuid)

    def refusal(self, error: OSError) -> FreezeError:
        """Return SuspendedElsewhere, FrozenElsewhere or FreezeFailed."""
        code = error.errno or 0
        if code == errno.EALREADY:
            message = f"{self.name} is suspended already, by another program: resume it with that program"
            return FreezeError("SuspendedElsewhere", message, code)
        return frozen_elsewhere(error, f"the file system on {self.name}") or FreezeError(
            "FreezeFailed", f"suspending {self.name}: {os.strerror(code)}", code
        )


def _suspended() -> HostError:
    return HostError(errno.EALREADY, "suspended already")


def frozen_elsewhere(error: OSError, what: str, point: str = "") -> FreezeError | None:
    """Return what EBUSY says of a freeze; None for any other error."""
    if error.errno != errno.EBUSY:
        return None
    message = f"{what} is frozen already, by another program: thaw it with that program"
    return FreezeError("FrozenElsewhere", message, errno.EBUSY, **({"point": point} if point else {}))

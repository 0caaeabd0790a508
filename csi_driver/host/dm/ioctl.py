"""Devices of the device mapper: what they are and do, messages to them, suspend and resume.

All functions block, and raise OSError with the kernel's errno: ENXIO if there is no such device. What changes something takes a
uuid and never a name, which may be another device's by now.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from csi_driver.host.dm import control
from csi_driver.host.dm.control import Header, TargetSpec
from csi_driver.host.errors import Mismatch

_NAME_LIST = struct.Struct("=QI")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as it is now. `opened`: how often it is open, mounts and devices above it included."""

    name: str
    uuid: str
    major: int
    minor: int
    opened: int
    suspended: bool
    read_only: bool


@dataclass(frozen=True, slots=True)
class Target:
    """One part of a device, in sectors of 512 bytes; `text`: its status, or its table, in words of its kind."""

    start: int
    length: int
    kind: str
    text: str


def info(*, uuid: str = "", name: str = "") -> DeviceInfo:
    """Return what a device is now, by its uuid or by its name."""
    header, _ = control.call(f"looking at the device {uuid or name}", control.STATUS, _one(uuid, name), name)
    return _info(header)


def names() -> list[tuple[str, int, int]]:
    """Return name, major and minor of each device."""
    _, data = control.call("listing the devices of the device mapper", control.LIST_DEVICES)
    found: list[tuple[str, int, int]] = []
    at = 0
    if not data:
        return found  # there is none: the kernel fills in nothing
    while True:
        number, following = _NAME_LIST.unpack_from(data, at)
        if number == 0:
            return found
        name = data[at + _NAME_LIST.size :].split(b"\0", 1)[0].decode()
        found.append((name, os.major(number), os.minor(number)))
        if following == 0:
            return found
        at += following


def status(*, uuid: str = "", name: str = "", commit: bool = False) -> list[Target]:
    """Return the status of each target of a device; status.py reads those of thin pools and volumes.

    `commit`: a pool writes its metadata first, so that the numbers are exact, and may hang on its disk.
    """
    flags = 0 if commit else control.FLAG_NO_FLUSH
    return _targets(f"reading the status of {uuid or name}", _one(uuid, name), name, flags)


def table(*, uuid: str = "", name: str = "") -> list[Target]:
    """Return what each target of a device is made of."""
    return _targets(f"reading the table of {uuid or name}", _one(uuid, name), name, control.FLAG_TABLE)


def message(uuid: str, text: str) -> str:
    """Send a message to the first target of a device; return its answer, if it has one."""
    data = struct.pack("=Q", 0) + text.encode() + b"\0"
    header, answer = control.call(f"the message '{text}' to {uuid}", control.TARGET_MESSAGE, _given(uuid), data=data)
    return answer.split(b"\0", 1)[0].decode() if header.flags & control.FLAG_DATA_OUT else ""


def suspend(uuid: str, lockfs: bool) -> None:
    """Suspend a device once its writes are done. A device that is suspended already stays so: look at `info` before.

    `lockfs`: the file system on it is frozen first, or, if there is none, the page cache of the device written back.
    """
    flags = control.FLAG_SUSPENDED | (0 if lockfs else control.FLAG_SKIP_LOCKFS)
    control.call(f"suspending {uuid}", control.SUSPEND, _given(uuid), flags=flags)


def resume(uuid: str) -> None:
    """Resume a device; one that is not suspended stays as it is."""
    control.call(f"resuming {uuid}", control.SUSPEND, _given(uuid))


def verify(uuid: str, major: int, minor: int) -> DeviceInfo:
    """Return the device of a uuid. Raises Mismatch if it has another number than that."""
    found = info(uuid=_given(uuid))
    if (found.major, found.minor) != (major, minor):
        message = f"{uuid} is the device {found.major}:{found.minor}, not {major}:{minor}"
        raise Mismatch(errno.ESTALE, message)
    return found


def _given(uuid: str) -> str:
    if not uuid:
        raise OSError(errno.EINVAL, "a device of the device mapper is named by its uuid, which is empty")
    return uuid


def _one(uuid: str, name: str) -> str:
    if bool(uuid) == bool(name):
        raise OSError(errno.EINVAL, "a device of the device mapper is named by its uuid or by its name")
    return uuid


def _info(header: Header) -> DeviceInfo:
    return DeviceInfo(
        header.name.decode(),
        header.uuid.decode(),
        os.major(header.dev),
        os.minor(header.dev),
        header.open_count,
        bool(header.flags & control.FLAG_SUSPENDED),
        bool(header.flags & control.FLAG_READ_ONLY),
    )


def _targets(what: str, uuid: str, name: str, flags: int) -> list[Target]:
    header, data = control.call(what, control.TABLE_STATUS, uuid, name, flags)
    found, at, size = [], 0, ctypes.sizeof(TargetSpec)
    for _ in range(header.target_count):
        spec = TargetSpec.from_buffer_copy(data, at)
        text = data[at + size :].split(b"\0", 1)[0].decode(errors="replace")
        found.append(Target(spec.start, spec.length, spec.kind.decode(), text))
        at = spec.next
    return found

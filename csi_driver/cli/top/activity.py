"""Reads and writes of block devices, from the kernel's counters. Pure, but for `read_counters`."""

from collections.abc import Mapping
from dataclasses import dataclass

from csi_driver.host.block import device

_SECTOR = 512
"""Bytes: the kernel counts in these whatever the device has."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What /sys/block/X/stat has counted since the device was attached, and which attachment it is of."""

    attachment: str
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class Activity:
    """Per second: reads, writes and their bytes; `busy`: the part of the time in which anything was under way, 0 to 1."""

    reads: float = 0.0
    writes: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    busy: float = 0.0


def parse_counters(text: str, attachment: str = "") -> Counters | None:
    """Parse a stat file of sysfs (Documentation/block/stat.rst); None if it is not one."""
    fields = text.split()
    if len(fields) < 11 or not all(field.isdecimal() for field in fields):
        return None
    numbers = [int(field) for field in fields]
    return Counters(attachment, numbers[0], numbers[2] * _SECTOR, numbers[4], numbers[6] * _SECTOR, numbers[9])


def rates(before: Counters, after: Counters, seconds: float) -> Activity | None:
    """Return what happened between two readings; None if they are of different attachments, or of no time."""
    if seconds <= 0 or before.attachment != after.attachment or after.reads < before.reads:
        return None
    return Activity(
        (after.reads - before.reads) / seconds,
        (after.writes - before.writes) / seconds,
        (after.read_bytes - before.read_bytes) / seconds,
        (after.written_bytes - before.written_bytes) / seconds,
        min(1.0, (after.busy_ms - before.busy_ms) / 1000 / seconds),
    )


def read_counters(devices: Mapping[str, str]) -> dict[str, Counters]:
    """Return the counters of volumes, by id; `devices`: the device of each, such as /dev/loop7, by id.

    An agent may be on another machine, whose devices have the same names: a device counts only if its backing file is the
    image of this very volume.
    """
    found: dict[str, Counters] = {}
    for volume_id, path in devices.items():
        name = path.rpartition("/")[2]
        backing = device.sysfs(name, "loop/backing_file") or ""
        if not backing.endswith(f"/volumes/{volume_id.rpartition(':')[2]}/disk.img"):
            continue
        counters = parse_counters(device.sysfs(name, "stat") or "", device.identity(name))
        if counters is not None:
            found[volume_id] = counters
    return found

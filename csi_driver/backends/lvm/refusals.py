"""What lvm refuses, in the driver's errors: each says what to do. lvm's own words stay in the message."""

import re
from collections.abc import Callable

from csi_driver.domain.errors import (
    AlreadyExists,
    Busy,
    Damaged,
    DriverError,
    InUse,
    OutOfSpace,
    Precondition,
    TooSlow,
    Unavailable,
    Unsupported,
)

_NOISE = re.compile(
    r"^\s*(WARNING: |File descriptor \d+ |Reading .*|Consider |Run .lvmconfig|For thin pool auto extension|"
    r"Internal error: unlocking |Attempted to decrement )",
    re.IGNORECASE,
)
_LONGEST = 600

UNCOMMITTED = re.compile(r"Thin pool (?P<pool>\S+) \([\d:]+\) already contains? thin device with device_id (?P<id>\d+)")
"""What an lvm that was killed between two of its steps has left: host/lvm/uncommitted.py."""

_Explained = Callable[[str], DriverError]


def _words(pattern: str, kind: type[DriverError], remedy: str) -> tuple[re.Pattern[str], _Explained]:
    """A refusal that is known by its words. `remedy`: what to do, after lvm's text."""
    return re.compile(pattern, re.IGNORECASE), lambda text: kind(f"{text}; {remedy}")


_TABLE = (
    # The thin pool and the volume group contradict each other: nothing more can be made until somebody decides.
    _words(
        r"manual intervention|unexpected transaction|transaction.id mismatch|needs_check|needs check|"
        r"check of (thin )?pool .* failed|is in (read.only|fail) mode",
        Unavailable,
        "the thin pool needs repair: see `dmsetup status` and the node's kernel log, keep a copy of its metadata, and follow "
        "lvmthin(7), section Metadata check and repair",
    ),
    _words(
        r"exceeds? maximum metadata size|too large for (the )?circular|metadata area .*(full|too small)|"
        r"not enough space .*metadata (area|text)",
        OutOfSpace,
        "the area in which each disk keeps the volume group's metadata is full: delete snapshots or volumes. It cannot grow; a "
        "pool made by `tidemark pool create` has 64 MiB of it",
    ),
    _words(
        r"reached threshold|out of (meta)?data space|free space in thin pool|thin pool .* is full",
        OutOfSpace,
        "delete snapshots or volumes, or add a disk: tidemark pool grow",
    ),
    _words(
        r"insufficient (suitable )?(allocatable|free)|insufficient free space|not enough free extents|"
        r"no free extents|insufficient .*extents",
        OutOfSpace,
        "the volume group has no room left: delete something, or add a disk: tidemark pool grow",
    ),
    _words(
        r"with system id|foreign (vg|volume group)",
        Unavailable,
        "the volume group belongs to another machine: see vgs -o +systemid",
    ),
    _words(
        r"lock.?type|lockd|lock start|clustered",
        Unsupported,
        "the volume group is shared by several machines (lvmlockd), which is not supported: use one of this machine alone",
    ),
    _words(
        r"(is|are) missing|missing (pv|physical)|couldn't find device|partial (vg|lv|mode)|cannot (change|process) .*missing",
        Unavailable,
        "a disk of the pool is away: attach it again (`tidemark pool show` names it). Do not run vgreduce --removemissing, "
        "which gives up what is on it",
    ),
    _words(
        r"contains a filesystem in use|in use\b|is used by another device|open count|currently in use|"
        r"is (still )?used by",
        InUse,
        "stop what uses it, then try again",
    ),
    _words(r"already exists", AlreadyExists, "a logical volume of that name was left or made by hand"),
    _words(
        r"volume group .*not found|cannot process volume group|skipping volume group",
        Unavailable,
        "is its disk attached (`lsblk`, `vgs`)?",
    ),
    _words(
        r"failed to find logical volume|logical volume .* not found|one or more specified logical volume",
        Damaged,
        "somebody removed or renamed it by hand: restart the agent, which reads the volume group again",
    ),
    _words(
        r"can'?t get lock|lock for .* (failed|busy)|resource temporarily",
        Busy,
        "another lvm has the volume group: try again",
    ),
    _words(
        r"not available in kernel|target support missing|device.mapper (driver|kernel)|modprobe",
        Precondition,
        "load the kernel's modules dm-thin-pool and dm-snapshot on the node (`modprobe -a dm-thin-pool dm-snapshot`)",
    ),
    _words(r"permission denied|only (the )?root", Precondition, "run it as root"),
    _words(
        r"(suspend|resume|reload|create|remove) ioctl .*failed: device or resource busy|device or resource busy",
        Busy,
        "a device of the pool is busy: try again",
    ),
    _words(r"cannot allocate memory|out of memory", Busy, "the node has no memory left: try again"),
    _words(r"no space left on device", OutOfSpace, "/run or /etc of the node is full"),
    _words(
        r"input/output error|read failed|write failed|error reading|error writing",
        Unavailable,
        "see the node's kernel log",
    ),
)


def explain(what: str, output: str, rc: int | None = 5) -> DriverError:
    """Return the error for a command of lvm that failed.

    `what`: the command and its pool, e.g. "lvcreate in pool fast". `output`: what it wrote to standard error. `rc`: its exit
    status, None if it was killed at its deadline.
    """
    text = f"{what}: {essence(output) or f'exit status {rc}'}"
    if rc is None:
        return TooSlow(f"{text}: it was killed at its deadline; see the node's kernel log, try again")
    for pattern, explained in _TABLE:
        if pattern.search(text):
            return explained(text)
    return Precondition(text)


def essence(output: str) -> str:
    """Return what lvm says without its warnings, in one line; the warnings if there is nothing else."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    counted = [line for line in lines if not _NOISE.match(line)] or lines
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in counted))[:_LONGEST]

"""Space for images: taken where there is none, copied where it is shared, and nowhere else.

XFS reserves the whole range of one fallocate again, up to 8 GiB at a time, before it looks what of it is allocated already: one
call over an image whose blocks are all there fails as soon as less is free than the image is large. So the extents are asked
first, and each step reserves at most half of what is free: a reservation is a little more than what it is for.

SEEK_HOLE is no way to ask: it calls a hole what was allocated and never written, which most of a new thick image is.
"""

import errno
import os
from collections.abc import Iterable, Iterator

from csi_driver.host import syscalls
from csi_driver.host.fs import extents

STEP = 64 << 20
"""Bytes of one call at most: writers wait, and the caller cannot be killed, during a call."""
BLOCK = 4096
_LEAST = 1 << 20
"""Bytes of a call that is no longer halved if space is short."""
_NEAR = 1 << 20
"""Runs closer than this are worked on in one call: an image in many pieces would take one for each, and each syncs."""

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_UNSHARE_RANGE = 0x40

Run = tuple[int, int]
"""From (inclusive) and to (exclusive), in bytes."""


def missing(fd: int, end: int, start: int = 0) -> int:
    """Bytes between `start` and `end` that have no space; what was never written has, also past the file's end.

    All of them where the file system cannot tell. Raises OSError.
    """
    return _length(_holes(fd, start, end)[0])


def fill(fd: int, end: int, start: int = 0) -> None:
    """Give space to all between `start` and `end` that has none. The file's size stays, and what is shared stays shared.

    Raises OSError ENOSPC, before any is taken where it is plainly not there; what was taken before a later failure stays.
    """
    runs, reported = _holes(fd, start, end)
    if reported:
        _refuse_full(fd, _length(runs))
    within = end <= os.fstat(fd).st_size  # NFS, for one, knows no other mode than 0
    _call(fd, "fallocate", 0 if within else _KEEP_SIZE, _joined(runs))


def own(fd: int, end: int) -> None:
    """Give the first `end` bytes space of their own: what is shared is copied, what has none gets some.

    Writers of the file go on between the steps. Raises OSError ENOSPC as `fill`, EOPNOTSUPP where nothing can be shared.
    """
    shared = list(_runs(fd, 0, end, shared=True))
    _refuse_full(fd, _length(shared) + missing(fd, end))
    _call(fd, "fallocate, unshare", _UNSHARE_RANGE, _joined(shared))
    fill(fd, end)


def renew(fd: int, size: int) -> None:
    """Make the file read as zeroes, never written, with space for all of its `size` bytes: given back and taken again step by step.

    Never more than one step is anybody's meanwhile. Raises OSError ENOSPC where somebody took it; done again, it goes on.
    """
    os.ftruncate(fd, size)  # drops what was allocated past the end
    for at in range(0, size, STEP):
        until = min(at + STEP, size)
        syscalls.call(
            f"fallocate, punch {until - at} bytes at {at}", "fallocate", fd, _PUNCH_HOLE | _KEEP_SIZE, at, until - at
        )
        _call(fd, "fallocate", _KEEP_SIZE, [(at, until)])


def _holes(fd: int, start: int, end: int) -> tuple[list[Run], bool]:
    """The holes, and whether the file system reports extents: tmpfs does not, nor does it reserve again what is there."""
    try:
        return list(_runs(fd, start, end, shared=False)), True
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOTTY}:
            raise
        return [(start, end)] if start < end else [], False


def _runs(fd: int, start: int, end: int, *, shared: bool) -> Iterator[Run]:
    """Of the range, what is shared with other files; or, if not `shared`, what has no space."""
    at = start
    for extent in extents.extents(fd, start=start):
        if extent.logical >= end:
            break
        begin, until = max(extent.logical, start), min(extent.logical + extent.length, end)
        if not shared and begin > at:
            yield at, begin
        if shared and extent.flags & extents.SHARED and until > begin:
            yield begin, until
        at = max(at, until)
    if not shared and at < end:
        yield at, end


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """The same with less calls: what lies between two near ones is allocated and its own, and a call leaves it as it is."""
    current: Run | None = None
    for begin, end in runs:
        if current is not None and begin - current[1] < _NEAR:
            current = current[0], end
            continue
        if current is not None:
            yield current
        current = begin, end
    if current is not None:
        yield current


def _call(fd: int, what: str, mode: int, runs: Iterable[Run]) -> None:
    most = STEP
    for begin, end in runs:
        at = begin
        while at < end:
            length = min(end - at, most, _step(fd))
            try:
                syscalls.call(f"{what} {length} bytes at {at}", "fallocate", fd, mode, at, length)
            except OSError as error:
                # It reserves more than it takes, and how much more is XFS's affair: less at a time needs less.
                if error.errno != errno.ENOSPC or length <= _LEAST:
                    raise
                most = length // 2 // BLOCK * BLOCK
                continue
            at += length


def _step(fd: int) -> int:
    status = os.fstatvfs(fd)
    if not status.f_blocks:  # a tmpfs without a limit
        return STEP
    return max(BLOCK, min(STEP, status.f_bavail * status.f_frsize // 2 // BLOCK * BLOCK))


def _refuse_full(fd: int, needed: int) -> None:
    status = os.fstatvfs(fd)
    free = status.f_bavail * status.f_frsize
    if needed > free and status.f_blocks:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed} bytes are to be taken, {free} are free")


def _length(runs: Iterable[Run]) -> int:
    return sum(end - begin for begin, end in runs)

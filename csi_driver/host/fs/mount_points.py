"""What a mount point was made for, written on the file or directory itself, below what is mounted there.

Of the bind-mounted node of a loop device that has gone, the kernel tells a number, which may be anybody's. A mount that was
taken away by hand leaves no trace at all. An attribute of the mount point says whose it was, for as long as it is there,
through every restart of the agent. `trusted` attributes are those that root alone reads and writes. Where the file system
has none, nothing is known: marks are never needed for what is still mounted.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from csi_driver.host import syscalls

StrPath = str | os.PathLike[str]

_VOLUME = "trusted.tidemark.volume"
_KEPT = "trusted.tidemark.kept"
_OPEN_TREE, _OPEN_TREE_CLONE = 428, 1


def mark(point: StrPath, volume: str, covered: bool = False) -> None:
    """Write on a mount point which volume it is for. `covered`: something is mounted there already."""
    with suppress(OSError), _itself(point, covered) as path:
        os.setxattr(path, _VOLUME, volume.encode(), follow_symlinks=False)


def marked(point: StrPath, covered: bool = False) -> str:
    """Tell which volume a mount point was marked for; empty: none, or nobody knows."""
    with suppress(OSError), _itself(point, covered) as path:
        return os.getxattr(path, _VOLUME, follow_symlinks=False).decode(errors="replace")
    return ""


def keep(point: StrPath) -> bool:
    """Write on a directory or file that it was there before, and is to stay. Tells whether that could be written."""
    with suppress(OSError):
        os.setxattr(point, _KEPT, b"1", follow_symlinks=False)
        return True
    return False


def is_kept(point: StrPath) -> bool:
    """Tell whether it is to stay. For good: whoever asks once more gets the same answer."""
    with suppress(OSError):
        return os.getxattr(point, _KEPT, follow_symlinks=False) == b"1"
    return False


def unmark(point: StrPath) -> None:
    """Take back which volume a mount point is for, once nothing is mounted there any more."""
    with suppress(OSError):
        os.removexattr(point, _VOLUME, follow_symlinks=False)


@contextmanager
def _itself(point: StrPath, covered: bool) -> Iterator[str]:
    """A path of the mount point itself, also where it is covered: in a copy of the mount that it lies in, which has none of the others.

    The copy is nowhere attached, and goes when it is closed. Raises OSError.
    """
    if not covered:
        yield os.fspath(point)
        return
    directory, name = os.path.split(os.fspath(point))
    tree = syscalls.syscall(
        f"look below {os.fspath(point)}",
        _OPEN_TREE,
        syscalls.AT_FDCWD,
        os.fsencode(directory),
        _OPEN_TREE_CLONE | os.O_CLOEXEC,
    )
    try:
        yield f"/proc/self/fd/{tree}/{name}"
    finally:
        os.close(tree)

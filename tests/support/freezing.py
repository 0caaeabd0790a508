"""Freezes as somebody else makes them, and whether a file system is frozen."""

import errno
import fcntl
import os
from pathlib import Path

from csi_driver.host.freeze.state import FIFREEZE, FITHAW


def freeze(point: str | Path) -> None:
    _ioctl(point, FIFREEZE)


def thaw(point: str | Path) -> None:
    _ioctl(point, FITHAW)


def is_frozen(point: str | Path) -> bool:
    """Whether somebody keeps the file system frozen: a second freeze says so; it is undone at once."""
    try:
        freeze(point)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    thaw(point)
    return False


def _ioctl(point: str | Path, request: int) -> None:
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)

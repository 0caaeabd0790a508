"""What is done to one image file: its size, its blocks, and what it takes. All functions block and raise OSError."""

import os
from pathlib import Path

from csi_driver.domain.model import Usage, Volume
from csi_driver.host.fs import allocation, extents, files


def is_empty(image: Path) -> bool:
    """Return whether an image holds no data at all."""
    with image.open("rb") as file:
        return not files.has_data(file.fileno())


def erase(image: Path, volume: Volume) -> None:
    """Make an image empty, durably; a thick one keeps its allocation."""
    with image.open("r+b") as file:
        if volume.thick:
            allocation.renew(file.fileno(), volume.size)
        else:
            files.punch_all(file.fileno())
        os.fsync(file.fileno())


def own_blocks(image: Path, size: int) -> None:
    """Give an image that shares blocks its own for all of `size`, durably. Raises OSError ENOSPC."""
    with image.open("r+b") as file:
        allocation.own(file.fileno(), size)
        os.fsync(file.fileno())


def seal(image: Path) -> int:
    """Take the write bits from a snapshot's image; returns its size in bytes."""
    os.chmod(image, 0o400)
    return image.stat().st_size


def take_size(fd: int, volume: Volume) -> None:
    """Grow an image to its volume's size; a thick one gets blocks of its own for all of it."""
    os.ftruncate(fd, volume.size)
    if volume.thick:
        allocation.own(fd, volume.size)


def usage(image: Path) -> Usage:
    """Count what an image has for itself and what it shares."""
    with image.open("rb") as file:
        found = extents.usage(file.fileno())
    return Usage(found.exclusive_bytes, found.shared_bytes, found.extents)

"""Bytes on devices and in file systems, written and read as programs do."""

import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

from support.files import drop_caches_of

_BLKZEROOUT = 0x127F


def write_device(path: str, at: int, data: bytes, direct: bool, lazy: bool) -> None:
    """Write past the page cache (multiples of 4096 only), or into it with an fsync, or, if `lazy`, without."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT | os.O_DSYNC if direct else 0))
    try:
        with mmap.mmap(-1, len(data)) as aligned:
            aligned.write(data)
            assert os.pwrite(fd, aligned, at) == len(data)
        if not direct and not lazy:
            os.fsync(fd)
    finally:
        os.close(fd)


def zero_device(path: str, at: int, length: int) -> None:
    """Have the device write zeroes, in whatever way it likes (a hole, for a loop device)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", at, length))
        os.fsync(fd)
    finally:
        os.close(fd)


def read_device(path: str) -> bytes:
    """All of a device, from its image rather than from its cache."""
    drop_caches_of(path)
    return Path(path).read_bytes()


def write_file(directory: str, name: str, at: int, data: bytes, lazy: bool) -> None:
    """Write a part of a file, or a new one; durably unless `lazy`."""
    fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        assert os.pwrite(fd, data, at) == len(data)
        if not lazy:
            os.fsync(fd)
    finally:
        os.close(fd)
    if not lazy:
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Make names durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_files(directory: str) -> dict[str, bytes]:
    """Every file at the top of a file system."""
    return {entry.name: Path(entry.path).read_bytes() for entry in os.scandir(directory) if entry.is_file()}


def has_data(image: Path) -> bool:
    """Whether anything was ever written in an image."""
    with image.open("rb") as file:
        try:
            os.lseek(file.fileno(), 0, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
    return True

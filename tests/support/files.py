"""Bytes of files, devices and images, written and read as programs do."""

import os
from pathlib import Path


def write_file(path: str | Path, data: bytes) -> None:
    """Write and fsync file and directory: whoever returns from here was promised the data."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(path: str | Path, offset: int, data: bytes) -> None:
    """Write to a device or an image, durably."""
    write_pieces(path, (offset, data))


def write_pieces(path: str | Path, *pieces: tuple[int, bytes]) -> None:
    """Write pieces, each at its offset, and make them durable together."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, data in pieces:
            assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def allocated(path: str | Path) -> int:
    return os.stat(path).st_blocks * 512


def fragment(path: str, extents: int) -> None:
    """Write every second block of a file, so that it, and the image below it, have about that many extents."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        data = os.urandom(4096)
        for index in range(extents):
            os.pwrite(fd, data, index * 8192)
            if index % 4096 == 4095:
                os.fdatasync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_caches_of(path: str) -> None:
    """Have the next read of a file come from its device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)

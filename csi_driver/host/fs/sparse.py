"""Copies what a file holds, and leaves its holes out."""

import errno
import os
from collections.abc import Callable, Iterator

from csi_driver.host.fs import files

CHUNK = 1 << 20
"""Bytes that are read at once."""
GRAIN = 64 << 10
"""Bytes of zeroes that are left out, at aligned places: an image that was copied without its holes gets them back."""

_ZEROES = bytes(CHUNK)
_NOT_POSSIBLE = {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM}

Progress = Callable[[int, int], None]
"""Called with the offset up to which the source is done, and the bytes written so far."""


class SourceChanged(Exception):
    """The source became shorter while it was read."""


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file of `size` bytes has data: (start, end). A file system that knows no holes has data everywhere."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= size:
            return
        yield start, end
        at = end


def share(source_fd: int, target_fd: int) -> bool:
    """Make an empty file share all data of another one; False where the two file systems cannot. Raises OSError."""
    try:
        files.reflink(source_fd, target_fd)
    except OSError as error:
        if error.errno in _NOT_POSSIBLE:
            return False
        raise
    return True


def copy(source_fd: int, target_fd: int, size: int, progress: Progress = lambda _done, _written: None) -> int:
    """Copy the first `size` bytes of a file to the same places of a target that reads as zeroes; return the bytes written.

    Zeroes are left out, see GRAIN. Raises SourceChanged if the source ends early, and OSError.
    """
    written = 0
    for start, end in data_ranges(source_fd, size):
        at = start
        while at < end:
            # To the next multiple, so that grains stay aligned wherever data begins.
            data = os.pread(source_fd, min(CHUNK - at % CHUNK, end - at), at)
            if not data:
                raise SourceChanged(f"the source ends at {at} bytes, not at {size}")
            for offset, piece in _pieces(data, at):
                _write(target_fd, piece, offset)
                written += len(piece)
            at += len(data)
            progress(at, written)
    # A file that was cut short seems to end with a hole.
    if os.fstat(source_fd).st_size < size:
        raise SourceChanged(f"the source is shorter than {size} bytes now")
    progress(size, written)
    return written


def _pieces(data: bytes, at: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of what is not zero in `data`, which lies at `at`: runs of whole grains."""
    view = memoryview(data)
    if data == _ZEROES[: len(data)]:
        return
    start = position = 0
    while position < len(data):
        end = min(len(data), position + GRAIN - (at + position) % GRAIN)
        if view[position:end] == _ZEROES[: end - position]:
            if start < position:
                yield at + start, view[start:position]
            start = end
        position = end
    if start < len(data):
        yield at + start, view[start:]


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count

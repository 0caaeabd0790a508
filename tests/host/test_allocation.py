"""Space for images: taken where there is none, whatever else is allocated, and however little is free."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.host import syscalls
from csi_driver.host.fs import allocation, extents, files

pytestmark = pytest.mark.root
MIB = 1 << 20
LARGE = 600 * MIB

Opened = Callable[..., int]


def free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def leave(directory: Path, room: int) -> None:
    """Take space from the file system, or give it back, until about so much is free: at most 4 MiB more."""
    with (directory / "filler").open("ab") as file:
        os.ftruncate(file.fileno(), 0)
        while (more := free(directory) - room) > 4 * MIB:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(more - 2 * MIB, 256 * MIB))


def image(fd: int, data: int = 0) -> int:
    """A file of LARGE bytes with space for all of it, and data at its beginning."""
    os.ftruncate(fd, LARGE)
    allocation.fill(fd, LARGE)
    for at in range(0, data, MIB):
        os.pwrite(fd, os.urandom(MIB), at)
    os.fsync(fd)
    return fd


def own(fd: int) -> tuple[int, int]:
    usage = extents.usage(fd)
    return usage.exclusive_bytes, usage.shared_bytes


def punch(fd: int, at: int, length: int) -> None:
    syscalls.call("fallocate, punch", "fallocate", fd, 3, at, length)


def test_what_is_allocated_needs_nothing_more(xfs_dir: Path, opened: Opened) -> None:
    """One fallocate of the whole would be refused: it reserves all of it again. Most of it was never written, which is no hole."""
    fd = image(opened(xfs_dir / "a"), 8 * MIB)
    leave(xfs_dir, 32 * MIB)
    left = free(xfs_dir)
    allocation.fill(fd, LARGE)
    allocation.own(fd, LARGE)
    assert allocation.missing(fd, LARGE) == 0
    assert (own(fd), free(xfs_dir)) == ((LARGE, 0), left)


def test_holes_alone_are_filled_with_hardly_more_than_they_take(xfs_dir: Path, opened: Opened) -> None:
    fd = image(opened(xfs_dir / "a"), 8 * MIB)
    holes = [(4 * MIB, MIB), (100 * MIB, 4096), (100 * MIB + 8192, 4096), (200 * MIB, 150 * MIB), (LARGE - MIB, MIB)]
    for at, length in holes:
        punch(fd, at, length)
    lacking = sum(length for _, length in holes)
    assert allocation.missing(fd, LARGE) == lacking
    assert allocation.missing(fd, 100 * MIB + 4096, 4 * MIB + 4096) == MIB  # the rest of one, and another
    leave(xfs_dir, lacking + 4 * MIB)
    allocation.fill(fd, LARGE)
    assert own(fd) == (LARGE, 0)
    assert os.pread(fd, MIB, 4 * MIB) == bytes(MIB)


def test_a_clone_gets_space_of_its_own_with_hardly_more_than_that(xfs_dir: Path, opened: Opened) -> None:
    """What the origin has allocated and never written is a hole in the clone."""
    a, b = image(opened(xfs_dir / "a"), 40 * MIB), opened(xfs_dir / "b")
    punch(a, 10 * MIB, 4096)
    files.reflink(a, b)
    leave(xfs_dir, LARGE + 16 * MIB)
    allocation.fill(b, LARGE)
    assert own(b) == (LARGE - 40 * MIB + 4096, 40 * MIB - 4096), "filled, and shared as before"
    allocation.own(b, LARGE)
    os.fsync(b)
    assert own(b) == (LARGE, 0)
    assert own(a)[1] == 0
    for at in range(0, 40 * MIB, MIB):
        assert os.pread(b, MIB, at) == os.pread(a, MIB, at)


@pytest.mark.parametrize("take", [allocation.fill, allocation.own])
def test_without_room_none_is_taken(
    xfs_dir: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, take: Callable[[int, int], None]
) -> None:
    fd = opened(xfs_dir / "a")
    os.ftruncate(fd, 1 << 40)
    os.pwrite(fd, b"x" * MIB, MIB)
    os.fsync(fd)
    with pytest.raises(OSError, match=r"No space.* bytes are to be taken") as caught:
        take(fd, 1 << 40)
    assert caught.value.errno == errno.ENOSPC
    assert own(fd) == (MIB, 0)
    # Others take it between the check and the taking: an error, and no loop.
    monkeypatch.setattr(allocation, "_refuse_full", lambda *_: None)
    with pytest.raises(OSError, match="No space"):
        take(fd, 1 << 40)


def test_space_past_the_end(xfs_dir: Path, opened: Opened) -> None:
    """An image grows by one step, once its space is there."""
    fd = opened(xfs_dir / "a")
    os.pwrite(fd, b"x" * MIB, 0)
    os.fsync(fd)
    allocation.fill(fd, 8 * MIB, MIB)
    assert os.fstat(fd).st_size == MIB
    assert allocation.missing(fd, 8 * MIB, MIB) == 0
    assert own(fd) == (8 * MIB, 0)
    os.ftruncate(fd, MIB)
    assert own(fd) == (MIB, 0), "given back"


def test_renewed_it_was_never_written_and_has_its_space(
    xfs_dir: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = image(opened(xfs_dir / "a"), 8 * MIB)
    least = LARGE
    real = syscalls.call

    def call(what: str, function: str, *arguments: object) -> int:
        nonlocal least
        result = real(what, function, *arguments)
        least = min(least, os.fstat(fd).st_blocks * 512)
        return result

    monkeypatch.setattr(syscalls, "call", call)
    allocation.renew(fd, LARGE)
    assert LARGE - allocation.STEP <= least < LARGE
    assert not files.has_data(fd)
    assert own(fd) == (LARGE, 0)
    assert os.fstat(fd).st_size == LARGE


def test_a_file_system_that_tells_no_extents() -> None:
    fd = os.memfd_create("a")
    try:
        os.ftruncate(fd, 80 * MIB)
        for _ in range(2):
            allocation.fill(fd, 80 * MIB)
            assert os.fstat(fd).st_blocks * 512 == 80 * MIB
    finally:
        os.close(fd)

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.host import syscalls
from csi_driver.host.fs import allocation, extents, files

pytestmark = pytest.mark.root
MIB = 1 << 20


Opened = Callable[..., int]


def write(fd: int, size: int) -> int:
    os.pwrite(fd, b"x" * size, 0)
    os.fsync(fd)
    return fd


def test_shared_and_exclusive_bytes(xfs_dir: Path, opened: Opened) -> None:
    a = write(opened(xfs_dir / "a"), MIB)
    assert extents.usage(a) == extents.ExtentUsage(MIB, 0, 1)
    b = opened(xfs_dir / "b")
    files.reflink(a, b)
    for fd in (a, b):
        assert (extents.usage(fd).exclusive_bytes, extents.usage(fd).shared_bytes) == (0, MIB)
    os.pwrite(a, b"y" * 4096, 8192)
    os.fsync(a)  # the other file's own sync would not do: the block moves when it is written back
    for fd in (a, b):  # the origin's block has moved; the clone's old one is its own now
        assert (extents.usage(fd).exclusive_bytes, extents.usage(fd).shared_bytes) == (4096, MIB - 4096)
    os.unlink(xfs_dir / "b")
    os.ftruncate(b, 0)
    deadline = time.monotonic() + 30
    while extents.usage(a).shared_bytes and time.monotonic() < deadline:
        time.sleep(0.05)
    assert extents.usage(a).exclusive_bytes == MIB


def test_a_rewritten_block_has_another_physical_address(xfs_dir: Path, opened: Opened) -> None:
    a = write(opened(xfs_dir / "a"), 3 * 4096)
    b = opened(xfs_dir / "b")
    files.reflink(a, b)
    os.pwrite(a, b"y" * 4096, 4096)

    def blocks(fd: int) -> dict[int, int]:
        return {
            extent.logical + offset: extent.physical + offset
            for extent in extents.extents(fd)
            for offset in range(0, extent.length, 4096)
        }

    before, after = blocks(b), blocks(a)
    assert [offset for offset in before if before[offset] != after[offset]] == [4096]


def test_allocation_counts_written_or_not_and_past_the_end(xfs_dir: Path, opened: Opened) -> None:
    fd = write(opened(xfs_dir / "a"), 4096)
    syscalls.call("fallocate", "fallocate", fd, 1, 0, 4 * MIB)  # keep size
    usage = extents.usage(fd)
    assert usage.exclusive_bytes == 4 * MIB == os.fstat(fd).st_blocks * 512
    assert any(extent.flags & extents.UNWRITTEN for extent in extents.extents(fd))


def test_a_hole_has_no_extents(xfs_dir: Path, opened: Opened) -> None:
    fd = opened(xfs_dir / "a")
    os.ftruncate(fd, MIB)
    assert list(extents.extents(fd)) == []
    assert extents.extent_count(fd) == 0
    assert extents.usage(fd) == extents.ExtentUsage(0, 0, 0)


@pytest.mark.alone  # judges how long other threads wait
def test_more_extents_than_one_slice_holds_without_stopping_other_threads(xfs_dir: Path, opened: Opened) -> None:
    fd = opened(xfs_dir / "a")
    os.ftruncate(fd, 100 * MIB)
    allocation.fill(fd, 100 * MIB)
    for index in range(0, 10_000, 2):  # every second block written: 10,000 extents
        os.pwrite(fd, b"x", index * 4096)
    os.fsync(fd)
    longest, last, running = 0.0, time.monotonic(), True

    def tick() -> None:
        nonlocal longest, last
        while running:
            time.sleep(0.001)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    usage = extents.usage(fd)
    running = False
    thread.join()
    found = list(extents.extents(fd))
    assert usage.extents == len(found) == extents.extent_count(fd) >= 10_000
    assert sum(extent.length for extent in found) == usage.exclusive_bytes == 100 * MIB
    assert all(one.logical + one.length <= two.logical for one, two in itertools.pairwise(found))
    assert found[-1].flags & extents.LAST
    assert longest < 0.25

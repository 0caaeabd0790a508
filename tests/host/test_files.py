import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.host import syscalls
from csi_driver.host.errors import Busy
from csi_driver.host.fs import allocation, extents, files

pytestmark = pytest.mark.root
MIB = 1 << 20


Opened = Callable[..., int]


def test_reflink_shares_and_is_independent(xfs_dir: Path, opened: Opened) -> None:
    a, b = opened(xfs_dir / "a"), opened(xfs_dir / "b")
    os.pwrite(a, b"1" * MIB, 0)
    files.reflink(a, b)
    os.pwrite(a, b"2" * 4096, 0)
    os.fsync(a)
    assert os.pread(b, MIB + 1, 0) == b"1" * MIB
    assert extents.usage(b).shared_bytes == MIB - 4096


def test_reflink_range_and_its_alignment(xfs_dir: Path, opened: Opened) -> None:
    a, b = opened(xfs_dir / "a"), opened(xfs_dir / "b")
    os.pwrite(a, bytes(range(256)) * 64, 0)
    os.ftruncate(b, 4 * 4096)
    files.reflink_range(a, b, 4096, 4096)
    assert os.pread(b, 4096, 4096) == os.pread(a, 4096, 4096)
    assert os.pread(b, 4096, 0) == bytes(4096)
    with pytest.raises(OSError, match="Invalid") as caught:
        files.reflink_range(a, b, 100, 4096)
    assert caught.value.errno == errno.EINVAL


def test_supports_reflink_and_leaves_nothing(xfs_dir: Path) -> None:
    assert files.supports_reflink(xfs_dir)
    assert not files.supports_reflink("/dev/shm")
    assert list(xfs_dir.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        files.supports_reflink(xfs_dir / "missing")


def test_file_system_type(xfs_dir: Path) -> None:
    assert files.file_system_type(xfs_dir) == "xfs"
    assert files.file_system_type("/dev/shm") == "tmpfs"
    assert files.file_system_type("/proc") == "0x9fa0"


def test_write_durably(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_durably(path, b"one")
    files.write_durably(path, b"two", mode=0o400)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o400)
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_durably(tmp_path / "directory", b"three")
    assert sorted(os.listdir(tmp_path)) == ["directory", "record.json"]


def test_read_small_refuses_links_pipes_and_large_files(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"x" * 100)
    assert files.read_small(path) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99") as caught:
        files.read_small(path, limit=99)
    assert caught.value.errno == errno.EFBIG
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("link", errno.ELOOP), ("pipe", errno.EINVAL)):
        with pytest.raises(OSError, match=name) as caught:
            files.read_small(tmp_path / name)
        assert caught.value.errno == code


def test_directories_change_places_in_one_step(xfs_dir: Path) -> None:
    for name in "ab":
        (xfs_dir / name).mkdir()
        (xfs_dir / name / "record.json").write_text(name)
    files.rename_exchange(xfs_dir / "a", xfs_dir / "b")
    assert [(xfs_dir / name / "record.json").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        files.rename_exchange(xfs_dir / "a", xfs_dir / "c")


def test_rename_new_never_replaces(xfs_dir: Path) -> None:
    for name in "ab":
        (xfs_dir / name).mkdir()
    with pytest.raises(FileExistsError):
        files.rename_new(xfs_dir / "a", xfs_dir / "b")
    files.rename_new(xfs_dir / "a", xfs_dir / "c")
    assert sorted(os.listdir(xfs_dir)) == ["b", "c"]


def test_what_counts_as_data(xfs_dir: Path, opened: Opened) -> None:
    fd = opened(xfs_dir / "a")
    assert not files.has_data(fd)
    os.ftruncate(fd, 64 * MIB)
    assert not files.has_data(fd)
    allocation.fill(fd, 64 * MIB)
    assert os.fstat(fd).st_blocks * 512 == 64 * MIB
    assert not files.has_data(fd)
    os.lseek(fd, 123, os.SEEK_SET)
    os.pwrite(fd, b"\0", 63 * MIB)  # a zero that was written is data
    assert files.has_data(fd)
    os.fsync(fd)
    assert files.has_data(fd)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 123
    files.punch_all(fd)
    assert not files.has_data(fd)
    assert (os.fstat(fd).st_blocks, os.fstat(fd).st_size) == (0, 64 * MIB)


def test_punch_all_takes_what_lies_past_the_end_too(xfs_dir: Path, opened: Opened) -> None:
    fd = opened(xfs_dir / "a")
    os.pwrite(fd, b"x" * 4096, 0)
    syscalls.call("fallocate", "fallocate", fd, 1, 0, 8 * MIB)  # keep size
    assert os.fstat(fd).st_blocks * 512 == 8 * MIB
    files.punch_all(fd)
    assert (os.fstat(fd).st_blocks, os.fstat(fd).st_size) == (0, 4096)


def test_syncfs(xfs_dir: Path) -> None:
    fd = os.open(xfs_dir, os.O_RDONLY)
    files.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        files.syncfs(fd)


@pytest.mark.parametrize("name", ["", "lock"])
def test_one_holder_of_the_pool(tmp_path: Path, name: str, spawn: Callable[..., object]) -> None:
    fd = files.lock_pool(tmp_path / name)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(Busy, match="locked by another process"):
        files.lock_pool(tmp_path / name)
    spawn("sh", "-c", "echo ready; exec sleep 60", close_fds=False)
    os.close(fd)
    os.close(files.lock_pool(tmp_path / name))  # the child has not inherited it


def test_the_pool_is_dead_after_a_shutdown(xfs_dir: Path, opened: Opened) -> None:
    fd = opened(xfs_dir / "a")
    os.pwrite(fd, b"x" * 4096, 0)
    os.fsync(fd)
    subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(xfs_dir)], check=True)
    for attempt in (lambda: files.supports_reflink(xfs_dir), lambda: files.fsync_directory(xfs_dir)):
        with pytest.raises(OSError, match="Input/output") as caught:
            attempt()
        assert caught.value.errno == errno.EIO

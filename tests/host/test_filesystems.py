import errno
import itertools
import os
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from csi_driver.host.block import loop, sources
from csi_driver.host.commands import run
from csi_driver.host.errors import CommandError, Unsupported
from csi_driver.host.fs import extents, files, filesystems, mounts
from csi_driver.host.helper import device_jobs

Image = Callable[..., Path]
Opened = Callable[..., int]
MIB = 1 << 20
SMALLEST = {"ext4": 16 * MIB, "xfs": 300 * MIB}


@pytest.mark.root
@pytest.mark.parametrize("fs_type", filesystems.FS_TYPES)
def test_made_mounted_and_grown(image: Image, point: Path, may_grow_ext4: bool, fs_type: str) -> None:
    size = SMALLEST[fs_type]
    path = image(size=size)
    device = loop.attach(path)
    assert filesystems.probe(device.path) == ""
    with pytest.raises(Unsupported, match="neither ext4 nor xfs"):
        filesystems.size_of_file_system(path)
    run(filesystems.mkfs_argv(fs_type, device.path), 30)
    assert filesystems.probe(device.path) == filesystems.probe(path) == fs_type
    assert filesystems.size_of_file_system(path) == filesystems.size_of_file_system(device.path) == size
    mounts.mount(device.path, point, fs_type, filesystems.mount_options(fs_type))
    (point / "file").write_text("here")
    with path.open("r+b") as file:
        file.truncate(2 * size)
    loop.resize(device)
    if fs_type == "ext4" and not may_grow_ext4:
        pytest.skip("growing a mounted ext4 takes CAP_SYS_RESOURCE, which this root has not")
    for _ in range(2):  # the second time there is nothing to do
        run(filesystems.grow_argv(fs_type, device.path, point), 30)
        run(("sync", "--file-system", str(point)), 30)
        assert filesystems.size_of_file_system(point if fs_type == "xfs" else device.path) == 2 * size
    mounts.umount(point)
    assert filesystems.size_of_file_system(device.path) == 2 * size
    mounts.mount(device.path, point, fs_type, filesystems.mount_options(fs_type))
    assert (point / "file").read_text() == "here"


@pytest.mark.root
def test_growths_at_once_end_or_ask_for_another_try(image: Image, point: Path) -> None:
    """A freeze holds growths up, also those of an agent that was killed; its end lets all of them go on at the same moment."""
    device = loop.attach(path := image(size=SMALLEST["xfs"]))
    run(filesystems.mkfs_argv("xfs", device.path), 30)
    mounts.mount(device.path, point, "xfs", filesystems.mount_options("xfs"))

    def grow() -> BlockingIOError | None:
        try:
            device_jobs.grow(sources.image(os.fspath(path), False), os.fspath(point), "xfs")
        except BlockingIOError as error:
            return error
        return None

    refused: list[BlockingIOError] = []
    with ThreadPoolExecutor(8) as pool:
        for size in range(320 * MIB, 640 * MIB, 16 * MIB):
            os.truncate(path, size)
            loop.resize(device)
            run(("fsfreeze", "-f", str(point)), 30)
            try:
                growths = [pool.submit(grow) for _ in range(8)]
                time.sleep(0.2)  # most are in the kernel by then
            finally:
                run(("fsfreeze", "-u", str(point)), 30)
            refused += [error for growth in growths if (error := growth.result())]
            assert filesystems.size_of_file_system(point) == size
            if refused:
                break
    assert refused, "no two growths met: this shows nothing"
    assert {error.errno for error in refused} == {errno.EAGAIN}


@pytest.mark.root
def test_a_blank_ext4_takes_next_to_nothing_and_stays_so(image: Image, point: Path, opened: Opened) -> None:
    path = image(size=8 << 30)
    device = loop.attach(path)
    run(filesystems.mkfs_argv("ext4", device.path), 30)
    mounts.mount(device.path, point, "ext4", ["init_itable=0"])  # the kernel's zeroing thread at full speed
    (point / "file").write_text("here")
    mounts.umount(point)
    assert extents.usage(opened(path)).exclusive_bytes < 8 * MIB
    run(("e2fsck", "-f", "-n", device.path), 60)


@pytest.mark.root
@pytest.mark.parametrize("fs_type", filesystems.FS_TYPES)
def test_features_are_pinned(image: Image, fs_type: str) -> None:
    path = image()
    device = loop.attach(path)
    run(filesystems.mkfs_argv(fs_type, device.path), 30)
    if fs_type == "ext4":
        shown = run(("dumpe2fs", "-h", device.path), 10)
        features = next(line for line in shown.splitlines() if line.startswith("Filesystem features"))
        assert sorted(features.split(":")[1].split()) == sorted(
            "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file "
            "huge_file dir_nlink extra_isize metadata_csum".split()
        )
        assert "Block size:               4096" in shown
        assert "Reserved block count:     0" in shown
    else:
        head = path.read_bytes()[:512]
        sector, version = struct.unpack_from(">H", head, 102)[0], struct.unpack_from(">H", head, 100)[0]
        ro_compat, incompat = struct.unpack_from(">II", head, 212)
        assert (sector, version & 0xF) == (4096, 5)
        assert ro_compat == 0b1101  # finobt, reflink, inobtcount; no rmapbt
        assert incompat == 0b1011  # ftype, sparse inodes, bigtime; no large extent counters


@pytest.mark.root
def test_who_refuses_to_write_over_a_file_system(image: Image) -> None:
    device = loop.attach(image())
    run(filesystems.mkfs_argv("xfs", device.path), 30)
    with pytest.raises(CommandError, match="existing filesystem"):
        run(filesystems.mkfs_argv("xfs", device.path), 30)
    run(filesystems.mkfs_argv("ext4", device.path), 30)  # mke2fs does not: has_data is the guard
    assert filesystems.probe(device.path) == "ext4"


@pytest.mark.root
def test_a_pool_on_an_image_mounts_on_a_device_of_4096_byte_blocks(
    tmp_path: Path, make_pool: Callable[..., Path]
) -> None:
    path = tmp_path / "own.img"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    run(filesystems.pool_mkfs_argv(path), 30)
    assert path.read_bytes()[108:120].rstrip(b"\0") == b"tidemark"
    point = tmp_path / "own"
    point.mkdir()
    device = loop.attach(path)
    try:
        mounts.mount(device.path, point, "xfs")
        assert files.supports_reflink(point)
        mounts.umount(point)
    finally:
        loop.detach(device)


@pytest.mark.parametrize(
    ("offset", "magic", "name"),
    [
        (0, b"LUKS\xba\xbe\0\2", "crypto_LUKS"),
        (65600, b"_BHRfS_M", "btrfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (536, b"LVM2 001", "LVM2_member"),
        (512, b"EFI PART", "gpt"),
        (510, b"\x55\xaa", "dos"),
        (1080, b"\x53\xef", "ext2"),
        (0, b"XFSB", "xfs"),
        (8192, b"XFSB", ""),
    ],
)
def test_probe(tmp_path: Path, offset: int, magic: bytes, name: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(offset) + magic + bytes(4096))
    assert filesystems.probe(path) == name
    path.write_bytes(b"")
    assert filesystems.probe(path) == ""


def test_only_two_types_are_made() -> None:
    for build in (
        lambda: filesystems.mkfs_argv("btrfs", "/dev/loop0"),
        lambda: filesystems.grow_argv("btrfs", "a", "b"),
    ):
        with pytest.raises(Unsupported) as caught:
            build()
        assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ("-i sparse=0|1", ["sparse=1", "ftype=1"]),
        ("-i sparse=0|1,nrext64=0|1", ["sparse=1,nrext64=0", "ftype=1"]),
        ("-m autofsck=0|1,metadir=0|1 -i nrext64=0|1,exchange=0|1 -n parent=0|1", None),
    ],
)
def test_newer_features_are_turned_off_where_they_are_known(
    monkeypatch: pytest.MonkeyPatch, usage: str, words: list[str] | None
) -> None:
    monkeypatch.setattr(filesystems, "_usage_of_mkfs_xfs", lambda: usage)
    argv = filesystems.mkfs_argv("xfs", "/dev/loop0")
    after = dict(itertools.pairwise(argv))
    if words is not None:
        assert [after["-i"], after["-n"]] == words
    else:
        assert after["-m"].endswith("rmapbt=0,autofsck=0,metadir=0")
        assert (after["-i"], after["-n"]) == ("sparse=1,nrext64=0,exchange=0", "ftype=1,parent=0")


def test_an_older_mke2fs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_version_of_mke2fs", lambda: (1, 46))
    assert filesystems.mkfs_argv("ext4", "/dev/loop0")[-2] == "nodiscard,lazy_itable_init=1,lazy_journal_init=1"

"""The image that holds a pool: made once, found again, never formatted when it is not ours."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_host import GIB, MIB, allocated, clean, devices_below, read_at, share, skip_unless_root, write_at
from node_rig import OWNER, PATIENCE, POOL, children

from csi_driver.backends.reflink import ReflinkBackend, ReflinkOptions
from csi_driver.backends.reflink.images import prepare
from csi_driver.domain.errors import Precondition
from csi_driver.host import filesystems, loop, loopctl, mountinfo, mounts
from csi_driver.host.commands import run

SIZE = 400 * MIB


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    skip_unless_root()
    share(tmp_path)
    yield tmp_path
    clean(tmp_path)


async def ready(place: Path, size: int = SIZE, sparse: bool = True, name: str = "pool.img") -> Path:
    async with asyncio.timeout(PATIENCE), children() as agents:
        await prepare(agents, str(place / name), size, sparse, str(place / "pool"))
    return place / name


async def refused(place: Path, why: str) -> None:
    image = place / "pool.img"
    before = (image.read_bytes(), image.stat().st_mtime_ns, image.stat().st_size)
    for _ in range(2):
        with pytest.raises(Precondition, match=why):
            await ready(place)
    assert (image.read_bytes(), image.stat().st_mtime_ns, image.stat().st_size) == before
    assert devices_below(place) == []
    assert mountinfo.at(str(place / "pool")) is None
    assert {entry.name for entry in place.iterdir()} <= {"pool.img", "pool"}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "allocated"])
async def test_made_once_and_adopted(place: Path, sparse: bool) -> None:
    image = await ready(place, sparse=sparse)
    assert image.stat().st_size == SIZE
    assert image.stat().st_mode & 0o777 == 0o600
    assert allocated(image) >= SIZE if not sparse else allocated(image) < SIZE // 4
    shown = mountinfo.at(str(place / "pool"))
    assert shown is not None
    assert shown.fs_type == "xfs"
    uid = run(("blkid", "-o", "value", "-s", "UUID", str(image)), 10)
    (device,) = devices_below(place)
    assert loopctl.sysfs(device.number, "loop/dio") == "1"
    assert loopctl.sysfs(device.number, "queue/logical_block_size") == "4096"
    (place / "pool" / "kept").write_bytes(b"1")
    # Mounted; attached and not mounted; neither.
    for step in range(3):
        await ready(place, sparse=sparse, size=2 * SIZE)
        assert (place / "pool" / "kept").read_bytes() == b"1"
        assert len(devices_below(place)) == 1
        mounts.umount(place / "pool")
        if step:
            loop.detach(devices_below(place)[0])
    assert image.stat().st_size == SIZE
    assert run(("blkid", "-o", "value", "-s", "UUID", str(image)), 10) == uid
    assert {entry.name for entry in place.iterdir()} == {"pool.img", "pool"}


async def test_a_pool_in_an_image_is_a_pool(place: Path) -> None:
    image = await ready(place, GIB)
    async with children() as agents:
        for _ in range(2):
            backend = ReflinkBackend(ReflinkOptions(POOL, OWNER, str(place / "pool"), backing=str(image)), agents)
            await backend.open()
            await backend.close()


async def test_random_bytes_are_not_formatted(place: Path) -> None:
    (place / "pool.img").write_bytes(os.urandom(SIZE // 8))
    await refused(place, r"does not hold an XFS: it is not formatted.*it was not formatted or changed")


@pytest.mark.parametrize("size", [0, 4096, SIZE])
async def test_an_empty_file_is_not_formatted_either(place: Path, size: int) -> None:
    """Somebody may have made it for something else, and a lost disk's image reads as zeroes too."""
    with (place / "pool.img").open("wb") as file:
        file.truncate(size)
    await refused(place, r"does not hold an XFS")


async def test_ext4_is_not_formatted(place: Path) -> None:
    with (place / "pool.img").open("wb") as file:
        file.truncate(SIZE)
    run(("mkfs.ext4", "-q", str(place / "pool.img")), 30)
    await refused(place, r"does not hold an XFS")


@pytest.mark.parametrize("damage", ["truncated", "superblock", "log"])
async def test_a_damaged_xfs_is_not_formatted(place: Path, damage: str) -> None:
    image = await ready(place)
    mounts.umount(place / "pool")
    loop.detach(devices_below(place)[0])
    if damage == "truncated":
        os.truncate(image, SIZE // 2)
    elif damage == "superblock":
        write_at(image, 200, os.urandom(100))
    else:
        words = run(("xfs_db", "-r", "-c", "sb 0", "-c", "p logstart agblocks agblklog", str(image)), 10).split()
        start, per_group, shift = int(words[2]), int(words[5]), int(words[8])
        write_at(image, 4096 * ((start >> shift) * per_group + (start & ((1 << shift) - 1))), os.urandom(1 << 20))
    uid = read_at(image, 32, 16)
    size = image.stat().st_size
    with pytest.raises(Precondition, match=r"cannot be used .*it was not formatted"):
        await ready(place)
    # A mount that fails may have written to the superblock, all by the kernel's rules.
    assert (read_at(image, 0, 4), read_at(image, 32, 16), image.stat().st_size) == (b"XFSB", uid, size)
    assert mountinfo.at(str(place / "pool")) is None
    assert devices_below(place) == []


async def test_a_link_or_a_device_is_refused(place: Path) -> None:
    (place / "elsewhere").write_bytes(b"x" * 4096)
    (place / "pool.img").symlink_to(place / "elsewhere")
    with pytest.raises(Precondition):
        await ready(place)
    assert (place / "elsewhere").read_bytes() == b"x" * 4096
    (place / "pool.img").unlink()
    (place / "pool.img").symlink_to(place / "missing")
    with pytest.raises(Precondition):
        await ready(place)
    assert not (place / "missing").exists()


async def test_a_missing_directory(place: Path) -> None:
    """The disk that should hold it is not mounted: no image on the host's root instead."""
    with pytest.raises(Precondition, match=r"directory does not exist"):
        await ready(place, name="missing/pool.img")
    assert not (place / "missing").exists()


async def test_no_room_for_all_of_it(place: Path) -> None:
    free = os.statvfs(place)
    with pytest.raises(Precondition, match=r"--pool-size \d+Mi or less"):
        await ready(place, size=(free.f_blocks * free.f_frsize // GIB + 10) * GIB, sparse=False)
    assert {entry.name for entry in place.iterdir()} <= {"pool"}


async def test_the_host_keeps_room_for_itself(place: Path) -> None:
    """A node that runs out of space evicts pods: it is not the pool that brings it there."""
    host = place / "host"
    host.mkdir()
    mounts.mount("tmpfs", host, "tmpfs", ["size=1000M"])
    with pytest.raises(Precondition, match=r"less than 15%.*--pool-size (8[45]\d)Mi or less"):
        await ready(place, size=900 * MIB, sparse=False, name="host/pool.img")
    assert list(host.iterdir()) == []
    mounts.umount(host)


async def test_something_else_is_mounted_there(place: Path) -> None:
    (place / "pool").mkdir()
    mounts.mount("tmpfs", place / "pool", "tmpfs")
    with pytest.raises(Precondition, match=r"is taken by a mount of tmpfs"):
        await ready(place)
    mounts.umount(place / "pool")
    await ready(place)


MAKE = """
import os, sys
from csi_driver.host import filesystems, loop, pool_image
path, stop = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), 9)

def after(module, name):
    real = getattr(module, name)
    def run(*args, **kwargs):
        result = real(*args, **kwargs)
        die()
    setattr(module, name, run)

if stop == "attached": after(loop, "attach")
if stop == "formatted": after(filesystems, "run")
if stop == "detached": after(loop, "detach")
if stop == "allocated": after(pool_image.files, "allocate")
if stop == "renamed": after(pool_image.files, "rename_new")
pool_image.make_pool_image(path, 400 << 20, False, "0123456789abcdef")
"""


@pytest.mark.parametrize("stop", ["allocated", "attached", "formatted", "detached", "renamed"])
async def test_killed_while_it_is_made(place: Path, stop: str) -> None:
    """A draft never has the image's name; the next start removes it, with its device, and makes the image."""
    done = subprocess.run([sys.executable, "-c", MAKE, str(place / "pool.img"), stop], check=False, timeout=60)
    assert done.returncode == -9
    left = [entry.name for entry in place.iterdir()]
    assert left == (["pool.img"] if stop == "renamed" else ["pool.img.new-0123456789abcdef"])
    image = await ready(place)
    assert {entry.name for entry in place.iterdir()} == {"pool.img", "pool"}
    assert len(devices_below(place)) == 1
    assert filesystems.probe(image) == "xfs"


async def test_another_draft_in_the_directory_is_left_alone(place: Path) -> None:
    """Only what this driver's own names look like."""
    kept = [place / "pool.img.new-backup", place / "pool.img.new-0123", place / "other.img.new-0123456789abcdef"]
    for path in kept:
        path.touch()
    await ready(place)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("left", [False, True], ids=["nothing", "a-draft"])
async def test_several_make_it_at_the_same_time(place: Path, left: bool) -> None:
    """One image, one device, whoever was first; nobody takes another's draft for one that a crash has left."""
    if left:
        (place / "pool.img.new-0123456789abcdef").touch()
    results = await asyncio.gather(*(ready(place) for _ in range(4)))
    assert set(results) == {place / "pool.img"}
    assert len(devices_below(place)) == 1
    assert {entry.name for entry in place.iterdir()} == {"pool.img", "pool"}

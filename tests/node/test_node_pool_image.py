"""The image that holds a pool: made once, found again, never formatted when it is not ours."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.files import allocated, read_at, write_at
from support.fork_servers import helper_pool
from support.machine import held_open, skip_unless_root
from support.node_rig import OWNER, PATIENCE, POOL
from support.pool_disk import clean, devices_below, make_disk, share
from support.sizes import GIB, MIB

from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import ReflinkBackend
from csi_driver.backends.reflink.pool_image_setup import Prepared, prepare, remove
from csi_driver.domain.errors import Precondition
from csi_driver.host import pool_image, syscalls
from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import filesystems, mountinfo, mounts

SIZE = 400 * MIB


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    skip_unless_root()
    share(tmp_path)
    yield tmp_path
    clean(tmp_path)


async def ready(place: Path, size: int = SIZE, sparse: bool = True, name: str = "pool.img") -> Path:
    await prepared(place, size, sparse, name)
    return place / name


async def prepared(
    place: Path, size: int = SIZE, sparse: bool = True, name: str = "pool.img", **options: bool
) -> Prepared:
    async with asyncio.timeout(PATIENCE), helper_pool() as agents:
        return await prepare(agents, str(place / name), size, sparse, str(place / "pool"), **options)


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


async def test_a_trim_of_the_node_takes_nothing_from_an_allocated_image(place: Path) -> None:
    """`fstrim --all`, by a timer of the node: the room that the pool counts on stays its own, after each kind of start."""
    image = await ready(place, sparse=False)
    for _ in range(3):
        trimmed = subprocess.run(["fstrim", str(place / "pool")], capture_output=True, text=True, check=False)
        assert "not supported" in trimmed.stderr
        assert allocated(image) >= SIZE
        await prepared(place, SIZE, sparse=False)  # adopts the mount; the second time, it attaches and mounts
        run(("umount", str(place / "pool")), 10)
        for device in devices_below(place):
            loop.detach(device)
        await prepared(place, SIZE, sparse=False)


async def test_a_trim_of_the_node_gives_back_what_a_sparse_image_does_not_use(place: Path) -> None:
    image = await ready(place, sparse=True)
    big = place / "pool" / "big"
    big.write_bytes(bytes(1 << 20) * 64)
    os.sync()
    full = allocated(image)
    big.unlink()
    os.sync()
    for _ in range(100):  # XFS frees the blocks of a deleted file a moment later, in the background
        run(("fstrim", str(place / "pool")), 30)
        if allocated(image) <= full - (60 << 20):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{allocated(image)} of {full} bytes are still allocated")


async def test_an_image_with_holes_and_no_size_asked_for_still_gives_space_back(place: Path) -> None:
    await ready(place, sparse=True)
    run(("umount", str(place / "pool")), 10)
    for device in devices_below(place):
        loop.detach(device)
    await prepared(place, SIZE, sparse=False, keep_size=True)
    run(("fstrim", str(place / "pool")), 30)


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
    assert loop_ioctl.sysfs(device.number, "loop/dio") == "1"
    assert loop_ioctl.sysfs(device.number, "queue/logical_block_size") == "4096"
    (place / "pool" / "kept").write_bytes(b"1")
    # Mounted; attached and not mounted; neither.
    for step in range(3):
        assert await prepared(place, SIZE, sparse) == Prepared()
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
    async with helper_pool() as agents:
        for _ in range(2):
            backend = ReflinkBackend(PoolOptions(POOL, OWNER, str(place / "pool"), backing=str(image)), agents)
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
        await ready(place, sparse=False)
    assert {entry.name for entry in place.iterdir()} == {"pool"}, "made for nothing, it does not keep the host's space"
    assert devices_below(place) == []
    mounts.umount(place / "pool")
    await ready(place)


MAKE = """
import os, sys
from csi_driver.host import pool_image
from csi_driver.host.block import loop
from csi_driver.host.fs import filesystems
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
if stop == "allocated": after(pool_image.allocation, "fill")
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


async def test_a_start_that_is_broken_off_leaves_no_draft(place: Path) -> None:
    """Killed while it allocates, the child cannot clean up: whoever started it does."""
    async with asyncio.timeout(PATIENCE), helper_pool() as agents:
        real = agents.run
        begun = asyncio.Event()

        async def run(job: str, seconds: float, **args: Any) -> Any:
            if job != "make_pool_image":
                return await real(job, seconds, **args)
            # What a child has made by then, killed at any moment: a file under the draft's name, attached.
            draft = Path(f"{args['path']}.new-{args['token']}")
            with draft.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, SIZE)
            loop.attach(draft)
            begun.set()
            await asyncio.sleep(600)
            return None

        agents.run = run  # type: ignore[method-assign]
        starting = asyncio.create_task(prepare(agents, str(place / "pool.img"), SIZE, False, str(place / "pool")))
        await begun.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert list(place.iterdir()) == []
        assert devices_below(place) == []


async def test_what_is_in_an_image_keeps_it(place: Path) -> None:
    """Only what was made for nothing is taken away."""
    image = await ready(place)
    async with helper_pool() as agents:
        backend = ReflinkBackend(PoolOptions(POOL, OWNER, str(place / "pool")), agents)
        await backend.open()
        await remove(agents, str(image), str(place / "pool"))
        assert image.exists(), "somebody serves it"
        await backend.close()
        (place / "pool" / "volumes" / "disk.img").touch()
        await remove(agents, str(image), str(place / "pool"))
        assert image.exists()
        (place / "pool" / "volumes" / "disk.img").unlink()
        await remove(agents, str(image), str(place / "pool"))
    assert not image.exists()
    assert devices_below(place) == []


# ---- growth


def pool_size(place: Path) -> int:
    """Bytes of the mounted file system, its log and all."""
    return filesystems.size_of_file_system(place / "pool")


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "allocated"])
async def test_it_grows_while_it_is_in_use(place: Path, sparse: bool) -> None:
    image = await ready(place, sparse=sparse)
    kept = place / "pool" / "kept"
    kept.write_bytes(b"1")
    before = allocated(image)
    with held_open(kept):
        assert await prepared(place, 2 * SIZE, sparse) == Prepared()
        assert image.stat().st_size == pool_size(place) == 2 * SIZE
        assert allocated(image) >= 2 * SIZE if not sparse else allocated(image) < before + SIZE // 4
        assert [loop.size(device) for device in devices_below(place)] == [2 * SIZE]
        assert kept.read_bytes() == b"1"
    # At a start after which nothing was mounted, too.
    mounts.umount(place / "pool")
    loop.detach(devices_below(place)[0])
    await ready(place, 3 * SIZE, sparse)
    assert image.stat().st_size == pool_size(place) == 3 * SIZE
    assert await prepared(place, 4 * SIZE, sparse, keep_size=True) == Prepared()
    assert image.stat().st_size == 3 * SIZE
    assert kept.read_bytes() == b"1"
    assert {entry.name for entry in place.iterdir()} == {"pool.img", "pool"}


async def test_a_size_that_is_no_multiple_of_a_block(place: Path) -> None:
    """20G is none: 4096 does not divide it."""
    image = await ready(place, 500 * 1000 * 1000)
    assert image.stat().st_size == -(-500 * 1000 * 1000 // 4096) * 4096
    assert await prepared(place, 500 * 1000 * 1000) == Prepared()


async def test_it_never_shrinks(place: Path) -> None:
    image = await ready(place, 2 * SIZE)
    mounts.umount(place / "pool")
    loop.detach(devices_below(place)[0])
    before = (image.stat().st_mtime_ns, image.stat().st_size)
    with pytest.raises(Precondition, match=r"has 800 MiB and --pool-size asks for 400 MiB: a pool never shrinks"):
        await ready(place)
    assert (image.stat().st_mtime_ns, image.stat().st_size) == before
    assert devices_below(place) == []


async def test_without_room_it_keeps_its_size(place: Path) -> None:
    """What was taken of the host is given back, and what to ask for is said."""
    host = make_disk(place, GIB, "host")
    image = await ready(place, sparse=False, name="host/pool.img")
    (host.point / "other").write_bytes(b"1")
    before = (allocated(image), host.free())
    with pytest.raises(Precondition, match=r"cannot grow .*less than 15%.*--pool-size (7|8)\d\dMi or less"):
        await ready(place, 900 * MIB, sparse=False, name="host/pool.img")
    assert (image.stat().st_size, pool_size(place)) == (SIZE, SIZE)
    assert (allocated(image), host.free()) == before


async def test_a_growth_that_fails_in_the_middle_gives_back_what_it_took(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(place, sparse=False)
    image = place / "pool.img"
    before = allocated(image)
    real = syscalls.call
    steps = 0

    def call(what: str, *args: object) -> int:
        nonlocal steps
        steps += what.startswith("fallocate")
        if steps > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(what, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(syscalls, "call", call)
    with pytest.raises(OSError, match="No space"):
        pool_image.grow_pool_image(str(image), str(place / "pool"), 2 * SIZE, False)
    monkeypatch.undo()
    assert (image.stat().st_size, pool_size(place)) == (SIZE, SIZE)
    assert allocated(image) < before + MIB
    await ready(place, 2 * SIZE, sparse=False)
    assert pool_size(place) == 2 * SIZE


@pytest.mark.parametrize("asked", [SIZE // 2, 4 * GIB], ids=["smaller", "no room"])
async def test_in_a_pod_it_is_served_as_it_is(place: Path, asked: int) -> None:
    """Whatever the values say now: the pods of the node need their disks."""
    host = make_disk(place, GIB, "host")
    async with asyncio.timeout(PATIENCE), helper_pool() as agents:

        async def start(size: int) -> Prepared:
            image, point = str(host.point / "pool.img"), str(host.point / "pool")
            return await prepare(agents, image, size, False, point, in_container=True)

        assert await start(SIZE) == Prepared(made=True)
        (host.point / "pool" / "kept").write_bytes(b"1")
        for _ in range(2):
            found = await start(asked)
            assert "--pool-size" in found.kept
            assert (host.point / "pool" / "kept").read_bytes() == b"1"
    assert filesystems.size_of_file_system(host.point / "pool") == SIZE


GROW = """
import os, sys
from csi_driver.host import pool_image
from csi_driver.host.block import loop
from csi_driver.host.fs import filesystems
path, point, stop = sys.argv[1:]

def after(module, name):
    real = getattr(module, name)
    def run(*args, **kwargs):
        result = real(*args, **kwargs)
        os.kill(os.getpid(), 9)
    setattr(module, name, run)

if stop == "allocated": after(pool_image.allocation, "fill")
if stop == "lengthened": after(pool_image.os, "ftruncate")
if stop == "resized": after(loop, "resize")
if stop == "grown": after(filesystems, "run")
pool_image.grow_pool_image(path, point, 800 << 20, False)
"""


@pytest.mark.parametrize(
    ("stop", "rebooted"),
    [("allocated", False), ("lengthened", False), ("lengthened", True), ("resized", True), ("grown", False)],
)
async def test_killed_while_it_grows(place: Path, stop: str, rebooted: bool) -> None:
    """The pool is whole at each point, and the next start ends what was begun."""
    image = await ready(place, sparse=False)
    (place / "pool" / "kept").write_bytes(b"1")
    argv = [sys.executable, "-c", GROW, str(image), str(place / "pool"), stop]
    assert subprocess.run(argv, check=False, timeout=60).returncode == -9
    assert image.stat().st_size == (SIZE if stop == "allocated" else 2 * SIZE)
    (place / "pool" / "meanwhile").write_bytes(b"2")
    if rebooted:
        mounts.umount(place / "pool")
        loop.detach(devices_below(place)[0])
    await ready(place, 2 * SIZE, sparse=False)
    assert image.stat().st_size == pool_size(place) == 2 * SIZE
    assert 2 * SIZE <= allocated(image) < 2 * SIZE + MIB
    assert (place / "pool" / "kept").read_bytes() == b"1"
    assert (place / "pool" / "meanwhile").read_bytes() == b"2"
    mounts.umount(place / "pool")
    run(("xfs_repair", "-n", devices_below(place)[0].path), 60)

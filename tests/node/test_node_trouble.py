"""A pool in trouble: full, read-only, gone, dead. An error at once, never a hang, nothing half-made."""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.files import write_file
from support.freezing import is_frozen
from support.node_rig import OWNER, POOL, Rig, mounted
from support.pool_disk import make_disk
from support.sizes import GIB, MIB

from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import ReflinkBackend
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import DriverError, OutOfSpace, Precondition, Unavailable
from csi_driver.host.block import loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.service.pools import Pool


def mutations(rig: Rig, tag: str) -> dict[str, Callable[[], Any]]:
    """Every call that changes the pool, on the objects that `furnished` made."""
    volume, other, snapshot = rig.idle, rig.other, rig.snap  # type: ignore[attr-defined]
    return {
        "create": lambda: rig.volume(f"new-{tag}", "block"),
        "create from snapshot": lambda: rig.volume(f"from-{tag}", source=snapshot, capabilities=(mounted(""),)),
        "create from volume": lambda: rig.volume(f"copy-{tag}", source=volume, capabilities=(mounted(""),)),
        "snapshot": lambda: rig.snapshot(f"s-{tag}", volume),
        "snapshot of a mounted one": lambda: rig.snapshot(f"m-{tag}", other),
        "group": lambda: rig.group(f"g-{tag}", volume, other),
        "expand": lambda: rig.expand(volume, volume.size + 4096),
        "roll back": lambda: rig.roll_back(volume, snapshot, f"r-{tag}"),
        "hold": lambda: rig.rollbacks.hold(str(volume.id), f"h-{tag}"),
        "delete snapshot": lambda: rig.delete(snapshot),
        "delete volume": lambda: rig.delete(volume),
    }


async def furnished(rig: Rig) -> str:
    """An idle volume, its snapshot, and another one that is mounted; returns where."""
    rig.idle, rig.other = await rig.volume("idle"), await rig.volume("mounted")  # type: ignore[attr-defined]
    async with rig.shown(rig.idle) as path:  # type: ignore[attr-defined]
        write_file(f"{path}/data", b"1")
    rig.snap = await rig.snapshot("snap", rig.idle)  # type: ignore[attr-defined]
    target = await rig.show(rig.other)  # type: ignore[attr-defined]
    write_file(f"{target}/data", b"2")
    return target


def tree(rig: Rig) -> list[str]:
    """Everything that can be seen in the pool, and nothing may be half of."""
    root = rig.disk.point
    return sorted(
        f"{path.relative_to(root)}:{path.stat().st_size if path.is_file() else ''}"
        for name in ("volumes", "snapshots", "groups", ".new", ".freeze")
        for path in (root / name).rglob("*")
    )


async def all_refused(rig: Rig, kind: type[Exception] | tuple[type[Exception], ...], seconds: float = 15.0) -> None:
    for name, call in mutations(rig, "refused").items():
        began = time.monotonic()
        with pytest.raises(kind) as refused:
            await call()
        assert time.monotonic() - began < seconds, name
        assert isinstance(refused.value, DriverError), name


async def test_a_pool_below_its_reserve_makes_nothing_and_deletes(rig: Rig) -> None:
    await furnished(rig)
    rig.pool.policy = CapacityPolicy(reserve=1 << 50)
    before = tree(rig)
    for name, call in mutations(rig, "x").items():
        if name in {"roll back", "hold", "expand", "delete snapshot", "delete volume"}:
            continue
        with pytest.raises(OutOfSpace, match="reserve"):
            await call()
    with pytest.raises(OutOfSpace):
        await rig.roll_back(rig.idle, rig.snap, "with safety", safety=True)  # type: ignore[attr-defined]
    assert (await rig.volumes.capacity({}, []))[:2] == (0, 0)
    assert tree(rig) == before
    await rig.delete(rig.snap)  # type: ignore[attr-defined]
    await rig.delete(rig.idle)  # type: ignore[attr-defined]


async def test_a_pool_that_is_truly_full(rig: Rig) -> None:
    """The reserve did not help: whatever does not fit is RESOURCE_EXHAUSTED, nothing is half-made, deleting works."""
    target = await furnished(rig)
    rig.pool.policy = CapacityPolicy(reserve=0)
    filler = rig.disk.point / "filler"
    with filler.open("wb") as file:
        step = 256 * MIB
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
            except OSError:
                step //= 2
    before = tree(rig)
    refused = 0
    for name, call in mutations(rig, "full").items():
        if name.startswith("delete"):
            continue
        began = time.monotonic()
        try:
            await call()
        except OutOfSpace:
            refused += 1
            assert rig.left_inside() == [], name
        assert time.monotonic() - began < 15, name
    assert refused, "the pool was not full"
    assert not is_frozen(target)
    await rig.reopen()
    assert {entry.split(":")[0] for entry in before} <= {entry.split(":")[0] for entry in tree(rig)}
    await rig.delete(rig.idle)  # type: ignore[attr-defined]
    filler.unlink()
    while rig.disk.free() < 200 * MIB:
        await asyncio.sleep(0.05)
    await rig.volume("after", "block")


async def test_a_full_pool_is_opened_with_what_a_crash_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a name in the trash may be had; were the pool refused for that, nothing in it could be deleted."""
    await rig.volume("v")
    (rig.layout.new / "left").mkdir()
    (rig.layout.new / "left" / "disk.img").write_bytes(b"x" * 4096)
    real = os.rename

    def rename(a: Any, b: Any) -> None:
        if Path(b).parent == rig.layout.trash:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    await rig.reopen()
    assert os.listdir(rig.layout.new) == []
    assert [v.name for v in rig.volumes.list()[0]] == ["v"]


async def test_a_pool_that_is_read_only(rig: Rig) -> None:
    await furnished(rig)
    await rig.hide(rig.other)  # type: ignore[attr-defined]
    before = tree(rig)
    # Covered by a read-only mount of itself: the agent has its lock open for writing, so a remount is refused.
    mounts.bind(rig.disk.point, rig.disk.point, read_only=True)
    try:
        await all_refused(rig, Unavailable)
        assert {v.name for v in rig.volumes.list()[0]} == {"idle", "mounted"}
    finally:
        mounts.umount(rig.disk.point)
    assert tree(rig) == before
    await rig.reopen()
    assert await rig.read(rig.snap) == b"1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["volume", "snapshot", "group"])
async def test_a_deletion_that_cannot_be_made_durable_is_not_begun(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """No descriptor is free just then: the object is there as before, and is deleted by the next call."""
    volume = await rig.volume("v")
    made = {"volume": volume, "snapshot": await rig.snapshot("s", volume), "group": await rig.group("g", volume)}[what]
    real = os.open

    def open_(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_DIRECTORY and Path(path).name == f"{what}s":
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        with pytest.raises(DriverError):
            await rig.delete(made)
    assert len(os.listdir(getattr(rig.layout, f"{what}s"))) == 1
    await rig.delete(made)
    assert os.listdir(getattr(rig.layout, f"{what}s")) == []


async def test_a_pool_that_is_gone(rig: Rig) -> None:
    """Unmounted under the agent: UNAVAILABLE for everything, lists included, and no shadow of it in the empty mount point."""
    await furnished(rig)
    await rig.hide(rig.other)  # type: ignore[attr-defined]
    run(("umount", "-l", str(rig.disk.point)), 10)
    rig.leftovers_expected = True
    await all_refused(rig, Unavailable)
    for call in (
        rig.volumes.list,
        rig.snapshots.list,
        lambda: rig.volumes.get(str(rig.idle.id)),  # type: ignore[attr-defined]
        lambda: rig.snapshots.get(str(rig.snap.id)),  # type: ignore[attr-defined]
        lambda: rig.volumes.get("node-1:default:" + "0" * 32),
    ):
        with pytest.raises(Unavailable):
            call()
    with pytest.raises(Unavailable):
        await rig.volumes.capacity({}, [])
    assert os.listdir(rig.disk.point) == []
    with pytest.raises(Unavailable, match=r"is empty and no mount point of its own: if its disk failed to mount"):
        await rig.reopen()
    assert os.listdir(rig.disk.point) == []


async def test_another_pool_in_its_place(rig: Rig, tmp_path: Path) -> None:
    """Another disk is mounted over it: it is not what was opened, whatever it holds."""
    await furnished(rig)
    rig.leftovers_expected = True
    other = make_disk(tmp_path, GIB, "other")
    second = Pool(ReflinkBackend(PoolOptions(POOL, OWNER, str(other.point)), rig.children), CapacityPolicy())
    await second.open()
    await second.backend.close()
    mounts.umount(other.point)
    mounts.mount(other.device.path, rig.disk.point, "xfs")
    with pytest.raises(Unavailable, match="no longer what was opened"):
        rig.volumes.list()
    with pytest.raises(Unavailable, match="no longer what was opened"):
        await rig.delete(rig.idle)  # type: ignore[attr-defined]
    mounts.umount(rig.disk.point)
    assert len(rig.volumes.list()[0]) == 2


@pytest.mark.alone  # no scan of all loop devices works as long as one's file lies on a dead file system
async def test_a_pool_whose_file_system_was_shut_down(rig: Rig) -> None:
    """An error of its disk: every call an error at once, nothing hangs, and the volumes' mounts can be taken away."""
    await furnished(rig)
    rig.leftovers_expected = True
    run(("xfs_io", "-x", "-c", "shutdown", str(rig.disk.point)), 10)
    await all_refused(rig, Unavailable)
    with pytest.raises(Unavailable):
        rig.volumes.list()
    with pytest.raises(Unavailable):
        await rig.volumes.capacity({}, [])
    with pytest.raises(Unavailable):
        await rig.stage(rig.idle)  # type: ignore[attr-defined]
    await rig.close()


@pytest.mark.alone  # no scan of all loop devices works as long as one's file lies on a dead file system
@pytest.mark.parametrize("restarted", [False, True], ids=["same agent", "agent restarted"])
async def test_pods_of_a_dead_pool_can_end(rig: Rig, restarted: bool) -> None:
    """What is mounted is taken away without asking the pool, and asked for again it is fine: a kubelet goes on."""
    volumes = [await rig.volume(kind, kind) for kind in ("ext4", "xfs", "block")]
    targets = [await rig.show(volume) for volume in volumes]
    rig.leftovers_expected = True
    run(("xfs_io", "-x", "-c", "shutdown", str(rig.disk.point)), 10)
    if restarted:
        await rig.close()
        with pytest.raises(Unavailable):
            await rig.open()
    for volume, target in zip(volumes, targets, strict=True):
        with pytest.raises(Precondition, match="still published"):
            await rig.unstage(volume)
        for _ in range(2):
            await rig.unpublish(volume)
            assert not os.path.lexists(target)
        for _ in range(2):
            await rig.unstage(volume)
        assert [m for m in mountinfo.read() if m.point.startswith(rig.staging(volume))] == []
    left = [n for n in loop_ioctl.numbers() if f"{rig.disk.point}/" in (loop_ioctl.sysfs(n, "loop/backing_file") or "")]
    assert left == []
    with pytest.raises(Unavailable):
        await rig.stage(volumes[0])


async def test_a_volume_of_a_dead_pool_is_told_from_others(rig: Rig) -> None:
    volume = await rig.volume("v")
    rig.leftovers_expected = True
    run(("xfs_io", "-x", "-c", "shutdown", str(rig.disk.point)), 10)
    target = rig.target(volume)
    os.makedirs(target)
    mounts.mount("tmpfs", target, "tmpfs")
    with pytest.raises(Precondition, match="not known to be this volume"):
        await rig.unpublish(volume)
    assert mountinfo.at(target) is not None
    mounts.umount(target)
    await rig.unpublish(volume)


@pytest.mark.alone  # no scan of all loop devices works as long as one's file lies on a dead file system
async def test_a_dead_pool_harms_no_other(rig: Rig, tmp_path: Path) -> None:
    """The kernel cannot even say whose devices the dead pool's are; the other pool's volumes work on."""
    disk = make_disk(tmp_path, GIB, "dead")
    dead = Rig(tmp_path / "dead-pods", disk, rig.children)
    await dead.open()
    lost = await dead.volume("lost")
    await dead.show(lost)
    rig.leftovers_expected = True
    run(("xfs_io", "-x", "-c", "shutdown", str(disk.point)), 10)
    with pytest.raises(Unavailable):
        dead.volumes.list()
    try:
        # The same name, so that its device looks like one of the other pool's.
        for name, kind in (("lost", "ext4"), ("v", "xfs")):
            volume = await rig.volume(name, kind)
            target = await rig.show(volume)
            write_file(f"{target}/data", b"1")
            snapshot = await rig.snapshot(f"s-{name}", volume)
            assert await rig.read(snapshot) == b"1"
            await rig.reopen()
            await rig.hide(volume)
            assert rig.now(volume)
            if name == "lost":  # nor does cleaning up after it
                await rig.show(volume)
                await dead.hide(lost)
                assert rig.device(volume) is not None
                assert mountinfo.at(target) is not None
                await rig.hide(volume)
            await rig.delete(volume)
    finally:
        await dead.close()


@pytest.mark.parametrize("moment", ["draft made", "images durable", "draft durable", "published"])
async def test_the_disk_dies_in_the_middle(rig: Rig, moment: str) -> None:
    """What was not acknowledged is there entirely or not at all once the disk is back."""
    volume = await rig.volume("v", "block")
    rig.leftovers_expected = True

    def die(name: str) -> None:
        if name == moment:
            run(("xfs_io", "-x", "-c", "shutdown", str(rig.disk.point)), 10)

    rig.layout.crash_point = die
    with pytest.raises(Unavailable):
        await rig.snapshot("s", volume)
    await rig.close()
    mounts.umount(rig.disk.point)
    mounts.mount(rig.disk.device.path, rig.disk.point, "xfs")
    await rig.open()
    assert os.listdir(rig.layout.new) == []
    assert [v.name for v in rig.volumes.list()[0]] == ["v"]
    snapshot = await rig.snapshot("s", volume)
    assert snapshot.size == volume.size
    assert len(os.listdir(rig.layout.snapshots)) == 1


async def test_a_full_disk_below_a_sparse_pool_image(tmp_path: Path, rig: Rig) -> None:
    """What the host has not got is not promised."""
    await rig.close()
    host = make_disk(tmp_path, 400 * MIB, "host")
    backing = host.point / "pool.img"
    backing.touch()
    rig.options = {"backing": str(backing)}
    await rig.open()
    assert (await rig.pool.account()).space.free <= 400 * MIB
    assert (await rig.pool.account()).space.total > GIB

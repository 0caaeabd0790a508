"""A file system in trouble while it is mounted: nobody else gets it, its snapshots are still made, and everybody is told."""

import asyncio
import os
from pathlib import Path

import pytest
from support.files import write_file
from support.node_rig import Rig, mounted, stage_at_last
from support.sizes import MIB

from csi_driver.domain.errors import Busy, NotMountable, Precondition
from csi_driver.domain.model import SizeRange, Volume
from csi_driver.host.commands import run
from csi_driver.host.fs import condition, mountinfo
from csi_driver.service.health import HealthScanner

CONTINUE = mounted("ext4", "errors=continue")


async def hurt(rig: Rig, volume: Volume) -> None:
    """Let the file system of a staged volume meet an error; the next call finds what the kernel knows then."""
    device = rig.device(volume)
    assert device is not None
    if volume.format == "xfs":
        run(("xfs_io", "-x", "-c", "shutdown", rig.staging(volume)), 10)
        return
    Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error").write_text("1")
    async with asyncio.timeout(30):  # a kernel under errors=continue counts a little later
        while not condition.errors_of_ext4(device.name):
            await asyncio.sleep(0.01)


KINDS = {"ext4": "ReadOnlyAfterError", "xfs": "ShutDown"}


@pytest.mark.parametrize("fs_type", KINDS)
async def test_what_takes_no_more_writes_is_refused_with_the_way_out(rig: Rig, fs_type: str) -> None:
    volume = await rig.volume("v", fs_type)
    target = await rig.show(volume)
    write_file(f"{target}/data", b"kept" * 1024)
    volume = rig.now(volume)
    await hurt(rig, volume)
    mount = mountinfo.at(target)
    assert mount is not None
    for call in (
        rig.publish(volume, "b"),
        rig.publish(volume),  # a kubelet that starts again
        rig.stage(volume),
    ):
        with pytest.raises(
            Precondition, match=r"is refused, since its \w+ .*end every pod .*\(scale its workload to 0\)"
        ):
            await call
    assert not os.path.lexists(rig.target(volume, "b"))
    assert mountinfo.at(rig.staging(volume)) is not None, "what is there stays: somebody may read from it"
    # Everybody who asks is told.
    assert (await rig.nodes.condition(str(volume.id))).kind == KINDS[fs_type]
    stats = (await rig.nodes.stats(str(volume.id), target))[1]
    assert stats.condition is not None
    assert stats.condition.kind == KINDS[fs_type]
    assert stats.total > 0
    assert [(v.name, t.kind) for v, t in rig.context.conditions.all()] == [("v", KINDS[fs_type])]
    assert [node.condition for node in await rig.trees.tree()] == [stats.condition.text]
    # And the way out leads out.
    await rig.hide(volume)
    assert rig.context.conditions.all() == []
    await stage_at_last(rig, volume)
    target = await rig.publish(volume)
    assert Path(target, "data").read_bytes() == b"kept" * 1024
    write_file(f"{target}/more", b"1")
    assert (await rig.nodes.stats(str(volume.id), target))[1].condition is None


async def test_an_ext4_that_goes_on_after_errors_is_refused_too(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(CONTINUE,))
    await rig.stage(volume, CONTINUE)
    await rig.publish(volume, "a", CONTINUE)
    await hurt(rig, volume)
    write_file(f"{rig.target(volume)}/data", b"1")
    for call in (rig.publish(volume, "b", CONTINUE), rig.stage(volume, CONTINUE)):
        with pytest.raises(Precondition, match=r"has met errors \(\d+ by its own count\)"):
            await call
    await rig.expand(volume, 128 * MIB)
    with pytest.raises(Precondition, match=r"growth of .* is refused, since its ext4 has met errors"):
        await rig.nodes.expand(str(volume.id), rig.target(volume), SizeRange(128 * MIB))
    assert rig.context.conditions.all()[0][1].kind == "HasErrors"
    snapshot = await rig.snapshot("s", volume)  # frozen as any other: it can be written
    assert "has met errors" in snapshot.condition


@pytest.mark.parametrize("fs_type", KINDS)
async def test_a_snapshot_of_what_takes_no_more_writes_is_made_and_marked(rig: Rig, fs_type: str) -> None:
    volume, well = await rig.volume("v", fs_type), await rig.volume("well", fs_type)
    target, other = await rig.show(volume), await rig.show(well)
    write_file(f"{target}/data", b"kept" * 1024)
    write_file(f"{other}/data", b"well" * 1024)
    volume = rig.now(volume)
    await hurt(rig, volume)
    snapshot = await rig.snapshot("s", volume)
    assert snapshot.condition
    group = await rig.group("g", volume, well)
    marks = {member.source_id: member.condition for member in group.members}
    assert marks == {str(volume.id): snapshot.condition, str(well.id): ""}
    assert rig.left_inside() == []
    await rig.reopen()
    assert rig.snapshots.get(str(snapshot.id)).condition == snapshot.condition
    assert {node.condition for node in await rig.trees.tree() if node.item.name == "s"} == {snapshot.condition}
    copy = await rig.volume("copy", source=volume, capabilities=(mounted(""),))
    restored = await rig.volume("restored", source=snapshot, capabilities=(mounted(""),))
    for made in (copy, restored):
        staging = await stage_at_last(rig, made)
        assert Path(staging, "data").read_bytes() == b"kept" * 1024
        write_file(f"{staging}/more", b"1")


async def test_a_walk_finds_what_nobody_asks_about(rig: Rig) -> None:
    volume, well = await rig.volume("v"), await rig.volume("well")
    scanner = HealthScanner(rig.context)
    await rig.stage(volume)
    await rig.stage(well)
    await scanner.scan(rig.pool, 0)
    assert rig.context.conditions.all() == []
    await hurt(rig, rig.now(volume))
    await scanner.scan(rig.pool, 0)
    assert [v.name for v, _ in rig.context.conditions.all()] == ["v"]
    await rig.unstage(volume)
    await rig.delete(volume)
    await scanner.scan(rig.pool, 0)
    assert rig.context.conditions.all() == []


async def test_errors_that_a_mount_itself_meets(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its superblock told of none: it is not handed out, and checked."""
    volume = await rig.volume("v")
    await rig.stage(volume)
    await rig.unstage(volume)
    real = condition.errors_of_ext4
    left = [3]
    monkeypatch.setattr(condition, "errors_of_ext4", lambda name: left.pop() if left else real(name))
    with pytest.raises(Busy, match=r"its mount met what cannot be right .*3 by its own count"):
        await rig.stage(volume)
    assert mountinfo.at(rig.staging(volume)) is None
    await stage_at_last(rig, volume)


async def test_an_xfs_that_the_kernel_does_not_mount(rig: Rig) -> None:
    """No check is for it; it is refused with the way out, and mounted as soon as somebody has mended it."""
    volume = await rig.volume("v", "xfs")
    await rig.stage(volume)
    await rig.unstage(volume)
    image = rig.image(volume)
    with image.open("r+b") as file:
        whole = file.read(4096)
        file.seek(208)  # a feature that a checksum covers
        file.write(b"\xff")
    for _ in range(2):
        with pytest.raises(NotMountable, match=r"cannot be mounted: .*restore it with volumeMode Block"):
            await rig.stage(volume)
    assert rig.devices() == []
    assert [t.kind for _, t in rig.context.conditions.all()] == ["Damaged"]
    with image.open("r+b") as file:
        file.write(whole)
    await rig.stage(volume)
    assert rig.context.conditions.all() == []
    assert rig.now(volume).condition is None

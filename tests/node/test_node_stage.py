"""Stage, publish and back: what a pod sees, what may be repeated, and what contradicts what is there."""

import asyncio
import os
from pathlib import Path

import pytest
from support.files import read_at, write_at, write_file
from support.machine import held_open
from support.node_rig import SMALL, Rig, block, capability_of, mounted
from support.sizes import MIB

from csi_driver.domain.errors import AlreadyExists, InUse, InvalidRequest, NotFound, Precondition, Unavailable
from csi_driver.domain.model import AccessMode, SizeRange
from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts

KINDS = ["ext4", "xfs", "block"]
MISSING = "node-1:default:" + "0" * 32


def put(kind: str, path: str, data: bytes) -> None:
    write_at(path, 8192, data) if kind == "block" else write_file(f"{path}/data", data)


def got(kind: str, path: str, size: int) -> bytes:
    return read_at(path, 8192, size) if kind == "block" else Path(path, "data").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_volume_through_its_life_on_a_node(rig: Rig, kind: str) -> None:
    volume = await rig.volume("v", kind)
    staging = await rig.stage(volume)
    target = await rig.publish(volume)
    put(kind, target, b"kept" * 1024)
    device = rig.device(volume)
    assert device is not None
    assert loop_ioctl.sysfs(device.number, "loop/dio") == "1"
    assert loop_ioctl.sysfs(device.number, "queue/logical_block_size") == "4096"
    shown = mountinfo.at(target)
    assert shown is not None
    assert (shown.major, shown.minor) == (
        (device.major, device.minor) if kind != "block" else (shown.major, shown.minor)
    )
    if kind == "block":
        assert os.stat(target).st_rdev == os.makedev(device.major, device.minor)
        assert os.stat(f"{staging}/device").st_rdev == os.makedev(device.major, device.minor)
    else:
        assert shown.fs_type == kind
        assert mountinfo.at(staging) is not None
    await rig.unpublish(volume)
    assert not os.path.lexists(target)
    await rig.unstage(volume)
    assert mountinfo.at(staging) is None
    assert os.listdir(staging) == []
    assert rig.device(volume) is None
    async with rig.shown(volume) as again:
        assert got(kind, again, 4096) == b"kept" * 1024


@pytest.mark.parametrize("kind", KINDS)
async def test_every_call_may_be_repeated(rig: Rig, kind: str) -> None:
    volume = await rig.volume("v", kind)
    for _ in range(3):
        staging = await rig.stage(volume)
    for _ in range(3):
        target = await rig.publish(volume)
    assert len(rig.devices()) == 1
    assert len((await rig.access.use(volume)).paths) == 2
    for _ in range(3):
        await rig.unpublish(volume)
    assert not os.path.lexists(target)
    for _ in range(3):
        await rig.unstage(volume)
    assert rig.devices() == []
    await rig.unstage(volume, staging + "-never-staged")


async def test_a_published_volume_is_not_unstaged(rig: Rig) -> None:
    volume = await rig.volume("v")
    await rig.show(volume)
    with pytest.raises(Precondition, match=r"still published at .*pods/a"):
        await rig.unstage(volume)
    assert mountinfo.at(rig.target(volume)) is not None
    assert mountinfo.at(rig.staging(volume)) is not None


async def test_publishing_needs_a_stage(rig: Rig) -> None:
    volume = await rig.volume("v")
    with pytest.raises(Precondition, match=r"is not staged at"):
        await rig.publish(volume)
    await rig.stage(volume)
    with pytest.raises(Precondition, match=r"staging path .* is missing"):
        await rig.nodes.publish(str(volume.id), "", rig.target(volume), mounted())
    with pytest.raises(Precondition, match=r"is not staged at .*elsewhere"):
        await rig.publish(volume, staging=str(rig.place / "elsewhere"))
    assert not os.path.lexists(rig.target(volume))


async def test_a_volume_is_staged_in_one_place(rig: Rig) -> None:
    volume = await rig.volume("v")
    await rig.stage(volume)
    with pytest.raises(Precondition, match=r"is in use at"):
        await rig.stage(volume, path=rig.staging(volume, "-other"))
    assert mountinfo.at(rig.staging(volume, "-other")) is None


async def test_the_same_staging_path_with_other_facts(rig: Rig) -> None:
    both = (mounted("ext4"), block())
    volume, other = await rig.volume("v", capabilities=both), await rig.volume("w")
    path = await rig.stage(volume, mounted("ext4"))
    with pytest.raises(Precondition, match=r"file system is ext4, not xfs"):
        await rig.stage(volume, mounted("xfs"))
    with pytest.raises(AlreadyExists, match=r"without noatime"):
        await rig.stage(volume, mounted("ext4", "noatime"))
    with pytest.raises(AlreadyExists, match=r"taken by a mount"):
        await rig.stage(volume, block())
    with pytest.raises(AlreadyExists, match=r"taken by a mount"):
        await rig.stage(other, path=path)
    assert rig.device(other) is None
    await rig.stage(volume, mounted("ext4"))


async def test_a_block_stage_is_not_turned_into_a_mount(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(mounted("ext4"), block()))
    path = await rig.stage(volume, block())
    with pytest.raises(AlreadyExists, match=r"staged at .* as a block device"):
        await rig.stage(volume, mounted("ext4"))
    with pytest.raises(Precondition, match=r"it was staged as a block device"):
        await rig.publish(volume, how=mounted("ext4"))
    assert mountinfo.at(path) is None


async def test_a_mount_stage_is_not_published_as_a_block_device(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(mounted("ext4"), block()))
    await rig.stage(volume, mounted("ext4"))
    with pytest.raises(AlreadyExists, match=r"as a file system, not as a block device"):
        await rig.publish(volume, how=block())
    assert not os.path.lexists(rig.target(volume))


async def test_access_that_the_volume_was_not_made_for(rig: Rig) -> None:
    volume = await rig.volume("v")
    with pytest.raises(Precondition, match=r"created for mount access, not for block"):
        await rig.stage(volume, block())
    assert rig.devices() == []


@pytest.mark.parametrize(
    ("fs_type", "flag"), [("ext4", "noatime"), ("xfs", "noatime"), ("ext4", "commit=30"), ("xfs", "swalloc")]
)
async def test_mount_flags_reach_the_mount(rig: Rig, fs_type: str, flag: str) -> None:
    how = mounted(fs_type, flag)
    volume = await rig.volume("v", fs_type, capabilities=(how,))
    shown = mountinfo.at(await rig.stage(volume, how))
    assert shown is not None
    assert flag in (*shown.options, *shown.super_options)
    assert "discard" not in shown.super_options
    await rig.stage(volume, how)


@pytest.mark.parametrize("flag", ["loop", "noatime,exec", 'context="a" b', "remount", "dax", "X-mount.mkdir", "nouuid"])
async def test_a_mount_flag_outside_the_list_is_refused_by_name(rig: Rig, flag: str) -> None:
    volume = await rig.volume("v")
    with pytest.raises(InvalidRequest, match=r"mount flag") as refused:
        await rig.stage(volume, mounted("ext4", flag))
    assert flag.partition("=")[0] in str(refused.value)
    assert rig.devices() == []


async def test_a_flag_that_the_kernel_refuses_leaves_nothing_behind(rig: Rig) -> None:
    volume = await rig.volume("v")
    with pytest.raises(Precondition, match=r"mount failed.* refuses the mount option 'stripe': take it out"):
        await rig.stage(volume, mounted("ext4", "noatime", "stripe=x", "commit=30"))
    assert rig.devices() == []
    assert mountinfo.at(rig.staging(volume)) is None
    await rig.stage(volume)


async def test_staging_an_unknown_volume(rig: Rig) -> None:
    path = str(rig.place / "nowhere")
    for call in (
        rig.nodes.stage(MISSING, path, mounted()),
        rig.nodes.publish(MISSING, path, path, mounted()),
        rig.nodes.stats(MISSING, path),
        rig.nodes.expand(MISSING, path, SizeRange()),
    ):
        with pytest.raises(NotFound):
            await call
    for text in ("node-2:default:" + "0" * 32, "node-1:other:" + "0" * 32):
        with pytest.raises(Unavailable):
            await rig.nodes.stage(text, path, mounted())
        with pytest.raises(Unavailable):
            await rig.nodes.unstage(text, path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/a\0b", "/" + "x" * 4096])
async def test_paths_that_are_not_plain(rig: Rig, path: str) -> None:
    volume = await rig.volume("v")
    for call in (
        rig.nodes.stage(str(volume.id), path, mounted()),
        rig.nodes.unstage(str(volume.id), path),
        rig.nodes.publish(str(volume.id), rig.staging(volume), path, mounted()),
        rig.nodes.unpublish(str(volume.id), path),
    ):
        with pytest.raises(InvalidRequest, match=r"path"):
            await call


@pytest.mark.parametrize("kind", KINDS)
async def test_a_volume_that_is_gone_from_the_pool_is_still_cleaned_up(rig: Rig, kind: str) -> None:
    """Deleted by hand under its mounts: unpublish and unstage must end, or the pod never does."""
    volume = await rig.volume("v", kind)
    target = await rig.show(volume)
    os.rename(rig.image(volume).parent, rig.layout.trash / "by-hand")
    await rig.reopen()
    with pytest.raises(NotFound):
        rig.volumes.get(str(volume.id))
    await rig.unpublish(volume)
    assert not os.path.lexists(target)
    await rig.unstage(volume)
    assert mountinfo.at(rig.staging(volume)) is None
    assert rig.devices() == []


async def test_what_is_not_ours_is_never_unmounted(rig: Rig, tmp_path: Path) -> None:
    volume = await rig.volume("v")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    mounts.mount("tmpfs", foreign, "tmpfs")
    for text in (str(volume.id), MISSING, "not an id"):
        with pytest.raises(Precondition, match=r"unmount it by hand"):
            await rig.nodes.unstage(text, str(foreign))
        with pytest.raises(Precondition, match=r"unmount it by hand"):
            await rig.nodes.unpublish(text, str(foreign))
        with pytest.raises(Precondition, match=r"unmount it by hand"):
            await rig.nodes.unstage(text, str(rig.disk.point))
    assert mountinfo.at(str(foreign)) is not None
    assert mountinfo.at(str(rig.disk.point)) is not None


async def test_another_volumes_place_is_not_taken_away(rig: Rig) -> None:
    volume, other = await rig.volume("v"), await rig.volume("w")
    target = await rig.show(other)
    for name in (str(volume.id), MISSING, "not an id"):
        with pytest.raises(Precondition, match=r"shows .*, not"):
            await rig.nodes.unpublish(name, target)
        with pytest.raises(Precondition, match=r"shows .*, not"):
            await rig.nodes.unstage(name, rig.staging(other))
    assert mountinfo.at(target) is not None
    assert mountinfo.at(rig.staging(other)) is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_stage_leaves_the_device_that_is_staged_there(rig: Rig, kind: str) -> None:
    """A node's bind does not tell whose it was once, so nothing but the refused volume's own is undone."""
    staged, refused = await rig.volume("v", "block"), await rig.volume("w", kind)
    path = await rig.stage(staged)
    with pytest.raises(AlreadyExists, match=r"taken by a mount|as a block device"):
        await rig.stage(refused, path=path)
    assert rig.device(refused) is None
    assert (await rig.access.use(staged)).paths == (f"{path}/device",)
    await rig.publish(staged)


@pytest.mark.parametrize("kind", KINDS)
async def test_directories_reached_through_a_link(rig: Rig, kind: str) -> None:
    """/var/lib/kubelet is often a link; the kernel shows every mount under its real name."""
    real, link = rig.place / "real", rig.place / "link"
    (real / "staging").mkdir(parents=True)
    (real / "pods").mkdir()
    link.symlink_to(real)
    volume = await rig.volume("v", kind)
    staging, target = str(link / "staging"), str(link / "pods" / "t")
    how = capability_of(kind)
    for _ in range(2):
        await rig.nodes.stage(str(volume.id), staging, how)
    for _ in range(2):
        await rig.nodes.publish(str(volume.id), staging, target, how)
    with pytest.raises(AlreadyExists):
        await rig.nodes.publish(str(volume.id), staging, target, how, True)
    assert (await rig.nodes.stats(str(volume.id), target))[1].total
    assert (await rig.nodes.stats(str(volume.id), str(real / "pods" / "t")))[1].total
    await rig.expand(volume, 2 * SMALL[kind])
    if kind != "ext4":
        await rig.nodes.expand(str(volume.id), target, SizeRange())
    with pytest.raises(Precondition, match=r"still published"):
        await rig.nodes.unstage(str(volume.id), staging)
    for _ in range(2):
        await rig.nodes.unpublish(str(volume.id), target)
    assert os.listdir(real / "pods") == []
    for _ in range(2):
        await rig.nodes.unstage(str(volume.id), staging)
    assert rig.devices() == []
    assert os.listdir(real / "staging") == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_link_in_the_last_place_is_not_followed(rig: Rig, kind: str, tmp_path: Path) -> None:
    """A pod may write into its own volume's parent: a link there must not lead a mount onto the host's files."""
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_bytes(b"")
    volume = await rig.volume("v", kind)
    await rig.stage(volume)
    target = rig.target(volume)
    os.symlink(host / "file" if kind == "block" else host, target)
    with pytest.raises((Precondition, AlreadyExists)):
        await rig.publish(volume)
    assert mountinfo.at(str(host)) is None
    assert mountinfo.at(str(host / "file")) is None
    await rig.unpublish(volume)
    assert not os.path.lexists(target)
    assert (host / "file").exists()


async def test_a_slash_at_the_end_is_no_other_path(rig: Rig) -> None:
    how = mounted("ext4", mode=AccessMode.WRITER)
    volume = await rig.volume("v", capabilities=(how,))
    staging, target = rig.staging(volume) + "/", rig.target(volume) + "//"
    for _ in range(2):
        await rig.nodes.stage(str(volume.id), staging, how)
    for _ in range(2):
        await rig.nodes.publish(str(volume.id), staging, target, how)
    await rig.nodes.unpublish(str(volume.id), target)
    await rig.nodes.unstage(str(volume.id), staging)
    assert rig.devices() == []


async def test_a_target_with_data_of_its_own_is_left_alone(rig: Rig) -> None:
    volume = await rig.volume("v")
    target = Path(rig.target(volume))
    target.mkdir()
    (target / "somebody's").write_bytes(b"1")
    with pytest.raises(AlreadyExists, match=r"cannot be removed"):
        await rig.unpublish(volume)
    assert (target / "somebody's").read_bytes() == b"1"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_target_that_exists_already(rig: Rig, kind: str) -> None:
    """Some kubelets make the target; of the wrong kind it is refused."""
    volume = await rig.volume("v", kind)
    await rig.stage(volume)
    right, wrong = Path(rig.target(volume, "right")), Path(rig.target(volume, "wrong"))
    if kind == "block":
        right.touch()
        wrong.mkdir()
    else:
        right.mkdir()
        wrong.touch()
    await rig.publish(volume, "right")
    with pytest.raises(AlreadyExists, match=r"exists and is no"):
        await rig.publish(volume, "wrong")


async def test_stats(rig: Rig) -> None:
    volume, raw = await rig.volume("v", size=256 * MIB), await rig.volume("raw", "block")
    target = await rig.show(volume)
    before = (await rig.nodes.stats(str(volume.id), target))[1]
    write_file(f"{target}/data", b"x" * (8 * MIB))
    after = (await rig.nodes.stats(str(volume.id), target))[1]
    assert 200 * MIB < after.total < 256 * MIB
    assert after.used - before.used == pytest.approx(8 * MIB, abs=MIB)
    assert after.inodes_used - before.inodes_used == 1
    assert after.inodes == after.inodes_used + after.inodes_free
    with pytest.raises(NotFound):
        await rig.nodes.stats(str(volume.id), "some/path")
    with pytest.raises(NotFound):
        await rig.nodes.stats(str(raw.id), target)
    shown = await rig.show(raw)
    found = (await rig.nodes.stats(str(raw.id), shown))[1]
    assert (found.total, found.used, found.inodes) == (raw.size, 0, 0)


async def test_a_file_that_is_open_keeps_the_mount(rig: Rig) -> None:
    volume = await rig.volume("v")
    target = await rig.show(volume)
    write_file(f"{target}/data", b"1")
    with (
        held_open(f"{target}/data") as holder,
        pytest.raises(InUse, match=rf"open files .*\(pid {holder.pid} \(python"),
    ):
        await rig.unpublish(volume)
    assert mountinfo.at(target) is not None
    await rig.unpublish(volume)


async def test_a_staged_volume_survives_a_restart_of_the_agent(rig: Rig) -> None:
    volume, raw = await rig.volume("v"), await rig.volume("raw", "block")
    target, device = await rig.show(volume), await rig.show(raw)
    write_file(f"{target}/data", b"1")
    await rig.reopen()
    assert Path(target, "data").read_bytes() == b"1"
    write_at(device, 0, b"x" * 4096)
    for item in (volume, raw):
        assert len((await rig.access.use(item)).paths) == 2
        await rig.stage(item)
        await rig.publish(item)
    assert len(rig.devices()) == 2


async def test_ten_volumes_at_once(rig: Rig) -> None:
    volumes = await asyncio.gather(*(rig.volume(f"v{i}", KINDS[i % 3], SMALL["xfs"]) for i in range(10)))
    await asyncio.gather(*(rig.show(v) for v in volumes))
    assert len({d.number for d in rig.devices()}) == 10
    for volume in volumes:
        assert loop.find(rig.image(volume)) is not None
    await asyncio.gather(*(rig.hide(v) for v in volumes))
    assert rig.devices() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_publish_that_is_covered_from_above_is_an_error_not_a_hang(rig: Rig, kind: str) -> None:
    """Somebody mounts a disk over a directory above it: no path leads to it any more, though it is mounted."""
    volume = await rig.volume("v", kind)
    target = await rig.show(volume)
    above = Path(target).parent
    run(("mount", "-t", "tmpfs", "cover", str(above)), 10)
    try:
        with pytest.raises(Precondition, match="cannot be reached: something was mounted over a directory above it"):
            await rig.unpublish(volume)
    finally:
        mounts.umount(above)
    await rig.unpublish(volume)
    await rig.unstage(volume)
    assert rig.device(volume) is None

"""What only pools of logical volumes do, in a machine of their own: mounted file systems, checks, what is refused at the start."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest
from contract_rig import OWNER, POOL, RAW_BLOCK, World, piece, read_all
from lvm_rig import GROUP, THIN, sh
from support.files import write_pieces
from support.fork_servers import helper_pool
from support.sizes import MIB

from csi_driver.backends.base import KEPT_SECONDS
from csi_driver.backends.lvm.backend import LvmBackend
from csi_driver.backends.options import PoolOptions
from csi_driver.domain.errors import Busy, Damaged, DriverError, Precondition
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Volume
from csi_driver.host.lvm.tags import pool_tag

EXT4, XFS = (Capability("mount", AccessMode.WRITER, fs_type) for fs_type in ("ext4", "xfs"))
SIZE = 320 * MIB


def names() -> set[str]:
    return set(sh("lvs", "--noheadings", "-o", "lv_name", GROUP).split()) - {THIN}


def write(path: str, text: str) -> None:
    with Path(path, "data").open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: str) -> str:
    return Path(path, "data").read_text(encoding="utf-8")


async def shown(world: World, volume: Volume, how: Capability) -> str:
    await world.stage(volume, how)
    return await world.publish(volume, capability=how)


async def hidden(world: World, volume: Volume) -> None:
    await world.unpublish(volume)
    await world.unstage(volume)


@pytest.mark.parametrize("how", [EXT4, XFS], ids=["ext4", "xfs"])
async def test_a_mounted_volume_from_its_beginning_to_its_end(world: World, how: Capability) -> None:
    v = await world.volume("v", SIZE, capabilities=(how,))
    target = await shown(world, v, how)
    write(target, "first")
    s = await world.snapshot("s", v)
    write(target, "second")
    restored = await world.volume("restored", 0, source=s, capabilities=(how,))
    assert read(await shown(world, restored, how)) == "first"
    before = os.statvfs(target).f_blocks
    grown = await world.expand(v, 2 * SIZE)
    await world.nodes.expand(str(v.id), target, SizeRange())
    assert os.statvfs(target).f_blocks > 1.8 * before
    assert read(target) == "second"
    await world.reopen()
    assert read(target) == "second"
    await hidden(world, grown)
    await hidden(world, restored)
    assert world.backend.attached_devices == 0
    await world.roll_back(grown, s, "back")
    assert read(await shown(world, world.now(v), how)) == "first"
    await hidden(world, world.now(v))
    for volume in (world.now(v), restored):
        await world.volumes.delete(str(volume.id))
    await world.snapshots.delete(str(s.id))
    assert {name[0] for name in names()} <= {"s"}  # a safety snapshot


async def test_a_group_holds_one_moment_of_a_mounted_and_a_raw_volume_in_use(world: World) -> None:
    mounted = await world.volume("mounted", SIZE, capabilities=(EXT4,))
    raw = await world.volume("raw", SIZE)
    target, device = await shown(world, mounted, EXT4), await shown(world, raw, RAW_BLOCK)
    write(target, "one")
    write_pieces(device, piece(0, "a"))
    group = await world.group("g", mounted, raw)
    write(target, "two")
    write_pieces(device, piece(0, "b"))
    copies = [
        await world.volume(f"copy {index}", 0, source=member, capabilities=(how,))
        for index, (member, how) in enumerate(zip(group.members, (EXT4, RAW_BLOCK), strict=True))
    ]
    assert read(await shown(world, copies[0], EXT4)) == "one"
    assert read_all(await shown(world, copies[1], RAW_BLOCK))[:4096] == b"a" * 4096
    assert (read(target), read_all(device)[:4096]) == ("two", b"b" * 4096)
    for volume in (mounted, raw, *copies):
        await hidden(world, volume)
    await world.groups.delete(str(group.id), [str(member.id) for member in group.members])


async def test_what_snapshots_and_volumes_take_is_counted_in_one_pass(world: World) -> None:
    v = await world.volume("v", 16 * MIB)
    await world.write(v, (0, b"x" * MIB))
    s = await world.snapshot("s", v)
    await world.write(v, (0, b"y" * (MIB // 2)))
    assert (await world.backend.usage(s)).exclusive == MIB // 2
    assert (await world.backend.usage(s)).shared == MIB // 2
    assert (await world.backend.usage(v)).exclusive == MIB // 2
    assert await world.backend.freed_together([v, s]) == 3 * MIB // 2


async def test_an_ext4_with_errors_is_checked_on_a_copy_and_what_it_held_is_kept_for_a_while(world: World) -> None:
    v = await world.volume("v", SIZE, capabilities=(EXT4,))
    write(await shown(world, v, EXT4), "kept")
    await hidden(world, v)
    device = await world.backend.access.attach(v)
    sh("debugfs", "-w", "-R", "set_super_value error_count 3", device)
    await world.backend.access.detach(v)
    with pytest.raises(Busy, match="is being checked"):
        await world.stage(v, EXT4)
    for _ in range(600):
        with suppress(Busy):
            await world.stage(world.now(v), EXT4)
            break
        await asyncio.sleep(0.2)
    condition = world.now(v).condition
    assert condition is not None
    assert condition.state == "mended"
    assert read(await world.publish(v, capability=EXT4)) == "kept"
    await hidden(world, world.now(v))
    assert len(names()) == 2
    await world.reopen()
    assert len(names()) == 2
    await world.backend.checks.forget_old(world.clock() + (KEPT_SECONDS + 1) * 10**9)
    for _ in range(600):
        if len(names()) == 1:
            break
        await asyncio.sleep(0.2)
    assert len(names()) == 1


def leave_data_behind() -> None:
    """Fill what is free in the volume group, and give it back."""
    sh("lvcreate", "-q", "-y", "-Wn", "-L", "64m", "-n", "former", GROUP)
    with open(f"/dev/{GROUP}/former", "r+b", buffering=0) as device:
        for _ in range(64):
            device.write(b"secret of a former owner".ljust(MIB, b"."))
        os.fsync(device.fileno())
    sh("lvremove", "-q", "-f", f"{GROUP}/former")


async def test_a_thick_volume_shows_nothing_of_former_owners_and_has_no_snapshots(world: World) -> None:
    leave_data_behind()
    v = await world.volume("v", 16 * MIB, provisioning="thick")
    assert await world.read(v) == bytes(16 * MIB)
    await world.write(v, piece(0, "a"))
    with pytest.raises(Precondition, match="thick"):
        await world.snapshot("s", v)
    async with world.shown(v):
        with pytest.raises(Precondition, match="in use"):
            await world.expand(v, 32 * MIB)
    v = await world.expand(v, 32 * MIB)
    assert await world.read(v) == piece(0, "a")[1] + bytes(32 * MIB - 4096)
    await world.reopen()
    assert world.now(v).size == 32 * MIB
    assert await world.read(v) == piece(0, "a")[1] + bytes(32 * MIB - 4096)
    assert (await world.backend.usage(v)).exclusive == 32 * MIB
    before = (await world.volumes.capacity({"provisioning": "thick"}, []))[0]
    await world.volumes.delete(str(v.id))
    assert (await world.volumes.capacity({"provisioning": "thick"}, []))[0] == before + 32 * MIB


async def refused(path: str, runtime: Path, **changes: str) -> DriverError:
    async with helper_pool() as helpers:
        options = {"name": POOL, "owner": OWNER, "path": path, "runtime_directory": str(runtime)} | changes
        with pytest.raises(DriverError) as caught:
            await LvmBackend(PoolOptions(**options), helpers).open()  # type: ignore[arg-type]
        return caught.value


async def test_what_is_no_pool_of_this_agent_is_refused_and_not_touched(world: World, tmp_path: Path) -> None:
    path = f"{GROUP}/{THIN}"
    await world.volume("v", 16 * MIB)
    before = sh("vgs", "--noheadings", "-o", "vg_tags,vg_seqno", GROUP)
    assert "is another agent running" in str(await refused(path, tmp_path / "run"))
    elsewhere = tmp_path / "elsewhere"
    assert "is pool 'contract' of 'node-1'" in str(await refused(path, elsewhere, owner="node-2"))
    assert "is pool 'contract' of 'node-1'" in str(await refused(path, elsewhere, name="other"))
    assert "has no thin pool 'away'" in str(await refused(f"{GROUP}/away", elsewhere))
    assert "away" in str(await refused("away", elsewhere))
    assert sh("vgs", "--noheadings", "-o", "vg_tags,vg_seqno", GROUP) == before


async def test_a_thin_pool_that_would_hang_or_show_data_of_others_is_refused(world: World, tmp_path: Path) -> None:
    path = f"{GROUP}/{THIN}"
    sh("lvchange", "-q", "--errorwhenfull", "n", path)
    assert "lvchange --errorwhenfull y" in str(await refused(path, tmp_path / "other"))
    sh("lvchange", "-q", "--errorwhenfull", "y", path)
    sh("lvchange", "-q", "-Zn", path)
    assert "lvchange -Zy" in str(await refused(path, tmp_path / "other"))
    sh("lvchange", "-q", "-Zy", path)


async def test_a_pool_that_nobody_owns_yet_is_claimed(lvm_group: None, tmp_path: Path) -> None:
    tag = pool_tag({"format": 1, "uuid": "u-1", "name": POOL, "owner": ""})
    sh("vgchange", "-q", "--addtag", tag, GROUP)
    async with helper_pool() as helpers:
        backend = LvmBackend(PoolOptions(POOL, OWNER, GROUP, runtime_directory=str(tmp_path)), helpers)
        await backend.open()
        await backend.close()
    assert backend.identity.uuid == "u-1"
    assert "is pool 'contract' of 'node-1'" in str(await refused(GROUP, tmp_path, owner="node-2"))
    tags = [tag for tag in sh("vgs", "--noheadings", "-o", "vg_tags", GROUP).strip().split(",") if tag]
    sh("vgchange", "-q", *(word for tag in tags for word in ("--deltag", tag)), GROUP)


async def test_a_record_that_was_taken_away_by_hand_is_named_and_nothing_is_removed(world: World) -> None:
    v = await world.volume("v", 16 * MIB)
    (name,) = names()
    (tag,) = sh("lvs", "--noheadings", "-o", "lv_tags", f"{GROUP}/{name}").split()
    await world.backend.close()
    sh("lvchange", "-q", "--deltag", tag, f"{GROUP}/{name}")
    with pytest.raises(Damaged, match=f"{name} has lost its record"):
        await world.open()
    assert names() == {name}
    sh("lvchange", "-q", "--addtag", tag, f"{GROUP}/{name}")
    await world.open()
    assert world.now(v) == v


async def test_a_draft_is_removed_at_a_start(world: World) -> None:
    v = await world.volume("v", 16 * MIB)
    (name,) = names()
    await world.backend.close()
    draft = f"s-{'0' * 32}.1"
    sh("lvcreate", "-q", "-V", "16m", "-T", f"{GROUP}/{THIN}", "-an", "-n", draft, "--addtag", "tm.draft")
    await world.open()
    for _ in range(600):
        if names() == {name}:
            break
        await asyncio.sleep(0.2)
    assert names() == {name}
    assert world.now(v) == v

"""lvm that is killed, hangs, or finds its volume group changed by somebody else: nothing is wedged, nothing of others is touched."""

import asyncio
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from thin_rig import GROUP, dm_name, field, lv, sh, thin_pool, thin_volume

from csi_driver.backends.lvm.commands import Commands
from csi_driver.domain.errors import Busy, Damaged, InUse, OutOfSpace, Unavailable
from csi_driver.host.dm import ioctl
from csi_driver.host.helper.client import HelperPool
from csi_driver.host.lvm import tags
from csi_driver.host.lvm.reports import dm_uuid

KILLS = int(os.environ.get("TIDEMARK_LVM_KILLS", "12"))
"""Of the test that kills lvm: each takes about a second."""
HASH = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def made() -> Iterator[None]:
    with thin_pool():
        yield


@pytest.fixture
def pool(made: None) -> Iterator[None]:
    """A thin pool without volumes. To make one takes seconds here."""
    yield
    if volumes := [name for name in sh("lvs", "--noheadings", "-o", "lv_name", GROUP).split() if name != "pool"]:
        sh("lvremove", "-q", "-ff", "-y", *map(lv, volumes))


@pytest.fixture
async def commands(pool: None) -> AsyncIterator[Commands]:
    helpers = HelperPool()
    await helpers.start()
    opened = Commands(helpers, GROUP)
    try:
        group = await opened.open()
        assert (group.name, opened.devices) == (GROUP, ("/dev/ubda",))
        yield opened
    finally:
        await opened.close()
        await helpers.stop()


def running_lvm() -> list[int]:
    """Commands of lvm that change something, of this machine."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            if words[:1] and words[0].endswith(b"lvm") and words[1] in (b"lvcreate", b"lvremove", b"lvchange"):
                found.append(int(pid))
    return found


async def lvm_after(seconds: float, number: int) -> int:
    """Send a signal to the lvm that runs after some time, once there is one; its pid, 0 if it had ended."""
    for _ in range(500):
        if running := running_lvm():
            await asyncio.sleep(seconds)
            with suppress(ProcessLookupError):
                os.kill(running[0], number)
                return running[0]
            return 0
        await asyncio.sleep(0.005)
    return 0


def thin_ids_of_kernel() -> set[int]:
    sh("dmsetup", "message", f"{GROUP}-pool-tpool", "0", "reserve_metadata_snap")
    try:
        return {
            int(word)
            for word in sh("thin_ls", "-m", "--no-headers", "-o", "DEV", f"/dev/mapper/{GROUP}-pool_tmeta").split()
        }
    finally:
        sh("dmsetup", "message", f"{GROUP}-pool-tpool", "0", "release_metadata_snap")


def thin_ids_of_lvm() -> set[int]:
    return {int(word) for word in sh("lvs", "--noheadings", "-o", "thin_id", GROUP).split()}


def transactions() -> tuple[int, int]:
    """Of the kernel, and of the volume group."""
    kernel = int(sh("dmsetup", "status", f"{GROUP}-pool-tpool").split()[3])
    return kernel, int(field("pool", "transaction_id"))


def suspended() -> list[str]:
    return [name for name, _, _ in ioctl.names() if ioctl.info(name=name).suspended]


async def test_commands_do_what_they_say_and_reports_are_read(commands: Commands) -> None:
    for name in ("a", "b"):
        await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", name, "--addtag", tags.DRAFT)
    await commands.change("lvcreate", "-s", "-an", "-n", "s", f"{GROUP}/a")
    volumes = {volume.name: volume for volume in await commands.logical_volumes()}
    assert set(volumes) == {"a", "b", "s", "pool"}
    assert (volumes["a"].size, volumes["a"].tags, volumes["s"].origin, volumes["a"].active) == (
        1 << 30,
        (tags.DRAFT,),
        "a",
        False,
    )
    assert {volumes[name].thin_id for name in ("a", "b", "s")} == thin_ids_of_kernel()
    (thin,) = await commands.thin_pools()
    assert (thin.chunk_size, thin.zero, thin.when_full, thin.metadata_size) == (64 << 10, True, "error", 64 << 20)
    group = await commands.volume_group()
    assert (group.area_size >= 64 << 20, group.area_size // 2 > group.area_free > 0) == (True, True)
    assert [volume.name for volume in await commands.physical_volumes()] == ["/dev/ubda"]
    await asyncio.gather(*(commands.remove(name) for name in ("a", "b", "s", "never-was")))
    assert [volume.name for volume in await commands.logical_volumes()] == ["pool"]
    with pytest.raises(OutOfSpace, match="pool grow"):
        await commands.change("lvcreate", "-L", "100g", "-an", "-n", "thick", GROUP)


async def test_the_uuid_of_a_device_is_that_of_its_logical_volume(commands: Commands) -> None:
    thin_volume("a-b")
    (volume,) = await commands.logical_volumes("a-b")
    assert ioctl.info(name=dm_name("a-b")).uuid == dm_uuid(commands.vg_uuid, volume.uuid)
    assert volume.active
    with open(f"/dev/{GROUP}/a-b", "rb"), pytest.raises(InUse, match="stop what uses it"):
        await commands.remove("a-b")


async def test_an_lvm_that_hangs_is_killed_at_its_deadline_and_the_pool_goes_on(commands: Commands) -> None:
    commands._change_seconds = 4.0  # 120 s otherwise
    hanging = asyncio.create_task(commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "a"))
    assert await lvm_after(0.0, signal.SIGSTOP)
    with pytest.raises(Busy, match="killed"):
        await hanging
    assert commands.killed_total == 1
    commands._change_seconds = 60.0
    for _ in range(60):  # its helper may take a moment to end
        if not commands.hung:
            break
        await asyncio.sleep(0.1)
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "b")
    assert thin_ids_of_kernel() == thin_ids_of_lvm()


@pytest.mark.timeout(120 + 10 * KILLS)
async def test_lvm_killed_at_random_leaves_no_orphan_and_no_wedged_pool(commands: Commands) -> None:
    """SIGKILL at random moments of what the driver runs: volumes and snapshots that are not active are made and removed."""
    dice = random.Random(int(os.environ.get("TIDEMARK_LVM_SEED", "14")))
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "origin")
    killed = at = 0
    while killed < KILLS:
        at += 1
        names = [volume.name for volume in await commands.logical_volumes() if re.fullmatch(r"[vs]\d+", volume.name)]
        steps: list[Callable[[], object]] = [
            lambda: commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", f"v{at}"),  # noqa: B023
            lambda: commands.change("lvcreate", "-s", "-an", "-ky", "-n", f"s{at}", f"{GROUP}/origin"),  # noqa: B023
        ]
        if names:
            steps.append(lambda: commands.remove(dice.choice(names)))  # noqa: B023
        step = asyncio.ensure_future(dice.choice(steps)())  # type: ignore[arg-type]
        await lvm_after(dice.uniform(0, 0.8), signal.SIGKILL)
        try:
            await step
        except Busy:
            killed += 1
            assert suspended() == []
        for _ in range(100):
            if not commands.hung:
                break
            await asyncio.sleep(0.1)
    assert commands.killed_total == killed
    # One change more, which also sends what a killed one had left to be sent.
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "last")
    assert thin_ids_of_kernel() == thin_ids_of_lvm()
    kernel, group = transactions()
    assert kernel == group
    volumes = [volume.name for volume in await commands.logical_volumes() if volume.name != "pool"]
    await asyncio.gather(*(commands.remove(name) for name in volumes))
    assert thin_ids_of_kernel() == set()


async def test_a_thin_device_that_a_killed_lvm_had_made_and_not_counted_wedges_nothing(commands: Commands) -> None:
    """Killed between two steps of its own, lvm leaves a pool that refuses everything: once in some 40 kills, so it is made here."""
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "a")
    ours = thin_ids_of_lvm()
    sh("dmsetup", "message", f"{GROUP}-pool-tpool", "0", f"create_snap {max(ours) + 1} {max(ours)}")
    await commands.change("lvcreate", "-s", "-an", "-n", "s", f"{GROUP}/a")
    assert commands.healed_total == 1
    assert thin_ids_of_kernel() == thin_ids_of_lvm()
    kernel, group = transactions()
    assert kernel == group


async def test_a_thin_device_that_the_volume_group_has_lost_is_not_removed(commands: Commands) -> None:
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "a")
    lost = max(thin_ids_of_lvm()) + 2
    sh("dmsetup", "message", f"{GROUP}-pool-tpool", "0", f"create_thin {lost}")
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "b")
    try:
        with pytest.raises(Unavailable, match=r"needs repair.*may hold data"):
            await commands.change("lvcreate", "-s", "-an", "-n", "s", f"{GROUP}/a")
        assert lost in thin_ids_of_kernel()
        assert commands.healed_total == 0
    finally:
        sh("dmsetup", "message", f"{GROUP}-pool-tpool", "0", f"delete {lost}")


async def test_what_a_killed_lvm_left_suspended_is_resumed_and_nobody_else_s(commands: Commands) -> None:
    thin_volume("ours")
    sh("dmsetup", "create", "theirs", "--uuid", "LVM-somebody", "--table", "0 2048 linear /dev/ubdb 0")
    try:
        for name in (dm_name("ours"), f"{GROUP}-pool-tpool", "theirs"):
            ioctl.suspend(ioctl.info(name=name).uuid, lockfs=False)
        assert len(suspended()) == 3
        change = asyncio.create_task(commands.change("lvchange", "--addtag", "x", f"{GROUP}/ours"))
        await lvm_after(0.0, signal.SIGKILL)
        with suppress(Busy):
            await change
        if commands.killed_total == 0:
            pytest.fail("lvm had ended before it could be killed")
        assert suspended() == ["theirs"]
        Path(f"/dev/{GROUP}/ours").write_bytes(b"goes on")
    finally:
        for name in suspended():
            ioctl.resume(ioctl.info(name=name).uuid)
        sh("dmsetup", "remove", "--retry", "theirs")


async def test_a_device_that_was_suspended_before_the_start_is_resumed_at_the_start(pool: None) -> None:
    thin_volume("ours")
    ioctl.suspend(ioctl.info(name=dm_name("ours")).uuid, lockfs=False)
    helpers = HelperPool()
    await helpers.start()
    try:
        await Commands(helpers, GROUP).open()
        assert suspended() == []
    finally:
        await helpers.stop()


async def test_a_volume_group_that_is_edited_behind_our_back_is_an_error_that_says_so(commands: Commands) -> None:
    for name in ("a", "b"):
        await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", name)
    sh("lvremove", "-q", "-y", lv("a"))
    sh("lvrename", "-q", GROUP, "b", "c")
    sh("lvcreate", "-q", "-y", "-V", "1g", "-T", lv("pool"), "-an", "-n", "theirs")
    for call in (commands.logical_volumes("a"), commands.change("lvchange", "--addtag", "x", f"{GROUP}/b")):
        with pytest.raises(Damaged, match="by hand"):
            await call
    assert {volume.name for volume in await commands.logical_volumes()} == {"pool", "c", "theirs"}
    sh("vgrename", "-q", GROUP, "renamed")
    try:
        for call in (commands.logical_volumes(), commands.change("lvchange", "--addtag", "x", f"{GROUP}/c")):
            with pytest.raises(Unavailable, match=GROUP):
                await call
    finally:
        sh("vgrename", "-q", "renamed", GROUP)
    await commands.change("lvchange", "--addtag", "x", f"{GROUP}/c")


async def test_records_lie_in_tags_and_what_is_edited_by_hand_is_named(commands: Commands) -> None:
    record = random.Random(1).randbytes(2000)  # three tags of the longest kind
    written = tags.to_tags(record, "volume", HASH, 7)
    assert max(map(len, written)) > 950
    name = f"v-{HASH}.7"
    await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", name, *tags.additions(written))
    (volume,) = await commands.logical_volumes(name)
    assert tags.from_tags(volume.tags, name) == ("volume", HASH, 7, record)
    newer = tags.to_tags(b"newer", "volume", HASH, 7)
    await commands.change("lvchange", *tags.changes(written, newer), f"{GROUP}/{name}")
    (volume,) = await commands.logical_volumes(name)
    assert volume.tags == tuple(newer)

    sh("lvchange", "-q", "--addtag", "backup=weekly", lv(name))
    (volume,) = await commands.logical_volumes(name)
    found = tags.from_tags(volume.tags, lv(name))
    assert found is not None
    assert found.record == b"newer"
    for change in (["--addtag", "tm.v.by-hand=1"], ["--deltag", "tm.v.by-hand=1", *tags.changes(newer, written[:2])]):
        sh("lvchange", "-q", *change, lv(name))
        (volume,) = await commands.logical_volumes(name)
        with pytest.raises(Damaged, match=re.escape(lv(name))):
            tags.from_tags(volume.tags, lv(name))
    await commands.change("vgchange", *tags.additions(tags.to_tags(record * 8, "group", HASH, 7)), GROUP)
    assert [item.record for item in tags.records_of((await commands.volume_group()).tags)] == [record * 8]


async def test_a_disk_that_another_process_added_is_found(commands: Commands) -> None:
    config = 'devices { filter=["a|/dev/ubd|","r|.*|"] global_filter=["a|/dev/ubd|","r|.*|"] }'
    sh("pvcreate", "--config", config, "-q", "--metadatasize", "64m", "/dev/ubdb")
    try:
        sh("vgextend", "--config", config, "-q", GROUP, "/dev/ubdb")
        await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "a")
        assert commands.devices == ("/dev/ubda", "/dev/ubdb")
        with Path("/dev/ubdb").open("r+b") as disk:  # it is taken away again: its label
            label = disk.read(4096)
            disk.seek(0)
            disk.write(bytes(4096))
        try:
            with pytest.raises(Unavailable, match=r"away.*Do not run vgreduce"):
                await commands.change("lvcreate", "-V", "1g", "-T", f"{GROUP}/pool", "-an", "-n", "b")
        finally:
            Path("/dev/ubdb").write_bytes(label)
    finally:
        sh("vgreduce", "--config", config, "-q", GROUP, "/dev/ubdb", check=False)
        sh("pvremove", "--config", config, "-q", "-y", "-ff", "/dev/ubdb", check=False)

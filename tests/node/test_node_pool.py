"""Whose pool it is, when one is made, what contradicts itself, and what a crash left frozen."""

import asyncio
import errno
import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.files import write_file
from support.fork_servers import helper_pool
from support.freezing import freeze, is_frozen, thaw
from support.machine import process, skip_unless_root
from support.node_rig import OWNER, PATIENCE, POOL, Rig
from support.pool_disk import Disk, clean, make_disk, share
from support.sizes import GIB, MIB

from csi_driver.backends.base import PoolContents
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import ReflinkBackend, pool_reader
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import Damaged, Precondition, Unavailable
from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.freeze import journal
from csi_driver.host.fs import mounts
from csi_driver.host.helper.client import HelperPool
from csi_driver.service.pools import Pool

# ---- whose it is -------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Any:
    skip_unless_root()
    share(tmp_path)
    yield tmp_path
    clean(tmp_path)


@pytest.fixture
def disk(place: Path) -> Disk:
    return make_disk(place, GIB)


async def open_pool(
    children_: HelperPool,
    path: Path,
    name: str = POOL,
    owner: str = OWNER,
    init: bool = False,
    in_container: bool = False,
) -> ReflinkBackend:
    backend = ReflinkBackend(PoolOptions(name, owner, str(path), init=init, in_container=in_container), children_)
    async with asyncio.timeout(PATIENCE):
        try:
            await backend.open()
        except BaseException:
            await backend.close()
            raise
    return backend


async def test_a_pool_is_made_once_and_known_again(disk: Disk) -> None:
    async with helper_pool() as agents:
        first = await open_pool(agents, disk.point)
        uid = first.identity.uuid
        await first.close()
        before = (disk.point / "pool.json").read_bytes()
        again = await open_pool(agents, disk.point)
        assert again.identity.uuid == uid
        await again.close()
    assert (disk.point / "pool.json").read_bytes() == before
    found = json.loads(before)
    assert (found["format"], found["name"], found["owner"]) == (1, POOL, OWNER)
    assert str(uuid.UUID(found["uuid"])) == uid


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "other"}, r"is pool 'other' of 'node-1', not 'default' of 'node-1'.*--pool as it was made"),
        ({"owner": "node-2"}, r"of 'node-2', not 'default' of 'node-1'"),
        ({"format": 2}, r"has format 2, this driver knows 1: use a newer driver"),
        ({"format": "x"}, r"cannot be read"),
        ({"format": 0}, r"cannot be read"),
        ({"format": True}, r"cannot be read"),
        ({"uuid": None, "name": None}, r"is pool None"),
    ],
)
async def test_another_identity_is_refused(disk: Disk, change: dict[str, object], why: str) -> None:
    async with helper_pool() as agents:
        await (await open_pool(agents, disk.point)).close()
        path = disk.point / "pool.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
        before = path.read_bytes()
        with pytest.raises(Precondition, match=why):
            await open_pool(agents, disk.point)
        assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
async def test_a_damaged_identity_is_refused_and_kept(disk: Disk, text: str) -> None:
    async with helper_pool() as agents:
        await (await open_pool(agents, disk.point)).close()
        (disk.point / "pool.json").write_text(text)
        with pytest.raises(Precondition, match=r"pool.json cannot be read"):
            await open_pool(agents, disk.point)
        assert (disk.point / "pool.json").read_text() == text


async def test_an_empty_directory_that_is_no_mount_point(disk: Disk) -> None:
    """A disk that failed to mount must not get a shadow pool: only where that was said."""
    inside = disk.point / "inside"
    inside.mkdir()
    async with helper_pool() as agents:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"no mount point of its own.*--pool-init.*--pool-image"):
                await open_pool(agents, inside)
            assert os.listdir(inside) == []
        made = await open_pool(agents, inside, init=True)
        await made.close()
        await (await open_pool(agents, inside)).close()


async def test_a_directory_of_the_host_whose_disk_failed_to_mount(disk: Disk, place: Path) -> None:
    """In a pod it is a mount point all the same: of a part of the host's root. The disk, mounted late, shows through."""
    host, seen = disk.point / "srv", place / "seen"
    for directory in (host, seen):
        directory.mkdir()
    mounts.bind(host, seen, read_only=False)
    late = make_disk(place, GIB, "late")
    async with helper_pool() as agents:
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"no mount point of its own.*poolInit"):
                await open_pool(agents, seen, in_container=True)
            assert os.listdir(host) == []
        mounts.mount(late.device.path, host, "xfs")
        await (await open_pool(agents, seen, in_container=True)).close()
        assert "pool.json" in os.listdir(late.point)
        mounts.umount(host)
        with pytest.raises(Unavailable, match="no mount point of its own"):
            await open_pool(agents, seen, in_container=True)
        await (await open_pool(agents, seen, init=True, in_container=True)).close()
    assert "pool.json" in os.listdir(host)


@pytest.mark.parametrize("init", [False, True])
async def test_a_directory_that_is_not_empty(disk: Disk, init: bool) -> None:
    (disk.point / "holiday.jpg").touch()
    async with helper_pool() as agents:
        with pytest.raises(Precondition, match=r"no pool.json and is not empty \('holiday.jpg', ...\)"):
            await open_pool(agents, disk.point, init=init)
    assert os.listdir(disk.point) == ["holiday.jpg"]


async def test_a_directory_that_is_not_there(disk: Disk) -> None:
    async with helper_pool() as agents:
        with pytest.raises(Unavailable, match=r"is not a directory: mount the pool's disk"):
            await open_pool(agents, disk.point / "missing", init=True)
    assert os.listdir(disk.point) == []


async def test_ext4_is_refused_with_the_way_out(place: Path) -> None:
    image, point = place / "ext4.img", place / "ext4"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    device = loop.attach(image)
    run(("mkfs.ext4", "-q", device.path), 30)
    mounts.mount(device.path, point, "ext4")
    async with helper_pool() as agents:
        with pytest.raises(
            Precondition, match=r"is on ext4 and cannot share blocks.*XFS.*--pool-image FILE --pool-size"
        ):
            await open_pool(agents, point, init=True)
    assert os.listdir(point) == ["lost+found"]


async def test_xfs_without_reflink_is_refused(place: Path) -> None:
    image, point = place / "plain.img", place / "plain"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    device = loop.attach(image)
    run(("mkfs.xfs", "-q", "-m", "reflink=0", device.path), 30)
    mounts.mount(device.path, point, "xfs")
    async with helper_pool() as agents:
        with pytest.raises(Precondition, match=r"an XFS made without reflink"):
            await open_pool(agents, point)
    assert os.listdir(point) == []


@pytest.mark.parametrize("kind", ["btrfs", "tmpfs", "overlay", "nfs"])
async def test_other_file_systems_are_refused(disk: Disk, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from csi_driver.host.fs import files

    monkeypatch.setattr(files, "file_system_type", lambda path: kind)
    async with helper_pool() as agents:
        with pytest.raises(Precondition, match=f"on {kind}.*--pool-image"):
            await open_pool(agents, disk.point)
    assert os.listdir(disk.point) == []


async def test_one_agent_owns_a_pool(disk: Disk) -> None:
    async with helper_pool() as agents:
        first = await open_pool(agents, disk.point)
        with pytest.raises(Precondition, match=r"cannot be locked.*another agent"):
            await open_pool(agents, disk.point)
        await first.close()
        await (await open_pool(agents, disk.point)).close()


@pytest.mark.parametrize("failing", [(pool_reader, "read"), (journal, "read_entries")], ids=["records", "freezes"])
async def test_a_pool_whose_disk_failed_while_it_was_opened_opens_later(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, failing: tuple[object, str]
) -> None:
    """The agent looks again every few seconds, with the same backend: its own lock must not be in its way."""
    async with helper_pool() as agents:
        backend = ReflinkBackend(PoolOptions(POOL, OWNER, str(disk.point)), agents)
        pool = Pool(backend, CapacityPolicy())

        def fail(*_: object) -> PoolContents:
            raise OSError(errno.EIO, "the disk does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(*failing, fail)
            with pytest.raises(Unavailable, match="does not answer"):
                await pool.open()
        await pool.open()
        assert pool.ensure_available() is pool
        await backend.close()


AGENT = """
import asyncio, sys
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink import ReflinkBackend
from csi_driver.host.helper.client import HelperPool

async def main():
    children = HelperPool()
    await children.start()
    backend = ReflinkBackend(PoolOptions("default", "node-1", sys.argv[1]), children)
    await backend.open()
    hanging = asyncio.create_task(children.run("ping", 600, pause=600))
    child = await children.run("ping", 10)
    while len(children._jobs) > 1 or not all(run.pid for run in children._jobs.values()):
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    print(children.server_pid, *[run.pid for run in children._jobs.values()], flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_lock_ends_with_its_agent_whatever_its_children_do(disk: Disk) -> None:
    """Killed while a child of it hangs: the child must not keep the pool from the next agent."""
    with process(sys.executable, "-c", AGENT, str(disk.point)) as agent:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        assert len(pids) >= 2
        lock = disk.point / ".lock"
        for pid in pids:
            held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert str(lock) not in held
        async with helper_pool() as agents:
            with pytest.raises(Precondition, match=r"another agent"):
                await open_pool(agents, disk.point)
            os.kill(pids[0], 19)  # the fork server stands still, and its child with it
            os.kill(pids[-1], 19)
            agent.kill()
            agent.wait()
            try:
                await (await open_pool(agents, disk.point)).close()
            finally:
                for pid in pids:
                    with suppress(ProcessLookupError):  # what is killed ends though it stands still
                        os.kill(pid, 18)
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            break
        await asyncio.sleep(0.1)


async def test_two_agents_make_a_pool_at_the_same_time(disk: Disk) -> None:
    """One of them gets it, and what it knows of the pool stays true."""
    code = AGENT.replace('print("ready", flush=True)', 'print("ready", backend.identity.uuid, flush=True)')
    agents = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(disk.point)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(4)
    ]
    try:
        said = [agent.stdout.readline().split() for agent in agents if agent.stdout]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
            if agent.stdout:
                agent.stdout.close()
    winners = [words[1] for words in said if words]
    assert len(winners) == 1
    assert json.loads((disk.point / "pool.json").read_bytes())["uuid"] == winners[0]


async def test_while_one_agent_makes_a_pool_another_is_refused(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    from csi_driver.backends.reflink import pool_lock
    from csi_driver.backends.reflink.layout import Layout
    from csi_driver.host.fs import files

    real = files.write_durably
    tried = []

    def write(path: Path, data: bytes) -> None:
        monkeypatch.undo()
        tried.append(path)
        with pytest.raises(Precondition, match=r"another agent"):
            pool_lock.acquire_pool(Layout(disk.point, POOL), OWNER, False)
        real(path, data)

    monkeypatch.setattr(files, "write_durably", write)
    async with helper_pool() as agents:
        await (await open_pool(agents, disk.point)).close()
    assert len(tried) == 1


async def test_what_a_crash_left_while_the_pool_was_made_is_no_content(disk: Disk) -> None:
    (disk.point / ".pool.json.abcd1234").write_text("{")
    async with helper_pool() as agents:
        await (await open_pool(agents, disk.point)).close()
        await (await open_pool(agents, disk.point)).close()
    assert not list(disk.point.glob(".pool.json.*"))


# ---- what contradicts itself -------------------------------------------------------------------------------------------


def record_of(rig: Rig, name: str = "volumes") -> Path:
    return next((rig.disk.point / name).iterdir()) / "record.json"


@pytest.mark.parametrize("kind", ["volumes", "snapshots", "groups"])
@pytest.mark.parametrize("damage", ["no record", "no image", "not JSON", "newer schema", "another's id", "link"])
async def test_a_pool_that_contradicts_itself_is_not_served(rig: Rig, kind: str, damage: str) -> None:
    """Named, nothing changed, and put right by hand it is served again."""
    volume = await rig.volume("v", "block")
    if kind == "snapshots":
        await rig.snapshot("s", volume)
    if kind == "groups":
        await rig.group("g", volume)
    await rig.close()
    record = record_of(rig, kind)
    image = next(record.parent.glob("*.img"))
    saved = record.read_bytes()
    moved = rig.place / "moved"
    if damage == "no record":
        record.unlink()
    elif damage in {"no image", "link"}:
        os.rename(image, rig.disk.point / "moved")
        if damage == "link":
            image.symlink_to("/dev/zero")
    elif damage == "not JSON":
        record.write_bytes(saved[:50])
    elif damage == "newer schema":
        record.write_text(json.dumps(json.loads(saved) | {"schema": 2}))
    else:
        record.write_text(json.dumps(json.loads(saved) | {"id": "node-1:default:" + "0" * 32}))
    try:
        with pytest.raises(Damaged):
            await rig.open()
    finally:
        await rig.close()
        if damage in {"no image", "link"}:
            image.unlink(missing_ok=True)
            os.rename(rig.disk.point / "moved", image)
        record.write_bytes(saved)
        await rig.open()
    assert not moved.exists()


async def test_an_older_agent_cannot_be_fooled_by_a_link(rig: Rig) -> None:
    """A link in the pool's place of a record is not followed."""
    await rig.volume("v", "block")
    await rig.close()
    record = record_of(rig)
    elsewhere = rig.place / "elsewhere.json"
    os.rename(record, rig.disk.point / "kept")
    elsewhere.write_bytes((rig.disk.point / "kept").read_bytes())
    record.symlink_to(elsewhere)
    with pytest.raises(Damaged):
        await rig.open()
    await rig.close()
    record.unlink()
    os.rename(rig.disk.point / "kept", record)
    await rig.open()


# ---- freezes that somebody left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
@pytest.mark.parametrize("unmounted", [False, True], ids=["mounted", "unmounted"])
async def test_the_sweep_at_start_thaws_what_was_announced(rig: Rig, fs_type: str, unmounted: bool) -> None:
    from csi_driver.host.freeze import journal as freezing

    volume, foreign = await rig.volume("v", fs_type), await rig.volume("w")
    target, other = await rig.show(volume), await rig.show(foreign)
    device = rig.device(volume)
    assert device is not None
    facts = freezing.entry_for(rig.staging(volume), device.major, device.minor, device.backing)
    freezing.record(str(rig.layout.freezes), volume.id.hash, [facts])
    await rig.close()
    freeze(target)
    freeze(other)
    try:
        if unmounted:
            mounts.umount(target)
            mounts.umount(rig.staging(volume))
        await rig.open()
        if not unmounted:
            assert not is_frozen(target)
        assert is_frozen(other)
        assert os.listdir(rig.layout.freezes) == []
    finally:
        thaw(other)
    await rig.show(volume)
    write_file(f"{target}/data", b"1")


async def test_a_journal_entry_of_another_boot_is_void(rig: Rig) -> None:
    from csi_driver.host.freeze import journal as freezing

    volume = await rig.volume("v")
    target = await rig.show(volume)
    device = rig.device(volume)
    assert device is not None
    facts = freezing.entry_for(rig.staging(volume), device.major, device.minor, device.backing) | {"boot": "before"}
    freezing.record(str(rig.layout.freezes), volume.id.hash, [facts])
    await rig.close()
    freeze(target)
    try:
        await rig.open()
        assert is_frozen(target)
        assert os.listdir(rig.layout.freezes) == []
    finally:
        thaw(target)


@pytest.mark.parametrize("found", ['{"schema": 2, "boot": "%s", "mounts": []}', "{", '[{"boot": "%s"}]'])
async def test_a_journal_entry_that_cannot_be_read_is_kept_and_reported(rig: Rig, found: str) -> None:
    """A newer driver wrote it, before the downgrade to this one. What it froze is not forgotten; all others are thawed."""
    from csi_driver.host.freeze import journal as freezing

    volume = await rig.volume("v")
    target = await rig.show(volume)
    device = rig.device(volume)
    assert device is not None
    facts = freezing.entry_for(rig.staging(volume), device.major, device.minor, device.backing)
    freezing.record(str(rig.layout.freezes), "z" * 32, [facts])
    later = rig.layout.freezes / f"{'a' * 32}.frozen.json"
    later.write_text(found.replace("%s", freezing.boot_id()))
    await rig.close()
    freeze(target)
    with pytest.raises(
        Precondition, match=rf"{later} tells of frozen file systems and is not followed: .*\(fsfreeze -u\)"
    ):
        await rig.open()
    await rig.close()
    assert not is_frozen(target), "what this version announced is thawed all the same"
    assert os.listdir(rig.layout.freezes) == [later.name]
    later.unlink()
    await rig.open()
    write_file(f"{target}/data", b"1")


async def test_a_later_journal_entry_of_another_boot_is_void(rig: Rig) -> None:
    later = rig.layout.freezes / f"{'a' * 32}.frozen.json"
    later.write_text('{"schema": 2, "boot": "before"}')
    await rig.reopen()
    assert os.listdir(rig.layout.freezes) == []

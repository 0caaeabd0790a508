"""An ext4 that asks for it is checked before it is mounted: on a copy, by a process that outlasts the agent, and nothing is lost."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.files import allocated, write_file
from support.machine import held_open
from support.node_rig import Rig, block, mounted, stage_at_last
from support.sizes import MIB
from support.waiting import until

from csi_driver.backends.base import KEPT_SECONDS
from csi_driver.domain.errors import Busy, InUse, NotMountable, OutOfSpace, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host import commands
from csi_driver.host.fs import condition, fsck
from csi_driver.host.helper.client import JobFailed
from csi_driver.service.health import HealthScanner

DATA = b"kept" * 1024
BOTH = (mounted("ext4"), block())


async def with_data(rig: Rig, name: str = "v", **more: Any) -> Volume:
    """A volume with a file, unstaged."""
    volume = await rig.volume(name, **more)
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", DATA)
    return rig.now(volume)


def debugfs(rig: Rig, volume: Volume, what: str) -> None:
    commands.run(("debugfs", "-w", "-R", what, str(rig.image(volume))), 30)


def flag_errors(rig: Rig, volume: Volume) -> None:
    """As the kernel leaves an ext4 that met an error."""
    debugfs(rig, volume, "set_super_value state 2")


def ruin(rig: Rig, volume: Volume) -> None:
    """What no check mends by itself: the root directory is gone."""
    debugfs(rig, volume, "clri <2>")


def kept(rig: Rig) -> list[Path]:
    return sorted(rig.layout.kept.iterdir())


def at_work(rig: Rig) -> bool:
    return any(fsck.outcome(str(place)).result == "running" for place in rig.layout.checks.iterdir())


Fake = Callable[[str], None]


@pytest.fixture
def e2fsck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Replace e2fsck by a script of the shell's, in which `$0.real` is the true one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "e2fsck.real").symlink_to(commands.resolve("e2fsck") or "/nowhere")
    patch = f"from csi_driver.host import commands; commands.DIRECTORIES = ({str(tools)!r},); "
    bootstrap = fsck._BOOTSTRAP.replace("from csi_driver.host.fs.fsck", patch + "from csi_driver.host.fs.fsck")

    def replace(script: str) -> None:
        (tools / "e2fsck").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "e2fsck").chmod(0o755)
        monkeypatch.setattr(fsck, "_BOOTSTRAP", bootstrap)

    return replace


def waits_for(path: Path) -> str:
    """An e2fsck that does its work once `path` is there."""
    return f'until [ -e {path} ]; do sleep 0.02; done; exec "$0.real" "$@"'


def mend_by_hand(device: str) -> None:
    """As a person does who answers every question with yes. Its exit status tells what it mended."""
    try:
        commands.run(("e2fsck", "-f", "-y", device), 60)
    except commands.CommandError as error:
        if error.rc is None or error.rc & ~3:
            raise


async def test_an_ext4_with_errors_is_mended_before_it_is_mounted(rig: Rig) -> None:
    volume = await with_data(rig)
    flag_errors(rig, volume)
    before = rig.image(volume).read_bytes()
    with pytest.raises(Busy) as told:
        await rig.stage(volume)
    message = str(told.value)
    assert re.search(r"because its superblock says that it has errors: e2fsck has been running for \d+s", message)
    (named,) = [word for word in message.split() if "/.kept/" in word]
    assert rig.devices() == []
    staging = await stage_at_last(rig, volume)
    assert Path(staging, "data").read_bytes() == DATA
    assert condition.complaint(rig.image(volume), is_ext4=True) == ""
    # What it held before is where the message said, and so do the record, the tree and the log of e2fsck.
    assert Path(named, "disk.img").read_bytes() == before
    assert Path(named, fsck.LOG).read_text()
    found = json.loads((rig.image(volume).parent / "record.json").read_text())["condition"]
    assert (found["state"], str(rig.disk.point / found["kept"])) == ("mended", named)
    (node,) = await rig.trees.tree()
    assert named in node.condition
    assert os.listdir(rig.layout.checks) == []
    await rig.reopen()
    assert rig.now(volume).condition.kept == found["kept"]
    assert kept(rig) == [Path(named)]
    # A second stage has nothing to check.
    await rig.unstage(volume)
    await rig.stage(volume)
    assert kept(rig) == [Path(named)]


async def test_a_clean_mount_costs_nothing_more(rig: Rig, e2fsck: Fake) -> None:
    e2fsck("exit 4")
    for kind in ("ext4", "xfs"):
        volume = await with_data(rig, kind, kind=kind)
        await rig.stage(volume)
        await rig.unstage(volume)
    cut = await with_data(rig, "cut")
    staging = await rig.stage(cut)
    write_file(f"{staging}/more", DATA)
    copy = await rig.volume("copy", source=await rig.snapshot("s", cut), capabilities=(mounted(""),))
    await rig.stage(copy)
    assert kept(rig) == []


async def test_a_check_outlasts_the_agent_and_is_found_at_work(rig: Rig, tmp_path: Path, e2fsck: Fake) -> None:
    e2fsck(waits_for(tmp_path / "go"))
    volume = await with_data(rig, capabilities=BOTH)
    flag_errors(rig, volume)
    with pytest.raises(Busy):
        await rig.stage(volume)
    rig.clock.offset = 3721.0
    for again in (False, True):
        if again:
            await rig.reopen()
        with pytest.raises(Busy, match=r"e2fsck has been running for 1h2m\d+s"):
            await rig.stage(volume)
        with pytest.raises(Busy, match=r"being checked"):
            await rig.stage(volume, block())
    assert at_work(rig)
    # What needs no stage goes on meanwhile.
    snapshot = await rig.snapshot("s", volume)
    rig.clock.offset = 0.0
    (tmp_path / "go").touch()
    await until(lambda: not at_work(rig))
    await rig.reopen()
    staging = await stage_at_last(rig, volume)
    assert Path(staging, "data").read_bytes() == DATA
    assert len(kept(rig)) == 1
    await rig.delete(snapshot)


@pytest.mark.parametrize("script", ["kill -9 $$", "exit 32"], ids=["killed", "cancelled"])
async def test_a_check_that_is_ended_in_the_middle_harms_nothing(rig: Rig, e2fsck: Fake, script: str) -> None:
    """It had begun to change things: on a copy, which goes."""
    volume = await with_data(rig)
    flag_errors(rig, volume)
    before = rig.image(volume).read_bytes()
    e2fsck(f'head -c 65536 /dev/urandom | dd of="$3" conv=notrunc 2>/dev/null; {script}')
    for _ in range(2):
        with pytest.raises(Busy):
            await rig.stage(volume)
        await until(lambda: not at_work(rig))
    assert rig.image(volume).read_bytes() == before
    await rig.reopen()
    e2fsck('exec "$0.real" "$@"')
    staging = await stage_at_last(rig, volume)
    assert Path(staging, "data").read_bytes() == DATA
    assert len(kept(rig)) == 1


async def test_what_no_check_mends_is_refused_with_a_way_that_works(rig: Rig) -> None:
    volume = await with_data(rig)
    good = await rig.snapshot("good", volume)
    ruin(rig, volume)
    with pytest.raises(Busy, match=r"because the kernel does not mount it"):
        await rig.stage(volume)
    before = rig.image(volume).read_bytes()
    with pytest.raises(NotMountable, match=r"UNEXPECTED INCONSISTENCY.*Nothing was changed: .*volumeMode Block"):
        await stage_at_last(rig, volume)
    assert rig.image(volume).read_bytes() == before
    assert rig.devices() == []
    # Whoever calls again is told the same, at once: it is not checked again and again.
    await rig.reopen()
    for _ in range(2):
        with pytest.raises(NotMountable, match=r"UNEXPECTED INCONSISTENCY"):
            await rig.stage(volume)
    assert os.listdir(rig.layout.checks) == kept(rig) == []
    await HealthScanner(rig.context).scan(rig.pool, 0)
    assert [(v.name, t.kind) for v, t in rig.context.conditions.all()] == [("v", "Damaged")]
    assert (await rig.nodes.condition(str(volume.id))).kind == "Damaged"
    # The way that the refusal names: snapshot, Block, e2fsck, snapshot, file system.
    broken = await rig.snapshot("broken", volume)
    mend = await rig.volume("mend", source=broken, capabilities=(block(),))
    async with rig.shown(mend) as device:
        mend_by_hand(device)
    mended = await rig.volume("mended", source=await rig.snapshot("m", mend), capabilities=(mounted("ext4"),))
    async with rig.shown(mended) as path:
        found = [file for file in Path(path).rglob("*") if file.is_file() and file.read_bytes() == DATA]
        assert found, "e2fsck lost the file"
    # The other way: back to a snapshot.
    await rig.roll_back(volume, good, "r")
    assert rig.now(volume).condition is None
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == DATA


async def test_an_xfs_that_lost_its_superblock_is_called_damaged(rig: Rig) -> None:
    """The kernel says no more of it than of a wrong mount option."""
    volume = await with_data(rig, capabilities=(mounted("xfs"),))
    with rig.image(volume).open("r+b") as image:
        first = image.read(4096)
        image.seek(0)
        image.write(bytes(4096))
        os.fsync(image.fileno())
    for _ in range(2):
        with pytest.raises(NotMountable, match=r"without any option it is refused too.*volumeMode Block"):
            await rig.stage(volume)
    assert rig.devices() == []
    assert [(v.name, t.kind) for v, t in rig.context.conditions.all()] == [("v", "Damaged")]
    with rig.image(volume).open("r+b") as image:
        image.write(first)
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == DATA


async def test_what_was_mended_by_hand_is_mounted(rig: Rig) -> None:
    """A verdict is about one image: whoever changes it is believed."""
    volume = await with_data(rig, capabilities=BOTH)
    flag_errors(rig, volume)
    ruin(rig, volume)
    with pytest.raises(NotMountable):
        await stage_at_last(rig, volume, mounted("ext4"))
    await rig.stage(volume, block())
    mend_by_hand(f"{rig.staging(volume)}/device")
    await rig.unstage(volume)
    await rig.stage(volume, mounted("ext4"))
    assert rig.now(volume).condition is None
    assert rig.context.conditions.all() == []


async def test_a_superblock_that_is_lost(rig: Rig) -> None:
    """Of a file system with copies of it e2fsck may find one; nothing is changed unless it did."""
    volume = await with_data(rig)
    with rig.image(volume).open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    before = rig.image(volume).read_bytes()
    with pytest.raises(Busy, match=condition.LOST):
        await rig.stage(volume)
    for _ in range(2):
        with pytest.raises(NotMountable, match=r"Nothing was changed"):
            await stage_at_last(rig, volume)
    assert rig.image(volume).read_bytes() == before
    assert kept(rig) == []


async def test_a_check_that_cannot_do_its_work_is_tried_again(rig: Rig, e2fsck: Fake) -> None:
    volume = await with_data(rig)
    flag_errors(rig, volume)
    e2fsck("echo no memory; exit 8")
    for _ in range(2):
        with pytest.raises(Busy):
            await rig.stage(volume)
        with pytest.raises(NotMountable, match=r"e2fsck failed \(no memory\): the next try checks it again"):
            await stage_at_last(rig, volume)
    assert rig.now(volume).condition is None
    e2fsck('exec "$0.real" "$@"')
    await stage_at_last(rig, volume)


async def test_what_the_kernel_refuses_after_a_check_is_not_checked_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await with_data(rig)
    real = rig.children.run

    async def run(job: str, timeout: float, **args: Any) -> Any:
        if job == "mount":
            raise JobFailed("mount", 117, "Structure needs cleaning", "OSError")
        return await real(job, timeout, **args)

    with monkeypatch.context() as patch:
        patch.setattr(rig.children, "run", run)
        with pytest.raises(Busy, match=r"because the kernel does not mount it .*Structure needs cleaning"):
            await rig.stage(volume)
        for _ in range(2):
            with pytest.raises(NotMountable, match=r"cannot be mounted"):
                await stage_at_last(rig, volume)
        assert len(kept(rig)) == 1


@pytest.mark.parametrize("what", ["rolled back", "expanded", "written to"])
async def test_a_check_of_what_the_volume_no_longer_holds_is_void(
    rig: Rig, tmp_path: Path, e2fsck: Fake, what: str
) -> None:
    volume = await with_data(rig, capabilities=BOTH)
    good = await rig.snapshot("good", volume)
    flag_errors(rig, volume)
    e2fsck(waits_for(tmp_path / "go"))
    with pytest.raises(Busy):
        await rig.stage(volume, mounted("ext4"))
    if what == "rolled back":
        await rig.roll_back(volume, good, "r")
    elif what == "expanded":
        await rig.expand(volume, 128 * MIB)
    else:
        (tmp_path / "go").touch()
        await until(lambda: not at_work(rig))
        await rig.stage(volume, block())
        commands.run(("debugfs", "-w", "-R", "set_super_value state 1", f"{rig.staging(volume)}/device"), 30)
        await rig.unstage(volume)
    e2fsck('exec "$0.real" "$@"')
    staging = await stage_at_last(rig, volume, mounted("ext4"))
    (tmp_path / "go").touch()
    assert Path(staging, "data").read_bytes() == DATA
    assert rig.now(volume).size == os.path.getsize(rig.image(volume)) == (128 if what == "expanded" else 64) * MIB
    assert len(kept(rig)) == (1 if what == "expanded" else 0)


async def test_a_device_that_somebody_uses_is_not_taken_away(rig: Rig) -> None:
    volume = await with_data(rig)
    flag_errors(rig, volume)
    with held_open(await rig.access.attach(volume)), pytest.raises(InUse):
        await rig.stage(volume)
    assert os.listdir(rig.layout.checks) == []
    await stage_at_last(rig, volume)


async def test_a_thick_volume_stays_so(rig: Rig) -> None:
    """Its check takes its space once more; without that much it is refused, and nothing is half-made."""
    volume = await with_data(rig, thick=True, size=320 * MIB)
    flag_errors(rig, volume)
    filler = rig.disk.point / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, rig.disk.free() - 200 * MIB)
    with pytest.raises(OutOfSpace, match=r"the check of a thick volume must set aside"):
        await rig.stage(volume)
    assert os.listdir(rig.layout.checks) == rig.left_inside() == []
    filler.unlink()
    await until(lambda: rig.disk.free() > 400 * MIB)
    staging = await stage_at_last(rig, volume)
    assert Path(staging, "data").read_bytes() == DATA
    assert allocated(rig.image(volume)) >= volume.size
    write_file(f"{staging}/more", os.urandom(16 * MIB))


async def test_what_was_kept_goes_in_time_and_with_its_volume(rig: Rig) -> None:
    volume, other = await with_data(rig), await with_data(rig, "other")
    for each in (volume, other):
        flag_errors(rig, each)
        await stage_at_last(rig, each)
        await rig.unstage(each)
    assert len(kept(rig)) == 2
    scanner = HealthScanner(rig.context)
    await scanner.scan(rig.pool, 0)
    assert len(kept(rig)) == 2
    await rig.delete(other)
    assert [path.name.split("-")[0] for path in kept(rig)] == [volume.id.hash]
    rig.clock.offset = KEPT_SECONDS + 60.0
    await scanner.scan(rig.pool, 0)
    assert kept(rig) == []
    assert rig.now(volume).condition.state == "mended"


async def test_a_volume_that_is_deleted_takes_its_check_with_it(rig: Rig, tmp_path: Path, e2fsck: Fake) -> None:
    volume = await with_data(rig)
    flag_errors(rig, volume)
    e2fsck(waits_for(tmp_path / "go"))
    with pytest.raises(Busy):
        await rig.stage(volume)
    await rig.delete(volume)
    assert os.listdir(rig.layout.checks) == []
    again = await with_data(rig)
    assert again.id == volume.id
    await rig.stage(again)
    (tmp_path / "go").touch()


async def test_a_volume_under_a_hold_is_not_mended(rig: Rig) -> None:
    """Between a safety snapshot and its rollback nothing may change what the volume holds."""
    volume = await with_data(rig)
    flag_errors(rig, volume)
    with pytest.raises(Busy):
        await rig.stage(volume)
    await until(lambda: not at_work(rig))
    await rig.rollbacks.hold(str(volume.id), "somebody")
    before = rig.image(volume).stat().st_ino
    with pytest.raises(Precondition, match="somebody"):
        await rig.stage(volume)
    assert rig.image(volume).stat().st_ino == before

"""A rollback, as a pod sees it."""

import errno
import os
from pathlib import Path

import pytest
from support.files import read_at, write_at, write_file
from support.freezing import is_frozen
from support.node_rig import SMALL, Rig, mounted
from support.sizes import MIB

from csi_driver.domain.errors import InUse, InvalidRequest, Precondition
from csi_driver.host.fs import extents, filesystems
from csi_driver.service.rollbacks import RollbackRequest


async def write(rig: Rig, volume: object, text: bytes) -> None:
    async with rig.shown(volume) as path:  # type: ignore[arg-type]
        write_file(f"{path}/data", text)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_back_and_forth(rig: Rig, fs_type: str) -> None:
    """To the older snapshot, then to the newer one; all stay usable."""
    volume = await rig.volume("v", fs_type)
    await write(rig, volume, b"old")
    old = await rig.snapshot("old", volume)
    await write(rig, volume, b"new")
    new = await rig.snapshot("new", volume)
    await write(rig, volume, b"newest")
    for index, (snapshot, text) in enumerate([(old, b"old"), (new, b"new"), (old, b"old"), (new, b"new")]):
        await rig.roll_back(volume, snapshot, f"r{index}")
        async with rig.shown(volume) as path:
            assert Path(path, "data").read_bytes() == text
            write_file(f"{path}/data", b"scribbled")
    assert await rig.read(old) == b"old"
    assert await rig.read(new) == b"new"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_the_size_stays_what_it_is_now(rig: Rig, fs_type: str) -> None:
    volume = await rig.volume("v", fs_type)
    await write(rig, volume, b"small")
    snapshot = await rig.snapshot("s", volume)
    grown = 2 * SMALL[fs_type]
    await rig.expand(volume, grown)
    await write(rig, volume, b"large")
    await rig.roll_back(volume, snapshot, "r")
    assert rig.now(volume).size == grown == os.path.getsize(rig.image(volume))
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    whole = filesystems.size_of_file_system(rig.staging(volume) if fs_type == "xfs" else device.path)
    assert whole == grown
    assert Path(rig.staging(volume), "data").read_bytes() == b"small"


async def test_in_use_it_is_refused_naming_where(rig: Rig) -> None:
    volume = await rig.volume("v")
    target = await rig.show(volume)
    snapshot = await rig.snapshot("s", volume)
    write_file(f"{target}/data", b"kept")
    with pytest.raises(InUse, match=r"in use at .*pods.*stop the pods or processes"):
        await rig.roll_back(volume, snapshot, "r")
    with pytest.raises(InUse, match=r"in use at"):
        await rig.rollbacks.hold(str(volume.id), "somebody")
    await rig.unpublish(volume)
    with pytest.raises(InUse, match=r"in use at .*staging"):
        await rig.roll_back(volume, snapshot, "r")
    assert Path(rig.staging(volume), "data").read_bytes() == b"kept"
    assert not is_frozen(rig.staging(volume))


async def test_the_safety_snapshot_leads_back(rig: Rig) -> None:
    volume = await rig.volume("v")
    await write(rig, volume, b"old")
    old = await rig.snapshot("old", volume)
    await write(rig, volume, b"precious")
    rolled, again = await rig.roll_back(volume, old, "r", safety=True)
    assert not again
    safety = rig.snapshots.get(rolled.safety)
    assert await rig.read(safety) == b"precious"
    assert (await rig.roll_back(volume, old, "r", safety=True)) == (rolled, True)
    await rig.roll_back(volume, safety, "undo")
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == b"precious"


async def test_a_retry_never_rolls_newer_data_away(rig: Rig) -> None:
    volume = await rig.volume("v")
    await write(rig, volume, b"old")
    old = await rig.snapshot("old", volume)
    await write(rig, volume, b"new")
    await rig.roll_back(volume, old, "r")
    await write(rig, volume, b"written since")
    await rig.reopen()
    assert (await rig.roll_back(volume, old, "r"))[1]
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == b"written since"


async def test_a_hold_keeps_everybody_out_and_lapses(rig: Rig) -> None:
    rig.clock.offset = -3600.0
    volume = await rig.volume("v")
    await rig.stage(volume)
    await rig.unstage(volume)
    await rig.rollbacks.hold(str(volume.id), "backup-42")
    await rig.reopen()
    for call in (
        rig.stage(volume),
        rig.publish(volume),
        rig.delete(volume),
        rig.expand(volume, 2 * volume.size),
    ):
        with pytest.raises(InUse, match="'backup-42' holds it"):
            await call
    with pytest.raises(InUse, match="held by 'backup-42'"):
        await rig.rollbacks.hold(str(volume.id), "another")
    rig.clock.offset += 299
    with pytest.raises(InUse):
        await rig.stage(volume)
    rig.clock.offset += 2
    await rig.stage(volume)


async def test_under_a_hold_that_lapsed_nothing_is_rolled_back(rig: Rig) -> None:
    """Somebody may have written since: hold again, and a new safety snapshot."""
    rig.clock.offset = -3600.0
    volume = await rig.volume("v")
    await write(rig, volume, b"old")
    old = await rig.snapshot("old", volume)
    await rig.rollbacks.hold(str(volume.id), "h")
    safety = await rig.snapshot("safety", volume)
    asked = RollbackRequest(str(volume.id), str(old.id), "r", holder="h", safety=str(safety.id))
    rig.clock.offset += 301
    with pytest.raises(Precondition, match="has expired"):
        await rig.rollbacks.roll_back(asked)
    rig.clock.offset = 0.0
    await rig.rollbacks.hold(str(volume.id), "h")
    with pytest.raises(Precondition, match="older than the hold"):
        await rig.rollbacks.roll_back(asked)
    fresh = await rig.snapshot("fresh", volume)
    await rig.rollbacks.roll_back(RollbackRequest(str(volume.id), str(old.id), "r", holder="h", safety=str(fresh.id)))


async def test_never_to_another_volumes_snapshot(rig: Rig) -> None:
    """Told by uid: not of a copy, not of the one that had the same name before."""
    volume, other = await rig.volume("v"), await rig.volume("w")
    foreign = await rig.snapshot("foreign", other)
    own = await rig.snapshot("own", volume)
    copy = await rig.volume("copy", source=own, capabilities=(mounted(""),))
    for target, snapshot in ((volume, foreign), (copy, own)):
        with pytest.raises(InvalidRequest, match="is rolled back to its own snapshots only"):
            await rig.roll_back(target, snapshot, "r")
    await rig.delete(volume)
    again = await rig.volume("v")
    assert again.id == volume.id
    with pytest.raises(InvalidRequest, match="its own snapshots only"):
        await rig.roll_back(again, own, "r")


async def test_a_thick_volume_is_thick_afterwards(rig: Rig) -> None:
    volume = await rig.volume("v", thick=True)
    await write(rig, volume, b"old")
    snapshot = await rig.snapshot("s", volume)
    await rig.roll_back(volume, snapshot, "r")
    with rig.image(volume).open("rb") as file:
        assert extents.usage(file.fileno()).exclusive_bytes >= volume.size
    async with rig.shown(volume) as path:
        assert Path(path, "data").read_bytes() == b"old"


async def test_a_device_that_was_left_goes_first(rig: Rig) -> None:
    """Otherwise it would go on showing the image that was exchanged."""
    volume = await rig.volume("v", "block")
    snapshot = await rig.snapshot("s", volume)
    await rig.access.attach(volume)
    await rig.roll_back(volume, snapshot, "r")
    assert rig.devices() == []


async def test_a_rollback_that_happened_is_answered_so_whatever_becomes_of_the_old_content(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that it failed, the caller would use the volume, repeat the call, and lose what it wrote."""
    volume = await rig.volume("v", "block", MIB)
    write_at(rig.image(volume), 0, b"old")
    snapshot = await rig.snapshot("s", volume)
    write_at(rig.image(volume), 0, b"new")
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if Path(new).parent == rig.layout.trash:
            raise OSError(errno.ENOSPC, "no room for one more name")
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        await rig.roll_back(volume, snapshot, "r")
    assert read_at(rig.image(volume), 0, 3) == b"old"
    assert rig.left_inside() == []
    write_at(rig.image(volume), 0, b"since")
    assert (await rig.roll_back(volume, snapshot, "r"))[1], "it was done before"
    assert read_at(rig.image(volume), 0, 5) == b"since"


async def test_16_are_remembered(rig: Rig) -> None:
    volume = await rig.volume("v", "block", MIB)
    snapshot = await rig.snapshot("s", volume)
    for index in range(18):
        await rig.roll_back(volume, snapshot, f"r{index}")
    assert [r.name for r in rig.now(volume).rollbacks] == [f"r{i}" for i in range(2, 18)]
    await rig.reopen()
    assert (await rig.roll_back(volume, snapshot, "r2"))[1]

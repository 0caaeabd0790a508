"""Where freezes are recorded: on the node, and for one release in the pool too, so that a version before finds what it must thaw."""

import os
from pathlib import Path
from typing import Any

import pytest
from support.files import write_file
from support.freezing import freeze, is_frozen, thaw
from support.node_rig import Rig
from test_node_left_frozen import answering, left_frozen

from csi_driver.domain.errors import Busy, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.freeze import journal


async def left(rig: Rig, monkeypatch: pytest.MonkeyPatch, volume: Volume) -> str:
    """A freeze that this version leaves; returns where its file system is mounted."""
    target = await rig.show(volume)
    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", left_frozen())
        with pytest.raises(Busy):
            await rig.snapshot("s", volume)
    assert is_frozen(target)
    return target


def entries(place: Path) -> dict[str, Any]:
    return journal.read_entries(str(place))


async def test_each_freeze_is_recorded_on_the_node_and_in_the_pool(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await rig.volume("v")
    target = await left(rig, monkeypatch, volume)
    assert entries(rig.node_local) == entries(rig.layout.freezes)
    ((fact,),) = entries(rig.node_local).values()
    device = rig.device(volume)
    assert device is not None
    assert fact["volume"] == volume.id.hash
    assert fact["backing"] == list(device.backing), "by which the version before knows the device"
    await rig.reopen()
    assert not is_frozen(target)
    assert rig.left_inside() == []


async def test_a_freeze_that_is_recorded_on_the_node_alone_is_thawed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version keeps no copy in the pool, and a downgrade from it may happen."""
    volume = await rig.volume("v")
    target = await left(rig, monkeypatch, volume)
    ((key, (fact,)),) = entries(rig.node_local).items()
    journal.remove(str(rig.layout.freezes), key)
    del fact["in_pool"]
    journal.record(str(rig.node_local), key, [fact])
    await rig.reopen()
    assert not is_frozen(target)
    assert rig.left_inside() == []
    write_file(f"{target}/data", b"1")


async def test_what_the_version_before_has_thawed_is_not_thawed_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the pool's copy; who has frozen the file system since is somebody else."""
    volume = await rig.volume("v")
    target = await left(rig, monkeypatch, volume)
    await rig.close()
    thaw(target)
    for name in os.listdir(rig.layout.freezes):
        os.unlink(rig.layout.freezes / name)
    freeze(target)
    try:
        await rig.open()
        assert is_frozen(target)
        assert rig.left_inside() == []
    finally:
        thaw(target)
    await rig.snapshot("s", volume)


async def test_another_owner_of_the_devices_number_is_not_thawed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await rig.volume("v")
    target = await left(rig, monkeypatch, volume)
    ((key, (fact,)),) = entries(rig.node_local).items()
    await rig.close()
    for place in (rig.node_local, rig.layout.freezes):
        os.makedirs(place, exist_ok=True)
        journal.record(str(place), key, [fact | {"identity": "loop0/1"}])
    await rig.open()
    assert is_frozen(target)
    thaw(target)
    assert rig.left_inside() == []


async def test_the_directory_goes_with_the_last_entry(rig: Rig) -> None:
    assert rig.node_local.is_dir()
    await rig.close()
    assert not rig.node_local.exists()
    await rig.open()


async def test_a_runtime_directory_that_cannot_be_used_is_named(rig: Rig, tmp_path: Path) -> None:
    await rig.close()
    (tmp_path / "file").touch()
    rig.options = {"runtime_directory": str(tmp_path / "file")}
    with pytest.raises(Precondition, match="--runtime-dir"):
        await rig.open()
    await rig.close()
    rig.options = {}
    await rig.open()


async def test_without_one_the_journal_lies_in_the_pool(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.close()
    rig.options = {"runtime_directory": ""}
    await rig.open()
    volume = await rig.volume("v")
    target = await left(rig, monkeypatch, volume)
    ((fact,),) = entries(rig.layout.freezes).values()
    assert "in_pool" not in fact
    await rig.reopen()
    assert not is_frozen(target)

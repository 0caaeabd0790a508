"""Devices that are shown nowhere: left over, or in use where the agent does not see it."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.files import read_at, write_at
from support.machine import process
from support.node_rig import Rig, mounted

from csi_driver.domain.errors import Busy, InUse


async def test_a_snapshot_of_an_unmounted_leftover_device_has_what_was_written(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    device = await rig.access.attach(volume)
    write_at(device, 0, b"written".ljust(4096))
    snapshot = await rig.snapshot("s", volume)
    assert read_at(rig.image(snapshot), 0, 7) == b"written"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_what_is_mounted_in_another_namespace_is_in_use(rig: Rig, fs_type: str) -> None:
    """A container's own copy of the host's mounts: writes that are not on the device yet would be in no snapshot of it."""
    volume, other = await rig.volume("v", fs_type), await rig.volume("other", fs_type)
    before = await rig.snapshot("before", volume)
    target = await rig.show(volume)
    copied = ("unshare", "--mount", "--propagation=private", "sh", "-c", "echo ready; exec sleep 600")
    with process(*copied):
        Path(target, "unsynced").write_bytes(b"kept" * 1024)
        await rig.unpublish(volume)
        with pytest.raises(InUse, match="another namespace"):
            await rig.unstage(volume)
        for refused in (
            rig.snapshot("s", volume),
            rig.group("g", volume, other),
            rig.volume("copy", source=volume, capabilities=(mounted(""),)),
        ):
            with pytest.raises(Busy, match="in another mount namespace"):
                await refused
        with pytest.raises(InUse, match="another namespace"):
            await rig.rollbacks.hold(str(volume.id), "somebody")
        with pytest.raises(InUse, match="another namespace"):
            await rig.roll_back(volume, before, "r")
        assert rig.now(volume).hold is None
    until = time.monotonic() + 30
    while rig.device(volume) is not None and time.monotonic() < until:
        with suppress(InUse):  # the namespace goes a little later than its last process
            await rig.unstage(volume)
    snapshot = await rig.snapshot("s", volume)
    assert await rig.read(snapshot, "unsynced") == b"kept" * 1024
    await rig.rollbacks.hold(str(volume.id), "somebody")


async def test_a_hold_takes_a_leftover_device_away(rig: Rig) -> None:
    volume = await rig.volume("v")
    await rig.access.attach(volume)
    await rig.rollbacks.hold(str(volume.id), "somebody")
    assert rig.device(volume) is None

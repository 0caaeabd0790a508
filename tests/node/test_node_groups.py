"""Groups: one moment for all, all or none."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.files import read_at, write_at, write_file
from support.freezing import freeze, is_frozen, thaw
from support.machine import process
from support.node_rig import Rig, mounted
from support.sizes import GIB, MIB
from support.waiting import until

from csi_driver.domain.errors import Busy, DriverError, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.fs import extents

CUTS = 80

COUNTERS = """
import os, sys
fds = [os.open(path, os.O_WRONLY | os.O_DSYNC) for path in sys.argv[1:]]
print('ready', flush=True)
number = 0
while True:
    number += 1
    for fd in fds:
        os.pwrite(fd, b"%020d" % number, 0)
"""


async def counter(rig: Rig, volume: Volume) -> tuple[str, int]:
    """A file of one block in a volume's file system, and where that block lies on the device."""
    path = os.path.join(await rig.show(volume), "counter")
    write_file(path, b"0" * 4096)
    fd = os.open(path, os.O_RDONLY)
    try:
        found = list(extents.extents(fd))
    finally:
        os.close(fd)
    assert len(found) == 1
    return path, found[0].physical


async def fragment(rig: Rig, volume: Volume, count: int = 600) -> None:
    """Make an image slow to clone, so that a cut of several takes longer than the writer's step from one to the next.

    Behind the file system's end, below its device: nothing of it is there.
    """
    await rig.expand(volume, volume.size + 2 * count * 4096)
    with rig.image(volume).open("r+b") as image:
        for index in range(count):
            os.pwrite(image.fileno(), b"x", volume.size + 8192 * index)
        os.fsync(image.fileno())


@pytest.mark.slow
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_every_group_holds_one_moment(rig: Rig, fs_type: str) -> None:
    """A writer puts k into A, durably, then into B: whatever the moment, A is at most one ahead and never behind."""
    rounds = CUTS // 2
    first, second = await rig.volume("a", fs_type), await rig.volume("b", fs_type)
    path_a, at_a = await counter(rig, first)
    path_b, at_b = await counter(rig, second)
    for volume in (first, second):
        await fragment(rig, volume)
    seen = set()
    with process(sys.executable, "-c", COUNTERS, path_a, path_b):
        for index in range(rounds):
            group = await rig.group(f"g{index}", first, second)
            members = {m.source_id: m for m in group.members}
            a = int(read_at(rig.image(members[str(first.id)]), at_a, 20))
            b = int(read_at(rig.image(members[str(second.id)]), at_b, 20))
            assert a - 1 <= b <= a, f"cut {index}: A holds {a}, B holds {b}"
            seen.add(a)
            await until(lambda a=a: int(read_at(path_a, 0, 20)) > a)  # type: ignore[misc]
            if index < rounds - 1:
                await rig.delete(group)
    assert len(seen) == rounds
    # What was read from the images is what a volume made from them shows.
    assert int((await rig.read(group.members[0], "counter"))[:20]) in seen


async def test_members_share_one_moment_and_one_fate(rig: Rig) -> None:
    volumes = [await rig.volume(f"v{i}", fs) for i, fs in enumerate(("ext4", "xfs", "ext4"))]
    idle = await rig.volume("idle")
    async with rig.shown(idle) as path:
        write_file(f"{path}/data", b"idle")
    for index, volume in enumerate(volumes):
        write_file(f"{await rig.show(volume)}/data", b"%d" % index)
    group = await rig.group("g", *volumes, idle)
    assert len({m.created for m in group.members} | {group.created}) == 1
    assert await rig.group("g", idle, *volumes) == group
    found = sorted([await rig.read(m) for m in group.members])
    assert found == [b"0", b"1", b"2", b"idle"]
    await rig.reopen()
    assert rig.groups.get(str(group.id), []) == group
    await rig.delete(group)
    assert os.listdir(rig.layout.groups) == []
    assert rig.pool.snapshots == {}


async def test_a_raw_member_in_use_makes_it_a_precondition(rig: Rig) -> None:
    volume, raw = await rig.volume("v"), await rig.volume("raw", "block")
    target = await rig.show(volume)
    await rig.show(raw)
    with pytest.raises(Precondition, match=r"raw block device, which cannot be frozen"):
        await rig.group("g", volume, raw)
    assert os.listdir(rig.layout.groups) == []
    assert rig.left_inside() == []
    assert not is_frozen(target)
    await rig.hide(raw)
    assert len((await rig.group("g", volume, raw)).members) == 2


async def test_members_that_nobody_uses_are_not_cloned_while_others_are_frozen(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large idle disk would hold up the writers of a busy one, and with enough extents past the deadline each time."""
    busy, idle = await rig.volume("busy"), await rig.volume("idle", "block")
    target = await rig.show(busy)
    write_file(f"{target}/data", b"busy")
    async with rig.shown(idle) as device:
        write_at(device, 0, b"idle".ljust(4096))
    real, cloned = rig.children.run, []

    async def run(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut":
            cloned.extend(clone["source"] for clone in args["action"]["files"])
        return await real(job, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run)
    group = await rig.group("g", idle, busy)
    assert cloned == [str(rig.image(busy))]
    members = {member.source_id: member for member in group.members}
    assert await rig.read(members[str(busy.id)]) == b"busy"
    assert read_at(rig.image(members[str(idle.id)]), 0, 4) == b"idle"


@pytest.mark.parametrize("kind", ["frozen elsewhere", "clone fails", "deadline", "publication fails"])
async def test_one_failure_and_none_of_them_exists(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    volumes = [await rig.volume(f"v{i}") for i in range(3)]
    targets = [await rig.show(v) for v in volumes]
    real = rig.children.run

    async def run(job: str, timeout: float, **args: Any) -> Any:
        if job == "cut" and kind == "clone fails":
            args["action"]["files"][2]["source"] += "-gone"
        if job == "cut" and kind == "deadline":
            args |= {"deadline": 0.3, "test_pause": 20.0}
        return await real(job, timeout, **args)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rig.children, "run", run)
    if kind == "publication fails":
        monkeypatch.setattr(rig.layout, "publish", fails)
    if kind == "frozen elsewhere":
        freeze(targets[2])
    try:
        with pytest.raises(DriverError):
            await rig.group("g", *volumes)
    finally:
        if kind == "frozen elsewhere":
            thaw(targets[2])
    monkeypatch.undo()
    assert not any(is_frozen(t) for t in targets)
    assert os.listdir(rig.layout.groups) == []
    assert rig.left_inside() == []
    assert rig.pool.snapshots == {}
    for target in targets:
        write_file(f"{target}/data", b"1")
    group = await rig.group("g", *volumes)
    assert len(group.members) == 3


async def test_a_member_that_hangs_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one deadline for all, and thawed together."""
    volumes = [await rig.volume(f"v{i}") for i in range(2)]
    targets = [await rig.show(v) for v in volumes]
    real = rig.children.run

    async def run(job: str, timeout: float, **args: Any) -> Any:
        return await real(job, timeout, **(args | ({"deadline": 0.3, "test_pause": 20.0} if job == "cut" else {})))

    monkeypatch.setattr(rig.children, "run", run)
    began = time.monotonic()
    with pytest.raises(Busy) as refused:
        await rig.group("g", *volumes)
    assert all(str(v.id) in str(refused.value) for v in volumes)
    assert time.monotonic() - began < 15
    assert not any(is_frozen(t) for t in targets)


@pytest.mark.parametrize("rig", [{"size": 3 * GIB}], indirect=True)
async def test_a_group_of_64(rig: Rig) -> None:
    volumes = [await rig.volume(f"v{i}", size=16 * MIB) for i in range(64)]
    for volume in volumes[:8]:
        write_file(f"{await rig.show(volume)}/data", volume.name.encode())
    group = await rig.group("g", *volumes)
    assert len(group.members) == 64
    by_source = {m.source_id: m for m in group.members}
    for volume in volumes[:2]:
        assert await rig.read(by_source[str(volume.id)]) == volume.name.encode()


async def test_a_member_is_a_source_like_any_other(rig: Rig) -> None:
    """Restored, rolled back to, and not deleted alone."""
    volume, other = await rig.volume("v"), await rig.volume("w")
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"1")
    group = await rig.group("g", volume, other)
    member = next(m for m in group.members if m.source_id == str(volume.id))
    async with rig.shown(volume) as path:
        write_file(f"{path}/data", b"2")
    copy = await rig.volume("copy", source=member, capabilities=(mounted(""),))
    await rig.roll_back(volume, member, "r")
    await rig.delete(group)
    for item in (copy, volume):
        async with rig.shown(item) as path:
            assert Path(path, "data").read_bytes() == b"1"

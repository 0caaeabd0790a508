"""An agent whose freezes suspend devices dies: its watchdog frees all, or the journal is enough for the next agent."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dm_freeze_rig import (
    Death,
    ThinDisk,
    forget_snapshots,
    free_all,
    member,
    run_agent,
    session,
    snapshot_of,
    snapshots,
    three_disks,
)
from support.waiting import until

from csi_driver.domain.errors import Precondition
from csi_driver.host.dm import ioctl
from csi_driver.host.freeze import journal
from csi_driver.host.freeze.journal import Journal
from csi_driver.host.helper.client import HelperPool


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ThinDisk]]:
    with three_disks(tmp_path_factory.mktemp("disks")) as disks:
        yield disks


@pytest.fixture(autouse=True)
def free(disks: list[ThinDisk]) -> Iterator[None]:
    for disk in disks:
        disk.write("before")
    yield
    left = free_all(disks)
    forget_snapshots(len(disks))
    assert not left, "left frozen or suspended"
    assert [disk.read() for disk in disks] == ["before"] * len(disks)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    directory.mkdir()
    return directory


@pytest.fixture
async def children() -> AsyncIterator[HelperPool]:
    children = HelperPool(grace=20.0)
    await children.start()
    yield children
    await asyncio.wait_for(children.stop(), 20)


async def test_a_snapshot_leaves_no_record(
    children: HelperPool, disks: list[ThinDisk], place: Path, tmp_path: Path
) -> None:
    freezes = session(children)
    await freezes.open(Journal(str(place)))
    result = await freezes.run([member(disk) for disk in disks], snapshots(*disks))
    assert 0 < result.action <= result.frozen
    assert list(place.iterdir()) == []
    assert [snapshot_of(index, disk, tmp_path / "look") for index, disk in enumerate(disks)] == ["before"] * 3
    await freezes.close()


async def test_what_somebody_else_suspended_is_refused_with_what_to_do(
    children: HelperPool, disks: list[ThinDisk], place: Path
) -> None:
    freezes = session(children)
    await freezes.open(Journal(str(place)))
    ioctl.suspend(disks[2].info.uuid, lockfs=False)
    with pytest.raises(Precondition, match=r"the device fast-disk--raw is suspended already.*dmsetup resume"):
        await freezes.run([member(disk) for disk in disks], snapshots(*disks))
    await freezes.close()
    place.mkdir()  # it was empty
    await freezes.open(Journal(str(place)))
    assert disks[2].is_suspended(), "no agent resumes what another program suspended"
    ioctl.resume(disks[2].info.uuid)
    await freezes.close()


@pytest.mark.parametrize("call", ["suspend", "message", "resume"])
async def test_a_killed_agent_s_disks_are_freed_by_its_watchdog(
    disks: list[ThinDisk], place: Path, tmp_path: Path, call: str
) -> None:
    await asyncio.to_thread(run_agent, Death(call, "after", "agent", tmp_path / "mark"), place, disks)  # type: ignore[arg-type]
    await until(lambda: all(disk.is_free() for disk in disks))


async def test_when_all_die_the_next_agent_frees_what_is_recorded(
    children: HelperPool, disks: list[ThinDisk], place: Path, tmp_path: Path
) -> None:
    await asyncio.to_thread(run_agent, Death("message", "after", "everybody", tmp_path / "mark"), place, disks)
    assert all(disk.is_suspended() for disk in disks)
    assert not any(disk.is_free() for disk in disks)
    freezes = session(children)
    await freezes.open(Journal(str(place)))
    assert all(disk.is_free() for disk in disks)
    assert list(place.iterdir()) == []
    await freezes.close()


async def test_each_volume_is_freed_by_itself(
    children: HelperPool, disks: list[ThinDisk], place: Path, tmp_path: Path
) -> None:
    await asyncio.to_thread(run_agent, Death("message", "before", "everybody", tmp_path / "mark"), place, disks)
    freezes = session(children)
    freezes._journal = Journal(str(place))  # without the start of an agent, which frees all
    for index, disk in enumerate(disks):
        one = member(disk)
        await freezes.thaw_left([(one.volume, one.device)])
        assert [disk.is_free() for disk in disks] == [True] * (index + 1) + [False] * (2 - index)
    assert journal.read_entries(str(place)) == {}


async def test_a_device_of_another_number_is_left_to_who_suspended_it(
    children: HelperPool, disks: list[ThinDisk], place: Path
) -> None:
    """The same volume, activated again since the record was made, and then suspended by somebody else."""
    raw = disks[2]
    Journal(str(place)).record(
        "left", [raw.fact | {"minor": raw.info.minor + 1}, disks[0].fact | {"dm_uuid": "LVM-gone"}]
    )
    ioctl.suspend(raw.info.uuid, lockfs=False)
    freezes = session(children)
    await freezes.open(Journal(str(place)))
    assert raw.is_suspended()
    ioctl.resume(raw.info.uuid)
    await freezes.close()

"""What a snapshot left frozen is ours: it stays in the journal, whatever comes, until it is known to be thawed."""

import asyncio
import errno
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.files import write_file
from support.freezing import freeze, is_frozen, thaw
from support.node_rig import Rig

from csi_driver.domain.errors import Busy, Damaged, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.freeze import journal
from csi_driver.host.helper.client import JobFailed
from csi_driver.host.helper.job import JobEnded

Run = Callable[..., Any]


def answering(rig: Rig, monkeypatch: pytest.MonkeyPatch, job: str, answer: Callable[..., Any]) -> None:
    """Let one job be answered by the test, and all others by the children."""
    real = rig.children.run

    async def run_(name: str, timeout: float, **args: Any) -> Any:
        return answer(**args) if name == job else await real(name, timeout, **args)

    monkeypatch.setattr(rig.children, "run", run_)


def left_frozen(kind: str = "StillFrozen") -> Run:
    """A snapshot that freezes and does not thaw, and whose watchdog gives up as well."""

    def cut(mounts: list[dict[str, Any]], **_: object) -> None:
        for mount in mounts:
            freeze(mount["point"])
        gone = JobEnded()
        gone.frozen = True
        gone.set()
        raise JobFailed("cut", errno.EIO, "the thaw failed", kind, gone=gone)

    return cut


def announced(rig: Rig) -> list[str]:
    """The mount points in all journal entries."""
    found: dict[str, Any] = journal.read_entries(str(rig.layout.freezes))
    return sorted(fact["point"] for facts in found.values() for fact in facts)


@pytest.mark.parametrize("answered", ["StillFrozen", "Deadline"])
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_the_next_try_thaws_first(rig: Rig, monkeypatch: pytest.MonkeyPatch, fs_type: str, answered: str) -> None:
    """The watchdog gives up after the answer: what was answered says nothing about the thaw."""
    volume, other = await rig.volume("v", fs_type), await rig.volume("w")
    target, _ = await rig.show(volume), await rig.show(other)
    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", left_frozen(answered))
        with pytest.raises(Busy):
            await rig.snapshot("s", volume)
    assert is_frozen(target)
    await rig.snapshot("w", other)
    assert announced(rig) == [rig.staging(volume)], "another volume's cut leaves it alone"
    await rig.snapshot("s", volume)
    assert not is_frozen(target)
    assert rig.left_inside() == []
    write_file(f"{target}/data", b"1")


async def test_a_member_of_a_group_takes_its_own_part_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [await rig.volume(name) for name in "vwx"]
    targets = [await rig.show(volume) for volume in volumes]
    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", left_frozen())
        with pytest.raises(Busy):
            await rig.group("g", *volumes)
    for index, volume in enumerate(volumes[:2]):
        await rig.snapshot(volume.name, volume)
        assert [is_frozen(target) for target in targets] == [False] * (index + 1) + [True] * (2 - index)
        assert announced(rig) == sorted(rig.staging(volume) for volume in volumes[index + 1 :])
    await rig.reopen()
    assert not is_frozen(targets[2])
    assert rig.left_inside() == []


async def test_what_cannot_be_thawed_is_busy_and_stays_announced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, other = await rig.volume("v"), await rig.volume("w")
    target = await rig.show(volume)
    await rig.show(other)

    def thaw(**_: object) -> None:
        raise JobFailed("thaw", errno.EIO, "may still be frozen", "ThawFailed")

    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", left_frozen())
        with pytest.raises(Busy):
            await rig.snapshot("s", volume)
    with monkeypatch.context() as patch:
        answering(rig, patch, "thaw", thaw)
        for call in (rig.snapshot("s", volume), rig.group("g", other, volume)):
            with pytest.raises(Busy, match=r"an earlier snapshot of .* may have left it frozen"):
                await call
        await rig.snapshot("w", other)
        await rig.reopen()
    assert is_frozen(target)
    assert announced(rig) == [rig.staging(volume)]
    await rig.unpublish(volume)
    await rig.snapshot("s", volume)
    assert rig.left_inside() == []
    write_file(f"{await rig.publish(volume)}/data", b"1")


async def test_a_pool_that_is_refused_keeps_nothing_frozen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged record is repaired by hand, some day; the pods do not wait for that."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", left_frozen())
        with pytest.raises(Busy):
            await rig.snapshot("s", volume)
    await rig.close()
    record = rig.image(volume).parent / "record.json"
    kept = record.read_bytes()
    record.write_bytes(b"{")
    with pytest.raises(Damaged):
        await rig.open()
    await rig.close()
    assert not is_frozen(target)
    assert rig.left_inside() == []
    record.write_bytes(kept)
    await rig.open()


async def snapshot_without_end(rig: Rig, monkeypatch: pytest.MonkeyPatch, volume: Volume) -> JobEnded:
    """A snapshot that is given up while it is still in progress; the event that is set at its end."""
    gone = JobEnded()

    def hanging(**_: object) -> None:
        raise JobFailed("cut", errno.ETIMEDOUT, "no sync in time", "SyncTimeout", gone=gone)

    with monkeypatch.context() as patch:
        answering(rig, patch, "cut", hanging)
        with pytest.raises(Busy):
            await rig.snapshot("s", volume)
    return gone


async def test_a_snapshot_that_ended_well_after_its_answer_leaves_nothing_to_thaw(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen since is somebody else's, and stays so."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    gone = await snapshot_without_end(rig, monkeypatch, volume)
    assert announced(rig) == [rig.staging(volume)], "until it is known how it ended"
    gone.set()
    freeze(target)
    try:
        with pytest.raises(Precondition, match="frozen"):
            await rig.snapshot("s", volume)
        assert is_frozen(target)
    finally:
        thaw(target)
    assert announced(rig) == []
    await rig.snapshot("s", volume)


@pytest.mark.parametrize("frozen", [False, True], ids=["well", "frozen"])
async def test_what_a_snapshot_recorded_goes_when_it_has_ended_well(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """Without another cut: the next start would thaw what a backup tool has frozen since."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    gone = await snapshot_without_end(rig, monkeypatch, volume)
    gone.frozen = frozen
    gone.set()
    until = time.monotonic() + (0.5 if frozen else 30)
    while announced(rig) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert bool(announced(rig)) is frozen
    freeze(target)
    try:
        await rig.close()
        await rig.open()
        assert is_frozen(target) is not frozen
    finally:
        if not frozen:
            thaw(target)


async def test_a_pool_closes_while_a_snapshot_has_not_ended(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays announced: the next start looks at it."""
    volume = await rig.volume("v")
    await rig.show(volume)
    await snapshot_without_end(rig, monkeypatch, volume)
    await rig.close()
    assert announced(rig) == [rig.staging(volume)]
    await rig.open()
    assert announced(rig) == []

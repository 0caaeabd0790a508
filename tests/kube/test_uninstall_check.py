"""Before an uninstallation: what it would strand is counted and named; what is another driver's or done is not."""

from __future__ import annotations

import pytest
from support.fake_api import Call, FakeApi, Fault

from csi_driver.cli.uninstall_check import strands
from csi_driver.domain.errors import Unavailable
from csi_driver.kube.resources import PVS, ROLLBACKS, SNAPSHOT_CONTENTS

OURS = "csi.tidemark.dev"


def volume(fake: FakeApi, name: str, driver: str = OURS) -> None:
    fake.put(PVS, {"metadata": {"name": name}, "spec": {"csi": {"driver": driver, "volumeHandle": name}}})


def content(fake: FakeApi, name: str, driver: str = OURS) -> None:
    fake.put(SNAPSHOT_CONTENTS, {"metadata": {"name": name}, "spec": {"driver": driver, "deletionPolicy": "Delete"}})


def rollback(fake: FakeApi, name: str, phase: str) -> None:
    fake.put(ROLLBACKS, {"metadata": {"name": name}, "spec": {}, "status": {"phase": phase}}, "shop")


async def test_nothing_of_ours_strands_nothing(fake: FakeApi) -> None:
    volume(fake, "pvc-1", "ebs.csi.aws.com")
    fake.put(PVS, {"metadata": {"name": "local"}, "spec": {"hostPath": {"path": "/srv"}}})
    content(fake, "snapcontent-1", "ebs.csi.aws.com")
    rollback(fake, "over", "Completed")
    rollback(fake, "failed", "Failed")
    assert await strands(await fake.connect(), OURS) == []


async def test_volumes_are_counted_and_some_are_named(fake: FakeApi) -> None:
    for number in range(12):
        volume(fake, f"pvc-{number:02}")
    (told,) = await strands(await fake.connect(), OURS)
    assert told == f"12 PersistentVolumes of {OURS} (pvc-00, pvc-01, pvc-02 ...)"


async def test_snapshots_that_have_outlived_their_volumes_are_counted(fake: FakeApi) -> None:
    """Nobody else would take their finalizers away: their VolumeSnapshots could never be deleted."""
    content(fake, "snapcontent-1")
    assert await strands(await fake.connect(), OURS) == [f"1 VolumeSnapshotContent of {OURS} (snapcontent-1)"]
    content(fake, "snapcontent-2")
    assert await strands(await fake.connect(), OURS) == [
        f"2 VolumeSnapshotContents of {OURS} (snapcontent-1, snapcontent-2)"
    ]


async def test_a_release_without_snapshots_has_no_right_to_look_for_them(fake: FakeApi) -> None:
    content(fake, "snapcontent-1")
    assert await strands(await fake.connect(), OURS, snapshots=False) == []
    assert SNAPSHOT_CONTENTS not in {call.kind for call in fake.calls}


async def test_a_rollback_that_holds_its_volume_is_told(fake: FakeApi) -> None:
    volume(fake, "pvc-1")
    rollback(fake, "undo", "RollingBack")
    rollback(fake, "over", "Completed")
    assert await strands(await fake.connect(), OURS) == [
        f"1 PersistentVolume of {OURS} (pvc-1)",
        "1 running VolumeRollback (shop/undo)",
    ]


@pytest.mark.parametrize("phase", ["Pending", "Failed"])
async def test_a_rollback_that_may_hold_its_volume_is_told_whatever_its_phase(fake: FakeApi, phase: str) -> None:
    """A held one is Pending again while its claim is away; one that has failed is released a moment later."""
    meta = {"name": "undo", "finalizers": ["tidemark.dev/rollback"]}
    fake.put(ROLLBACKS, {"metadata": meta, "spec": {}, "status": {"phase": phase}}, "shop")
    assert await strands(await fake.connect(), OURS) == ["1 running VolumeRollback (shop/undo)"]


async def test_without_the_definitions_there_is_no_rollback_and_no_snapshot() -> None:
    async with FakeApi(unserved=[ROLLBACKS, SNAPSHOT_CONTENTS]) as fake:
        assert await strands(await fake.connect(), OURS) == []


async def test_an_api_that_does_not_answer_is_no_leave(fake: FakeApi) -> None:
    def down(call: Call) -> None:
        raise Fault(503, "ServiceUnavailable", "etcd is away")

    fake.hooks.append(down)
    with pytest.raises(Unavailable):
        await strands(await fake.connect(), OURS)

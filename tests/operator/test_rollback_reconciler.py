"""Whole rollbacks over an API in memory and real agents: what a user sees, and bytes against a model."""

from __future__ import annotations

import pytest
from support.rollback_rig import NAMESPACE, World, completed, nothing_left

from csi_driver.kube.resources import EVENTS, PVCS, PVS, ROLLBACKS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.rollback.resource import FINALIZER
from csi_driver.service.holds import HOLD_SECONDS
from csi_driver.service.snapshots import SnapshotRequest


def told(world: World, kind: str) -> list[str]:
    return [e["reason"] for e in world.fake.all(EVENTS) if e["involvedObject"]["kind"] == kind]


async def failed(world: World, reason: str, *words: str, **spec: object) -> None:
    before = world.disk_now
    world.ask(**spec)  # type: ignore[arg-type]
    await world.run()
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Failed", reason), status
    for word in (*words, "not changed"):
        assert word in status["message"]
    assert world.disk_now.rollbacks == before.rollbacks
    assert world.bytes_of(world.disk_now) == world.model
    nothing_left(world)


async def test_to_an_older_then_a_newer_then_back(world: World) -> None:
    await world.disk()
    await world.write(b"1")
    first = await world.cut("s1")
    await world.write(b"2")
    second = await world.cut("s2")
    await world.write(b"3")
    status = await completed(world, "one", "s1")
    assert world.bytes_of(world.disk_now) == b"1"
    await completed(world, "two", "s2")
    assert world.bytes_of(world.disk_now) == b"2"
    await completed(world, "three", str(status["safetySnapshotName"]))
    assert world.bytes_of(world.disk_now) == b"3"
    await completed(world, "four", "s1")
    await completed(world, "five", "s1")
    assert world.bytes_of(world.disk_now) == b"1"
    assert [world.bytes_of(s) for s in (first, second)] == [b"1", b"2"], "all snapshots survive"
    assert "RolledBack" in told(world, "VolumeRollback")
    assert "RolledBack" in told(world, "PersistentVolumeClaim")


async def test_from_a_second_snapshot_object_of_the_same_handle(world: World) -> None:
    await world.disk()
    await world.write(b"1")
    made = await world.cut("s1")
    world.fake.put(SNAPSHOTS, {"metadata": {"name": "again", "namespace": NAMESPACE}, "spec": {}})
    world.bind("again", str(made.id))
    await world.write(b"2")
    await completed(world, "one", "again")
    assert world.bytes_of(world.disk_now) == b"1"
    await completed(world, "two", "s1")


# ---- waiting


async def test_it_waits_for_the_pod_names_it_and_goes_on_by_itself(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    await world.write(b"2")
    world.run_pod("web-7f-x", owner=("ReplicaSet", "web-7f"))
    world.ask()
    await world.run(until="WaitingForRelease")
    for _ in range(5):
        assert await world.step()
    status = world.status()
    assert status["reason"] == "VolumeInUse"
    assert "pod web-7f-x (ReplicaSet web-7f): scale it to 0" in status["message"]
    assert not world.got(ROLLBACKS, "back")["metadata"].get("finalizers")
    assert await world.write(b"3"), "while it waits nothing is refused"
    world.end_pod("web-7f-x")
    await world.run()
    assert world.status()["phase"] == "Completed"
    name = world.status()["safetySnapshotName"]
    await completed(world, "undo", name)
    assert world.bytes_of(world.disk_now) == b"3"


async def test_a_pod_that_stays_makes_it_time_out_and_a_new_one_follows(world: World) -> None:
    await world.written_since_s1()
    world.run_pod()
    await failed(world, "DeadlineExceeded", "not begun within 30 s", "pod web-1", timeout="30s")
    assert len(world.fake.all(SNAPSHOTS)) == 1
    world.end_pod()
    await completed(world, "again", "s1")


async def test_what_is_missing_is_waited_for(world: World) -> None:
    await world.disk()
    world.ask(to="later")
    assert await world.step()
    assert (world.status()["phase"], world.status()["reason"]) == ("Pending", "SnapshotNotFound")
    await world.cut("later")
    await world.run()
    assert world.status()["phase"] == "Completed"
    await failed(
        world, "DeadlineExceeded", "waiting for VolumeSnapshot shop/never", name="back", to="never", timeout="5s"
    )


async def test_two_rollbacks_of_one_claim_take_turns(world: World) -> None:
    await world.written_since_s1()
    await world.cut("s2")
    world.ask("one", "s1")
    world.ask("two", "s2")
    await world.run("one", until="SafetySnapshot")
    for _ in range(4):
        await world.step("two")
    assert world.status("two")["reason"] == "VolumeHeld"
    assert "VolumeRollback shop/one" in world.status("two")["message"]
    await world.run("one")
    await world.run("two")
    assert world.bytes_of(world.disk_now) == b"2"
    assert [r.snapshot for r in world.disk_now.rollbacks] == [
        world.status("one")["snapshotHandle"],
        world.status("two")["snapshotHandle"],
    ]


# ---- refusals


async def test_another_disks_snapshot_is_refused(world: World) -> None:
    await world.disk()
    other = await world.agent.services.volumes.create(
        world.made.request.__class__("w", world.made.request.range, world.made.request.capabilities)
    )
    await world.cut("theirs", str(other.id))
    world.run_pod()
    await failed(world, "SnapshotOfOtherVolume", "shop/theirs", "shop/v1", "dataSource", to="theirs")


async def test_a_claim_made_again_under_the_same_name_is_another_disk(world: World) -> None:
    await world.disk()
    old = await world.cut("s1")
    await world.disk()
    world.fake.put(SNAPSHOTS, {"metadata": {"name": "s1", "namespace": NAMESPACE}, "spec": {}})
    world.bind("s1", str(old.id))
    await failed(world, "SnapshotOfOtherVolume", "shop/s1")


async def test_a_content_re_pointed_by_hand_is_refused(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    name = world.got(SNAPSHOTS, "s1")["status"]["boundVolumeSnapshotContentName"]
    world.fake.change(SNAPSHOT_CONTENTS, name, {"spec": {"volumeSnapshotRef": {"namespace": "victim"}}})
    await failed(world, "SnapshotContentMisbound", name, "victim/s1")


async def test_without_a_class_it_fails_untouched(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    world.fake.remove(SNAPSHOT_CLASSES, "tidemark")
    await failed(world, "NoDefaultSnapshotClass", "volumeSnapshotClassName")
    assert len(world.fake.all(SNAPSHOTS)) == 1


async def test_a_snapshot_that_vanishes_before_the_exchange_is_told_and_everything_is_given_back(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    await world.write(b"2")
    world.ask()
    await world.run(until="RollingBack")
    world.fake.remove(SNAPSHOTS, "s1", NAMESPACE)
    await world.run()
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Failed", "SnapshotNotFound")
    assert world.bytes_of(world.disk_now) == b"2"
    assert world.disk_now.rollbacks == ()
    nothing_left(world)


async def test_a_quota_that_forbids_the_safety_snapshot_is_told(world: World) -> None:
    from support.fake_api import Fault

    await world.disk()
    await world.cut("s1")

    def forbid(call: object) -> None:
        if call.verb == "create" and call.kind is SNAPSHOTS:  # type: ignore[attr-defined]
            raise Fault(403, "Forbidden", "exceeded quota: snapshots")

    world.fake.hooks.append(forbid)
    await failed(world, "DeadlineExceeded", "exceeded quota: snapshots", timeout="20s")


# ---- names that were used before


async def test_the_same_object_made_again_changes_nothing(world: World) -> None:
    await world.written_since_s1()
    await completed(world, "back", "s1")
    await world.write(b"3")
    await world.ask_to_go()
    assert not world.there()
    made = world.ask()
    world.run_pod()
    await world.run()
    status = world.status()
    assert (status["phase"], status["reason"]) == ("Completed", "AlreadyCompleted"), "at once, pod or no pod"
    assert world.got(ROLLBACKS, "back")["metadata"]["uid"] == made["metadata"]["uid"]
    assert world.bytes_of(world.disk_now) == b"3"
    world.end_pod()
    await world.ask_to_go()
    await world.cut("s9")
    world.ask(to="s9")
    await world.run()
    assert (world.status()["phase"], world.status()["reason"]) == ("Failed", "AlreadyCompleted")
    assert world.bytes_of(world.disk_now) == b"3"
    await completed(world, "another-name", "s1")


async def test_what_failed_or_was_cancelled_spends_no_name(world: World) -> None:
    await world.written_since_s1()
    world.run_pod()
    await failed(world, "DeadlineExceeded", timeout="5s")
    world.end_pod()
    await world.ask_to_go()
    world.ask()
    await world.run(until="SafetySnapshot")
    await world.ask_to_go()
    await world.run()
    assert not world.there()
    nothing_left(world)
    assert "RollbackCancelled" in told(world, "PersistentVolumeClaim")
    await completed(world, "back", "s1")
    assert world.bytes_of(world.disk_now) == b"1"


# ---- deletes


@pytest.mark.parametrize("phase", ["WaitingForRelease", "SafetySnapshot"])
async def test_deleted_before_rolling_back_it_is_cancelled(world: World, phase: str) -> None:
    await world.written_since_s1()
    world.ask()
    await world.run(until=phase)
    await world.ask_to_go()
    if world.there():
        assert await world.run() is None
    assert not world.there()
    nothing_left(world)
    assert world.bytes_of(world.disk_now) == b"2"
    assert await world.write(b"3"), "the disk may be used again at once"


async def test_deleted_during_rolling_back_it_ends_first(world: World) -> None:
    await world.written_since_s1()
    world.ask()
    await world.run(until="RollingBack")
    await world.ask_to_go()
    assert world.there()
    await world.run()
    assert not world.there()
    nothing_left(world)
    assert world.bytes_of(world.disk_now) == b"1"
    assert "RolledBack" in told(world, "PersistentVolumeClaim")


async def test_deleted_while_the_node_is_off_it_goes_when_the_hold_has_lapsed(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    world.ask()
    await world.run(until="SafetySnapshot")
    await world.agent_down()
    await world.ask_to_go()
    assert await world.step()
    world.offset += HOLD_SECONDS - 5
    assert await world.step()
    assert world.there(), "while the hold may stand, nobody forgets it"
    world.offset += 60
    await world.run()
    assert not world.there()
    await world.agent_back()
    assert await world.write(b"3")


# ---- nodes that are off


async def test_a_node_that_is_off_before_the_hold_is_waited_for(world: World) -> None:
    await world.written_since_s1()
    await world.agent_down()
    world.ask()
    for _ in range(2):
        assert await world.step()
    assert (world.status()["phase"], world.status()["reason"]) == ("Pending", "AgentUnreachable")
    assert "n-1" in world.status()["message"]
    await world.agent_back()
    await world.run()
    assert world.status()["phase"] == "Completed"
    assert world.bytes_of(world.disk_now) == b"1"


@pytest.mark.parametrize("away", [60, 3600])
async def test_a_node_that_is_off_during_rolling_back_ends_it_when_it_is_back(world: World, away: float) -> None:
    """Whatever the timeout; and where the hold lapsed, with a new safety snapshot."""
    await world.written_since_s1()
    world.ask()
    await world.run(until="RollingBack")
    await world.agent_down()
    world.offset += away
    for _ in range(2):
        assert await world.step()
    assert (world.status()["phase"], world.status()["reason"]) == ("RollingBack", "AgentUnreachable")
    await world.agent_back()
    if away > HOLD_SECONDS:
        assert await world.write(b"3")
    await world.run()
    status = world.status()
    assert status["phase"] == "Completed"
    assert world.bytes_of(world.disk_now) == b"1"
    lapsed = away > HOLD_SECONDS
    assert status["safetySnapshotName"].endswith("-2") == lapsed
    await completed(world, "undo", status["safetySnapshotName"])
    assert world.bytes_of(world.disk_now) == (b"3" if lapsed else b"2"), "nothing is lost"


async def test_an_outcome_that_was_not_heard_is_found(world: World) -> None:
    """The exchange is made, the answer is lost with the node, and by the time it is back the hold has lapsed."""
    await world.written_since_s1()
    world.ask()
    await world.run(until="RollingBack")
    await world.step()
    assert len(world.disk_now.rollbacks) == 1
    await world.agent_down()
    world.offset += 2 * HOLD_SECONDS
    await world.step()
    await world.agent_back()
    await world.write(b"3")
    world.run_pod()
    await world.run()
    assert world.status()["phase"] == "Completed"
    assert len(world.disk_now.rollbacks) == 1
    assert world.bytes_of(world.disk_now) == b"3", "what was written since is not rolled away"


async def test_during_the_rollback_pods_and_expansion_are_kept_out_by_name(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    world.ask()
    await world.run(until="SafetySnapshot")
    assert not await world.write(b"x")
    assert world.disk_now.hold is not None
    assert world.disk_now.hold.holder.startswith("VolumeRollback shop/back ")
    assert world.got(ROLLBACKS, "back")["metadata"]["finalizers"] == [FINALIZER]
    await world.run()
    assert await world.write(b"x")


async def test_after_an_expansion_the_size_stays(world: World) -> None:
    await world.disk()
    await world.write(b"1")
    await world.cut("s1")
    await world.agent.services.volumes.expand(world.volume_id, world.made.request.range.__class__(8192))
    await completed(world, "back", "s1")
    assert world.disk_now.size == 8192
    assert world.bytes_of(world.disk_now) == b"1"


async def test_the_name_on_the_persistent_volume_survives_the_claim(world: World) -> None:
    """A retained disk that is bound to a new claim of the same name does not go back a second time."""
    await world.disk()
    await world.write(b"1")
    await world.cut("s1")
    await completed(world, "back", "s1")
    await world.write(b"3")
    await world.ask_to_go()
    world.fake.remove(PVCS, "v1", NAMESPACE)
    claim = {"metadata": {"name": "v1", "namespace": NAMESPACE}, "spec": {"volumeName": world.pv}}
    made = world.fake.put(PVCS, claim | {"status": {"phase": "Bound"}})
    world.fake.change(PVS, world.pv, {"spec": {"claimRef": {"uid": made["metadata"]["uid"]}}})
    world.ask()
    await world.run()
    assert world.status()["reason"] == "AlreadyCompleted"
    assert world.bytes_of(world.disk_now) == b"3"


async def test_a_stale_safety_snapshot_of_somebody_elses_making_is_not_used(world: World) -> None:
    await world.written_since_s1()
    made = world.ask()
    early = f"safety-{made['metadata']['uid']}"
    await world.cut(early)
    await world.write(b"3")
    await world.run()
    assert world.status()["reason"] == "DeadlineExceeded"
    assert f"{early} exists and does not belong to this rollback; delete it" in world.status()["message"]
    assert world.bytes_of(world.disk_now) == b"3"
    nothing_left(world)
    await world.snapshots.create(SnapshotRequest("unrelated", world.volume_id))


# ---- the version before

EARLIER = {
    "VolumeReleased": "DiskReleased",
    "VolumeInUse": "DiskInUse",
    "CreatingSafetySnapshot": "SafetySnapshotMaking",
}


@pytest.mark.parametrize("phase", ["WaitingForRelease", "SafetySnapshot", "RollingBack", "Completed"])
async def test_what_the_version_before_began_is_finished(world: World, phase: str) -> None:
    """It had other reasons, and the condition Completed instead of Complete."""
    await world.disk()
    await world.write(b"1")
    await world.cut("s1")
    await world.write(b"2")
    world.ask()
    await world.run(until=phase)
    rollback = world.got(ROLLBACKS, "back")
    status = rollback["status"]
    status["reason"] = EARLIER.get(status["reason"], status["reason"])
    status["conditions"] = [
        condition | {"type": EARLIER.get(condition["type"], condition["type"])}
        for condition in status["conditions"]
        if condition["type"] in ("VolumeReleased", "SafetySnapshotReady", "Completed", "Failed")
    ]
    world.fake.put(ROLLBACKS, rollback)
    await world.start()
    await world.run()
    assert world.status()["phase"] == "Completed"
    by_type = {condition["type"]: condition["status"] for condition in world.status()["conditions"]}
    assert (by_type["Complete"], by_type["Reconciling"], by_type["VolumeReleased"]) == ("True", "False", "True")
    assert "DiskReleased" not in by_type
    assert len(world.disk_now.rollbacks) == 1
    assert world.bytes_of(world.disk_now) == b"1"
    nothing_left(world)

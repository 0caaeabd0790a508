"""Safety snapshots of whole rollbacks: how many stay, and which stay whatever their number."""

from __future__ import annotations

from rollback_world import NAMESPACE, World, completed

from csi_driver.kube.resources import PVCS, SNAPSHOTS


async def old_safety_snapshot(world: World) -> str:
    """The one of a rollback to `s1` that was completed in January."""
    await world.disk()
    await world.cut("s1")
    first = str((await completed(world, "one", "s1"))["safetySnapshotName"])
    made = world.got(SNAPSHOTS, first)
    made["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    world.fake.put(SNAPSHOTS, made)
    return first


async def test_declined_there_is_no_safety_snapshot(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    await world.write(b"2")
    status = await completed(world, "back", "s1", safetySnapshot=False)
    assert len(world.fake.all(SNAPSHOTS)) == 1
    assert "safetySnapshotName" not in status
    assert "was not kept, as declined" in str(status["message"])


async def test_safety_snapshots_stay_as_many_as_are_asked_for(world: World) -> None:
    await world.disk()
    await world.cut("s1")
    names = []
    for i in range(4):
        await world.write(b"%d" % i)
        status = await completed(world, f"r{i}", "s1", keepSafety=2)
        names.append(status["safetySnapshotName"])
        for made in world.fake.all(SNAPSHOTS):
            if made["metadata"]["name"] == names[-1]:
                made["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:0{i}Z"
                world.fake.put(SNAPSHOTS, made)
    left = {s["metadata"]["name"] for s in world.fake.all(SNAPSHOTS)} - {"s1"}
    assert left == set(names[-2:])


async def test_a_safety_snapshot_that_somebody_has_just_asked_to_go_back_to_stays(world: World) -> None:
    """The other rollback was applied a moment ago, and no controller has looked at it yet."""
    first = await old_safety_snapshot(world)
    world.ask("later", first)
    await completed(world, "two", "s1", keepSafety=1)
    assert world.fake.get(SNAPSHOTS, first, NAMESPACE) is not None
    await world.run("later")
    assert world.status("later")["phase"] == "Completed"


async def test_a_safety_snapshot_that_a_restore_waits_to_read_stays(world: World) -> None:
    first = await old_safety_snapshot(world)
    source = {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": first}
    claim = {"metadata": {"name": "restored", "namespace": NAMESPACE}, "spec": {"dataSource": source}}
    world.fake.put(PVCS, claim | {"status": {"phase": "Pending"}})
    second = (await completed(world, "two", "s1", keepSafety=1))["safetySnapshotName"]
    assert world.fake.get(SNAPSHOTS, first, NAMESPACE) is not None
    world.fake.change(PVCS, "restored", {"status": {"phase": "Bound"}}, NAMESPACE)
    await completed(world, "three", "s1", keepSafety=1)
    left = {s["metadata"]["name"] for s in world.fake.all(SNAPSHOTS)}
    assert first not in left
    assert len(left - {"s1", second}) == 1

"""Safety snapshots of whole rollbacks: how many stay, and which stay whatever their number."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from support.rollback_cases import SPEC, TARGET, UID, earlier_safety, safety
from support.rollback_rig import NAMESPACE, World, completed

from csi_driver.kube.resources import PVCS, SNAPSHOTS
from csi_driver.operator.rollback.safety_snapshots import (
    KEEP_LABEL,
    expired_snapshots,
    safety_snapshot,
    snapshots_of_rollback,
)

UIDS = [f"{i:08}-0000-4000-8000-000000000000" for i in range(60)]


def test_a_safety_snapshot_outlives_its_rollback_and_says_whose_it_is() -> None:
    made = safety_snapshot(SPEC, TARGET.volume_id, "tidemark", 1)
    assert made["metadata"]["name"] == f"safety-{UID}"
    assert made["metadata"]["labels"] == {"tidemark.dev/safety": UID}
    assert "ownerReferences" not in made["metadata"]
    assert made["spec"] == {"volumeSnapshotClassName": "tidemark", "source": {"persistentVolumeClaimName": "v1"}}


def test_own_are_told_by_label_and_name() -> None:
    tenth, second = safety(10), safety(2)
    strange = safety()
    strange["metadata"]["name"] = "safety-by-hand"
    other = earlier_safety(1, UIDS[1])
    assert snapshots_of_rollback(SPEC, [tenth, strange, safety(), other, second]) == [safety(), second, tenth]


def test_beyond_the_newest_they_are_surplus() -> None:
    old = [earlier_safety(i, UIDS[i]) for i in range(5)]
    assert expired_snapshots(SPEC, TARGET.volume_id, [*old, safety()], ()) == [old[2], old[1], old[0]]
    assert expired_snapshots(replace(SPEC, keep_safety=1), TARGET.volume_id, [*old, safety()], ()) == old[::-1]
    assert expired_snapshots(replace(SPEC, keep_safety=6), TARGET.volume_id, [*old, safety()], ()) == []


def test_some_are_left_alone() -> None:
    once = replace(SPEC, keep_safety=1)
    kept = earlier_safety(1, UIDS[1])
    kept["metadata"]["labels"][KEEP_LABEL] = ""
    leaving = earlier_safety(2, UIDS[2], deletionTimestamp="2027-01-01T00:00:00Z")
    needed = earlier_safety(3, UIDS[3])
    elsewhere = earlier_safety(4, UIDS[4], annotations={"tidemark.dev/disk": "the disk before, under the same claim"})
    unlabelled = earlier_safety(5, UIDS[5], labels={})
    spare = earlier_safety(6, UIDS[6])
    all_of_them = [kept, leaving, needed, elsewhere, unlabelled, spare, safety()]
    assert expired_snapshots(once, TARGET.volume_id, all_of_them, {needed["metadata"]["name"]}) == [spare]


def test_only_ready_ones_are_counted() -> None:
    """One that never became ready cannot be rolled back to: it is not kept instead of one that is."""
    broken = earlier_safety(30, UIDS[30])
    broken["status"]["readyToUse"] = False
    old = [earlier_safety(i, UIDS[i]) for i in range(3)]
    assert expired_snapshots(replace(SPEC, keep_safety=2), TARGET.volume_id, [broken, *old], ()) == [old[0]], (
        "the newest may yet be ready"
    )
    assert expired_snapshots(replace(SPEC, keep_safety=2), TARGET.volume_id, [broken, *old, safety()], ()) == [
        broken,
        old[1],
        old[0],
    ]


@given(st.lists(st.tuples(st.integers(0, 59), st.booleans()), max_size=20, unique_by=lambda e: e[0]), st.integers(1, 5))
def test_the_newest_ready_one_is_never_surplus(made: list[tuple[int, bool]], keep: int) -> None:
    items = []
    for second, ready in made:
        item = earlier_safety(second, UIDS[second])
        item["status"]["readyToUse"] = ready
        items.append(item)
    gone = expired_snapshots(replace(SPEC, keep_safety=keep), TARGET.volume_id, items, ())
    ready = sorted((second for second, ready in made if ready), reverse=True)
    left = [s for s, r in made if r and f"safety-{UIDS[s]}" not in {g["metadata"]["name"] for g in gone}]
    assert sorted(left, reverse=True) == ready[:keep]


# ---- in a cluster


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
    assert "no safety snapshot was taken" in str(status["message"])


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

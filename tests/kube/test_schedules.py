"""Schedules against an API in memory: what is made, what is left out, and what the status says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.schedule_rig import START, Operator, World, handle

from csi_driver.domain.errors import Unavailable
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.resources import GROUP_CONTENTS, GROUP_SNAPSHOTS, PVCS, PVS, ROLLBACKS, SCHEDULES, SNAPSHOTS
from csi_driver.operator.labels import KEEP_LABEL


@pytest.fixture
async def world(fake: FakeApi) -> AsyncIterator[World]:
    made = World(fake)
    yield made
    await made.close()


@pytest.fixture
async def operator(world: World) -> Operator:
    return await world.operator()


async def hours(world: World, operator: Operator, *when: int) -> None:
    for hour in when:
        world.pass_to(17, hour)
        await operator.settle()


async def test_one_snapshot_of_each_claim_when_the_time_comes(world: World, operator: Operator) -> None:
    for name in ("a", "b"):
        world.claim(name)
    world.claim("other", labels={"app": "web"})
    world.schedule()
    await operator.settle()
    assert world.snapshots() == []
    assert world.status()["nextScheduleTime"] == "2026-06-17T13:00:00Z"
    await hours(world, operator, 13)
    assert world.snapshots() == [("a", "06-17T13:00"), ("b", "06-17T13:00")]
    status = world.status()
    assert status["lastScheduleTime"] == status["lastSuccessfulTime"] == "2026-06-17T13:00:00Z"
    assert status["nextScheduleTime"] == "2026-06-17T14:00:00Z"
    assert "run" not in status
    assert status["claims"] == [{"name": "a", "kept": 1, "failed": 0}, {"name": "b", "kept": 1, "failed": 0}]
    assert [world.condition(kind)["status"] for kind in ("Ready", "ClaimsSelected", "Complete")] == ["True"] * 3
    assert operator.counts.made_ == 2
    assert operator.counts.late_ == {("default", "s"): None}
    found = world.fake.all(SNAPSHOTS)[0]
    assert f"tidemark.dev/schedule={found['metadata']['labels']['tidemark.dev/schedule']}" == status["selector"]
    assert "ownerReferences" not in found["metadata"]


async def test_claims_that_cannot_be_served_are_named_and_stop_nobody(world: World, operator: Operator) -> None:
    world.claim("a")
    world.claim("foreign", driver="other.example.com")
    world.claim("unbound", phase="Pending")
    world.schedule()
    await hours(world, operator, 13)
    assert world.snapshots() == [("a", "06-17T13:00")]
    covered = world.condition("ClaimsSelected")
    assert (covered["status"], covered["reason"]) == ("False", "ClaimsSkipped")
    assert "foreign (its driver is other.example.com" in covered["message"]
    assert "unbound (it is not bound)" in covered["message"]
    assert world.condition("Complete")["status"] == "True"


async def test_a_claim_that_came_after_the_time_waits_for_the_next(world: World, operator: Operator) -> None:
    world.schedule()
    world.claim("late", created=START + 3602)
    world.now = START + 3610
    await operator.settle()
    assert world.snapshots() == []
    await hours(world, operator, 14)
    assert world.snapshots() == [("late", "06-17T14:00")]


async def test_a_snapshot_that_somebody_deletes_is_not_made_again(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule()
    await hours(world, operator, 13)
    world.fake.remove(SNAPSHOTS, world.fake.all(SNAPSHOTS)[0]["metadata"]["name"])
    await operator.settle()
    assert world.snapshots() == []


async def test_retention(world: World, operator: Operator) -> None:
    for name in ("a", "b"):
        world.claim(name)
    world.schedule(retention={"keepLast": 2})
    await hours(world, operator, 13, 14)
    world.fake.change(SNAPSHOTS, _name(world, "a", "06-17T13"), {"metadata": {"labels": {KEEP_LABEL: ""}}})
    await hours(world, operator, 15, 16)
    kept = [
        ("a", "06-17T13:00"),
        ("a", "06-17T15:00"),
        ("b", "06-17T15:00"),
        ("a", "06-17T16:00"),
        ("b", "06-17T16:00"),
    ]
    assert world.snapshots() == kept
    assert operator.counts.deleted_ == 3
    for call in world.fake.asked("delete", SNAPSHOTS):
        assert set(call.body["preconditions"]) == {"uid", "resourceVersion"}


async def test_what_is_being_read_stays_until_it_was_read(world: World, operator: Operator) -> None:
    for name in ("a", "b"):
        world.claim(name)
    world.schedule(retention={"keepLast": 1})
    await hours(world, operator, 13)
    source = {"kind": "VolumeSnapshot", "apiGroup": "snapshot.storage.k8s.io", "name": _name(world, "a", "06-17T13")}
    world.fake.put(
        PVCS, {"metadata": {"name": "restore"}, "spec": {"dataSource": source}, "status": {"phase": "Pending"}}
    )
    back = {"claimName": "b", "snapshotName": _name(world, "b", "06-17T13")}
    world.fake.put(ROLLBACKS, {"metadata": {"name": "back"}, "spec": back})
    await hours(world, operator, 14)
    assert len(world.snapshots()) == 4
    world.fake.change(PVCS, "restore", {"status": {"phase": "Bound"}})
    await operator.settle()
    assert ("a", "06-17T13:00") not in world.snapshots()
    world.fake.change(ROLLBACKS, "back", {"status": {"phase": "Completed"}})
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T14:00"), ("b", "06-17T14:00")]


async def test_what_others_made_is_left_alone(world: World, operator: Operator) -> None:
    """A copy of a scheduled snapshot under another name has all its labels, and is somebody else's."""
    world.claim("a")
    world.schedule(retention={"keepLast": 1})
    await hours(world, operator, 13)
    copied = world.fake.all(SNAPSHOTS)[0]
    meta = {key: copied["metadata"][key] for key in ("labels", "annotations")}
    world.fake.put(SNAPSHOTS, {**copied, "metadata": {"name": "mine", **meta}})
    await hours(world, operator, 14, 15)
    assert sorted(s["metadata"]["name"] for s in world.fake.all(SNAPSHOTS)) == [
        "a-20260617-150000-" + _name(world, "a", "06-17T15")[-10:],
        "mine",
    ]


async def test_a_change_between_the_listing_and_the_deletion_keeps_it(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(retention={"keepLast": 1})
    await hours(world, operator, 13)
    first = _name(world, "a", "06-17T13")

    def label(call: Call) -> None:
        if call.verb == "delete" and call.name == first:
            world.fake.hooks.clear()
            world.fake.change(SNAPSHOTS, first, {"metadata": {"labels": {KEEP_LABEL: "audit"}}})

    world.fake.hooks.append(label)
    await hours(world, operator, 14)
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T14:00")]


async def test_a_new_disk_under_an_old_name_is_a_new_series(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(retention={"keepLast": 1})
    await hours(world, operator, 13)
    world.fake.remove(PVCS, "a")
    world.claim("a", disk="another")
    await hours(world, operator, 14, 15)
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T15:00")]
    assert world.status()["orphanedSnapshots"] == 1


@pytest.mark.parametrize("wanted", [False, True])
async def test_snapshots_of_a_claim_that_is_deleted(world: World, operator: Operator, wanted: bool) -> None:
    for name in ("a", "b"):
        world.claim(name)
    world.schedule(deleteWithClaim=wanted)
    await hours(world, operator, 13, 14)
    world.fake.change(SNAPSHOTS, _name(world, "a", "06-17T13"), {"metadata": {"labels": {KEEP_LABEL: ""}}})
    world.fake.change(PVCS, "a", {"metadata": {"deletionTimestamp": "2026-06-17T14:10:00Z"}})
    await operator.settle()
    assert len(world.snapshots()) == 4  # it is not gone yet
    world.fake.remove(PVCS, "a")
    await operator.settle()
    of_a = [when for claim, when in world.snapshots() if claim == "a"]
    assert of_a == (["06-17T13:00"] if wanted else ["06-17T13:00", "06-17T14:00"])


async def test_a_copy_that_lags_costs_no_snapshots(world: World, operator: Operator) -> None:
    """A claim that seems to be gone, or seems to have no disk, is asked after before its snapshots go with it."""
    world.claim("a")
    world.schedule(deleteWithClaim=True)
    await hours(world, operator, 13, 14)
    for kind, name in ((PVS, "disk-default-a"), (PVCS, "a")):
        operator.informers[kind]._drop(("" if kind == PVS else "default", name))
        await operator.reconciler.plan_and_execute(("default", "s"))
        assert len(world.snapshots()) == 2


async def test_the_schedule_comes_back_under_its_name(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(retention={"keepLast": 2})
    await hours(world, operator, 13, 14)
    world.fake.remove(SCHEDULES, "s")
    assert await operator.look() is None
    assert len(world.snapshots()) == 2
    world.schedule(retention={"keepLast": 2})
    world.fake.change(SCHEDULES, "s", {"metadata": {"uid": "another", "creationTimestamp": "2026-06-17T14:30:00Z"}})
    await hours(world, operator, 15)
    assert world.snapshots() == [("a", "06-17T14:00"), ("a", "06-17T15:00")]


async def test_at_the_cap_nothing_is_made_and_it_is_said(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(maxSnapshotsPerVolume=2)
    await hours(world, operator, 13, 14, 15)
    assert world.snapshots() == [("a", "06-17T13:00"), ("a", "06-17T14:00")]
    covered = world.condition("ClaimsSelected")
    assert covered["reason"] == "ClaimsBlocked"
    assert "maxSnapshotsPerVolume is 2" in covered["message"]
    assert operator.counts.late_["default", "s"] == START + 3 * 3600
    # One is deleted by hand: the run that waits goes on.
    world.fake.remove(SNAPSHOTS, _name(world, "a", "06-17T13"))
    world.snapshotter()
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T14:00"), ("a", "06-17T15:00")]


async def test_failures_are_kept_for_a_person_and_cleaned(world: World, operator: Operator) -> None:
    world.claim("a")
    world.claim("b")
    world.broken = {"disk-default-a"}
    world.schedule()
    await hours(world, operator, 13, 14, 15, 16, 17)
    of_a = [when for claim, when in world.snapshots() if claim == "a"]
    assert of_a == ["06-17T15:00", "06-17T16:00", "06-17T17:00"]
    assert len([claim for claim, _ in world.snapshots() if claim == "b"]) == 5
    complete = world.condition("Complete")
    assert (complete["status"], complete["reason"]) == ("False", "SnapshotsFailed")
    assert "INTERNAL" in complete["message"]
    assert operator.counts.failed_ == 5
    assert world.status()["claims"][0] == {"name": "a", "kept": 0, "failed": 3}
    world.broken = set()
    await hours(world, operator, 18)
    # What had failed before was tried again by the snapshotter, and has become ready meanwhile.
    assert world.condition("Complete")["status"] == "True"


async def test_a_node_that_is_away_holds_up_its_own_claims_only(world: World, operator: Operator) -> None:
    world.claim("far", node="n2")
    world.claim("near", node="n1")
    world.schedule()
    world.away = {"n2"}
    await hours(world, operator, 13, 14, 15)
    assert [when for claim, when in world.snapshots() if claim == "near"] == [
        "06-17T13:00",
        "06-17T14:00",
        "06-17T15:00",
    ]
    # No second one is begun while the first may yet be made, however long that takes.
    assert [when for claim, when in world.snapshots() if claim == "far"] == ["06-17T13:00"]
    assert "the previous snapshot is still in progress" in world.condition("ClaimsSelected")["message"]
    world.away = set()
    await operator.settle()
    assert [when for claim, when in world.snapshots() if claim == "far"] == ["06-17T13:00", "06-17T15:00"]
    assert world.condition("Complete")["status"] == "True"


async def test_snapshots_in_flight_are_limited_on_a_node(world: World) -> None:
    operator = await world.operator(limit=2)
    for number in range(5):
        world.claim(f"a{number}", node="n1")
        world.claim(f"b{number}", node="n2")
    world.schedule()
    world.schedule("t")
    world.slow = True
    world.pass_to(17, 13)
    for name in ("s", "t", "s", "t"):
        await operator.look(name)
    made = [claim[0] for claim, _ in world.snapshots()]
    assert (made.count("a"), made.count("b")) == (2, 2)
    world.slow = False
    for _ in range(6):
        world.snapshotter()
        await operator.settle("s")
        await operator.settle("t")
    assert len(world.snapshots()) == 20


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"cron": "0 3 * * *", "timeZone": "Europe/Atlantis"}, "UnknownTimeZone"),
        ({"cron": "0 3 * * *", "timeZone": "America"}, "UnknownTimeZone"),
        ({"cron": "0 3 * * *", "timeZone": "../../etc/passwd"}, "UnknownTimeZone"),
        ({"cron": "0 3 31 2 *"}, "UnreadableCron"),
        ({"every": "5s"}, "TooOften"),
        ({"startingDeadline": "soon"}, "UnreadableDuration"),
        ({"retention": {"keepLast": 4}, "maxSnapshotsPerVolume": 4}, "KeepLastAtCap"),
        ({"template": {"labels": {"tidemark.dev/keep": "1"}}}, "ReservedName"),
        ({"template": {"annotations": {"snapshot.storage.kubernetes.io/x": "1"}}}, "ReservedName"),
    ],
)
async def test_a_spec_that_cannot_be_followed(world: World, operator: Operator, spec: Any, reason: str) -> None:
    world.claim("a")
    world.schedule(**spec)
    await hours(world, operator, 13)
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert world.snapshots() == []
    assert world.reasons() == [reason]
    assert "nextScheduleTime" not in world.status()


async def test_a_template_and_a_class(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(
        volumeSnapshotClassName="slow",
        template={"labels": {"team": "x"}, "annotations": {"example.com/why": "nightly"}},
    )
    await hours(world, operator, 13)
    found = world.fake.all(SNAPSHOTS)[0]
    assert found["spec"]["volumeSnapshotClassName"] == "slow"
    assert found["metadata"]["labels"]["team"] == "x"
    assert found["metadata"]["annotations"]["example.com/why"] == "nightly"


async def test_groups(world: World, operator: Operator) -> None:
    for name, node in (("a", "n1"), ("b", "n1"), ("c", "n2")):
        world.claim(name, node)
    world.claim("unbound", phase="Pending")
    world.claim("foreign", driver="other.example.com", labels={"app": "db", "group.tidemark.dev/s": "n1"})
    world.schedule(grouped=True, retention={"keepLast": 1})
    await hours(world, operator, 13)
    groups = world.fake.all(GROUP_SNAPSHOTS)
    assert [g["spec"]["source"]["selector"]["matchLabels"] for g in groups] == [
        {"group.tidemark.dev/s": n} for n in ("n1", "n2")
    ]
    labels = {c["metadata"]["name"]: c["metadata"]["labels"].get("group.tidemark.dev/s") for c in world.fake.all(PVCS)}
    assert labels == {"a": "n1", "b": "n1", "c": "n2", "unbound": None, "foreign": None}
    assert [s["spec"]["source"]["persistentVolumeClaimName"] for s in world.fake.all(SNAPSHOTS)].count("a") == 1
    assert world.status()["snapshots"] == 3
    await hours(world, operator, 14)
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 2
    assert [call.kind for call in world.fake.calls if call.verb == "delete"] == [GROUP_SNAPSHOTS] * 2
    assert len(world.fake.all(SNAPSHOTS)) == 3


async def test_a_group_stays_whole_for_what_one_member_needs(world: World, operator: Operator) -> None:
    world.claim("a")
    world.claim("b")
    world.schedule(grouped=True, retention={"keepLast": 1})
    await hours(world, operator, 13)
    member = world.fake.all(SNAPSHOTS)[0]["metadata"]["name"]
    await operator.see()

    def label(call: Call) -> None:
        """In the last moment: the informers have not seen it, and the group itself has not changed."""
        if call.verb == "list" and call.kind == SNAPSHOTS and call.query.get("labelSelector"):
            world.fake.hooks.clear()
            world.fake.change(SNAPSHOTS, member, {"metadata": {"labels": {KEEP_LABEL: ""}}})

    world.fake.hooks.append(label)
    await hours(world, operator, 14)
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 2
    world.fake.change(SNAPSHOTS, member, {"metadata": {"labels": {KEEP_LABEL: None}}})
    await operator.settle()
    assert len(world.fake.all(GROUP_SNAPSHOTS)) == 1


async def test_a_group_has_a_limit(world: World, operator: Operator) -> None:
    for number in range(65):
        world.claim(f"a{number}")
    world.claim("far", node="n2")
    world.schedule(grouped=True)
    await hours(world, operator, 13)
    assert [g["metadata"]["annotations"]["tidemark.dev/node"] for g in world.fake.all(GROUP_SNAPSHOTS)] == ["n2"]
    assert "a group has at most 64" in world.condition("ClaimsSelected")["message"]


async def test_without_group_snapshots_in_the_cluster(fake: FakeApi, world: World) -> None:
    fake.unserved |= {GROUP_SNAPSHOTS, GROUP_CONTENTS}
    operator = Operator(world, *[await fake.connect()] * 2, 4)
    for kind in (GROUP_SNAPSHOTS, GROUP_CONTENTS):
        del operator.informers[kind]
    await operator.start()
    world.claim("a")
    world.schedule()
    await hours(world, operator, 13)
    assert world.snapshots() == [("a", "06-17T13:00")]
    world.schedule(grouped=True)
    await operator.settle()
    assert world.condition("Ready")["reason"] == "NoGroupSnapshots"
    await operator.stop()


async def test_labels_of_groups_that_are_gone_are_taken_away(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule(grouped=True)
    await hours(world, operator, 13)
    world.fake.remove(SCHEDULES, "s")
    await operator.see()
    await operator.reconciler.remove_stale_labels()
    assert world.fake.all(PVCS)[0]["metadata"]["labels"] == {"app": "db"}


async def test_what_the_api_refuses_is_told_and_stops_nobody(world: World, operator: Operator) -> None:
    world.claim("a")
    world.claim("b")
    world.schedule()

    def quota(call: Call) -> None:
        if (
            call.verb == "create"
            and call.kind == SNAPSHOTS
            and call.body["metadata"]["annotations"]["tidemark.dev/claim"] == "a"
        ):
            raise Fault(403, "Forbidden", "exceeded quota")

    world.fake.hooks.append(quota)
    world.pass_to(17, 13)
    await operator.look()
    world.snapshotter()
    await operator.look()
    assert world.snapshots() == [("b", "06-17T13:00")]
    assert world.status()["run"]["waiting"] == ["a"]
    assert "CreateFailed" in world.reasons()
    world.fake.hooks.clear()
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00"), ("b", "06-17T13:00")]


async def test_an_api_that_is_away_is_told_to_the_caller_and_nothing_is_lost(world: World, operator: Operator) -> None:
    world.claim("a")
    world.schedule()
    await operator.settle()

    def away(call: Call) -> None:
        raise Fault(503, "ServiceUnavailable", "gone")

    world.pass_to(17, 13)
    world.fake.hooks.append(away)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await operator.reconciler.plan_and_execute(("default", "s"))
    world.fake.hooks.clear()
    world.now += 600
    await operator.settle()
    assert world.snapshots() == [("a", "06-17T13:00")]


def test_handles_of_the_rig_are_of_the_driver() -> None:
    from csi_driver.operator.schedule.objects import owner_of

    assert owner_of(handle("x", "n7")) == "n7"
    assert format_timestamp(START) == "2026-06-17T12:00:00Z"


def _name(world: World, claim: str, when: str) -> str:
    found = [
        s["metadata"]["name"]
        for s in world.fake.all(SNAPSHOTS)
        if (a := s["metadata"].get("annotations") or {}).get("tidemark.dev/claim") == claim
        and a["tidemark.dev/scheduled-for"][5:].startswith(when)
    ]
    return str(found[0])

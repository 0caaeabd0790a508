"""The small parts of a rollback: its values, its safety snapshots, the names that are spent, the status."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollback_cases import CREATED, TARGET, UID, WISH, earlier_safety, safety, volume

from csi_driver.domain.errors import Damaged
from csi_driver.operator.labels import KEEP_LABEL
from csi_driver.operator.rollback.actions import UpdateStatus
from csi_driver.operator.rollback.completed import REMEMBERED, SPENT_ANNOTATION, read_completed, record_completed
from csi_driver.operator.rollback.resource import Phase, duration, parse_spec, read_progress, seconds, stamp, unfinished
from csi_driver.operator.rollback.safety_snapshots import (
    expired_snapshots,
    safety_snapshot,
    snapshots_of_rollback,
)
from csi_driver.operator.rollback.status import status_of

UIDS = [f"{i:08}-0000-4000-8000-000000000000" for i in range(60)]


def rollback(**status: Any) -> dict[str, Any]:
    meta = {"namespace": "shop", "name": "back", "uid": UID, "creationTimestamp": stamp(CREATED), "generation": 1}
    return {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"}, "status": status}


def test_an_object_is_read_with_the_defaults_of_its_definition() -> None:
    assert parse_spec(rollback()) == WISH
    made = rollback()
    made["spec"] |= {"safetySnapshot": False, "keepSafety": 7, "timeout": "1h30m", "volumeSnapshotClassName": "gold"}
    assert parse_spec(made) == replace(WISH, safety=False, keep=7, timeout=5400.0, snapshot_class="gold")


def test_a_status_that_is_missing_is_the_beginning() -> None:
    progress = read_progress(rollback())
    assert (progress.phase, progress.foreign, progress.started, progress.rolling) == (None, "", CREATED, 0.0)
    assert unfinished(rollback())
    assert not unfinished(rollback(phase="Completed"))
    guarded = rollback(phase="Failed")
    guarded["metadata"]["finalizers"] = ["tidemark.dev/rollback"]
    assert unfinished(guarded)


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h1m1s", 7261), ("5ms", 0.005)]
)
def test_durations(text: str, value: float) -> None:
    assert duration(text) == value


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-1m", "1.5h", "\u0661m", "10mm"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration(text)


@given(st.integers(0, 4_000_000_000))
def test_times_come_back(moment: int) -> None:
    assert seconds(stamp(moment)) == moment


# ---- safety snapshots


def test_a_safety_snapshot_outlives_its_rollback_and_says_whose_it_is() -> None:
    made = safety_snapshot(WISH, TARGET.volume_id, "tidemark", 1)
    assert made["metadata"]["name"] == f"safety-{UID}"
    assert made["metadata"]["labels"] == {"tidemark.dev/safety": UID}
    assert "ownerReferences" not in made["metadata"]
    assert made["spec"] == {"volumeSnapshotClassName": "tidemark", "source": {"persistentVolumeClaimName": "v1"}}


def test_own_are_told_by_label_and_name() -> None:
    tenth, second = safety(10), safety(2)
    strange = safety()
    strange["metadata"]["name"] = "safety-by-hand"
    other = earlier_safety(1, UIDS[1])
    assert snapshots_of_rollback(WISH, [tenth, strange, safety(), other, second]) == [safety(), second, tenth]


def test_beyond_the_newest_they_are_surplus() -> None:
    old = [earlier_safety(i, UIDS[i]) for i in range(5)]
    assert expired_snapshots(WISH, TARGET.volume_id, [*old, safety()], ()) == [old[2], old[1], old[0]]
    assert expired_snapshots(replace(WISH, keep=1), TARGET.volume_id, [*old, safety()], ()) == old[::-1]
    assert expired_snapshots(replace(WISH, keep=6), TARGET.volume_id, [*old, safety()], ()) == []


def test_some_are_left_alone() -> None:
    once = replace(WISH, keep=1)
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
    """One that never became ready is no way back: it is not kept instead of one that is."""
    broken = earlier_safety(30, UIDS[30])
    broken["status"]["readyToUse"] = False
    old = [earlier_safety(i, UIDS[i]) for i in range(3)]
    assert expired_snapshots(replace(WISH, keep=2), TARGET.volume_id, [broken, *old], ()) == [old[0]], (
        "the newest may yet be ready"
    )
    assert expired_snapshots(replace(WISH, keep=2), TARGET.volume_id, [broken, *old, safety()], ()) == [
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
    gone = expired_snapshots(replace(WISH, keep=keep), TARGET.volume_id, items, ())
    ready = sorted((second for second, ready in made if ready), reverse=True)
    left = [s for s, r in made if r and f"safety-{UIDS[s]}" not in {g["metadata"]["name"] for g in gone}]
    assert sorted(left, reverse=True) == ready[:keep]


# ---- spent names


def test_spent_names_are_read_as_they_were_written() -> None:
    written = record_completed(volume(), WISH, "2027-01-01T00:00:00Z")
    read = read_completed(volume(metadata={"annotations": {SPENT_ANNOTATION: written}}))
    assert read["shop/back"].uid == UID
    assert read["shop/back"].snapshot == "s1"
    again = record_completed(
        volume(metadata={"annotations": {SPENT_ANNOTATION: written}}), replace(WISH, uid="u2"), "later"
    )
    assert json.loads(again) == {"shop/back": {"uid": "u2", "snapshot": "s1", "at": "later"}}


def test_the_newest_names_are_remembered_in_bounded_space() -> None:
    text = ""
    for i in range(REMEMBERED + 5):
        wish = replace(WISH, namespace="n" * 63, name=f"{i:03}" + "x" * 250, snapshot="s" * 253)
        text = record_completed(
            volume(metadata={"annotations": {SPENT_ANNOTATION: text}}), wish, "2027-01-01T00:00:00Z"
        )
    read = list(read_completed(volume(metadata={"annotations": {SPENT_ANNOTATION: text}})))
    assert len(read) == REMEMBERED
    assert read[0].startswith("n" * 63 + "/005")
    assert len(text) < 100 * 1024


@pytest.mark.parametrize("text", ["{", "[]", '{"shop/back": 1}', '{"shop/back": {"uid": "1"}}', "null"])
def test_names_that_cannot_be_read_may_be_spent(text: str) -> None:
    noted = volume(metadata={"name": "pvc-1", "annotations": {SPENT_ANNOTATION: text}})
    for read in (lambda: read_completed(noted), lambda: record_completed(noted, WISH, "2027-01-01T00:00:00Z")):
        with pytest.raises(Damaged, match=r"tidemark.dev/rollbacks of PersistentVolume pvc-1 cannot be read"):
            read()


def test_without_the_annotation_no_name_is_spent() -> None:
    assert read_completed(volume(metadata={"annotations": {SPENT_ANNOTATION: ""}})) == read_completed(volume()) == {}
    assert read_completed(None) == {}


# ---- the status


def say_all(*says: tuple[float, UpdateStatus]) -> dict[str, Any]:
    made = rollback()
    for at, say in says:
        made["status"] = status_of(made, WISH, say, at)
    status: dict[str, Any] = made["status"]
    return status


def verdicts(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


WAITING = UpdateStatus(Phase.WAITING, "DiskInUse", "pod web-1", 2, TARGET)
MAKING = UpdateStatus(Phase.SAFETY, "SafetySnapshotMaking", "made", 1, TARGET, f"safety-{UID}")
ROLLING = UpdateStatus(Phase.ROLLING, "RollingBack", "goes back", 0, TARGET, f"safety-{UID}")
COMPLETED = UpdateStatus(Phase.COMPLETED, "RolledBack", "done", safety=f"safety-{UID}")


def test_a_status_tells_the_whole_story() -> None:
    waiting = say_all((CREATED + 1, WAITING))
    assert waiting["phase"] == "WaitingForRelease"
    assert waiting["volumeHandle"] == TARGET.volume_id
    assert verdicts(waiting) == dict.fromkeys(("DiskReleased", "SafetySnapshotReady", "Completed", "Failed"), "False")
    making = say_all((CREATED + 1, WAITING), (CREATED + 2, MAKING))
    assert verdicts(making)["DiskReleased"] == "True"
    assert verdicts(making)["SafetySnapshotReady"] == "False"
    ended = say_all((CREATED + 1, WAITING), (CREATED + 2, MAKING), (CREATED + 3, ROLLING), (CREATED + 4, COMPLETED))
    assert verdicts(ended) == {
        "DiskReleased": "True",
        "SafetySnapshotReady": "True",
        "Completed": "True",
        "Failed": "False",
    }
    assert (ended["rollingBackTime"], ended["completionTime"]) == (stamp(CREATED + 3), stamp(CREATED + 4))
    assert ended["startTime"] == stamp(CREATED)
    assert ended["safetySnapshotName"] == f"safety-{UID}"
    assert (ended["volumeName"], ended["observedGeneration"]) == ("pvc-1", 1)


def test_a_condition_keeps_its_time_while_it_stays_what_it_is() -> None:
    status = say_all((CREATED + 1, WAITING), (CREATED + 9, replace(WAITING, message="pod web-2")))
    condition = next(c for c in status["conditions"] if c["type"] == "DiskReleased")
    assert (condition["lastTransitionTime"], condition["message"]) == (stamp(CREATED + 1), "pod web-2")
    assert say_all((CREATED + 1, WAITING)) == say_all((CREATED + 1, WAITING), (CREATED + 9, WAITING)), (
        "nothing to write"
    )


def test_what_began_again_has_a_new_start_and_keeps_when_it_first_rolled() -> None:
    lapsed = UpdateStatus(Phase.WAITING, "HoldLapsed", "anew", 0, TARGET)
    status = say_all((CREATED + 3, ROLLING), (CREATED + 1000, lapsed), (CREATED + 1003, ROLLING))
    assert status["startTime"] == stamp(CREATED + 1000)
    assert status["rollingBackTime"] == stamp(CREATED + 3)


def test_a_failure_says_so_in_its_condition() -> None:
    status = say_all((CREATED + 1, UpdateStatus(Phase.FAILED, "TimedOut", "not begun. The disk was not touched")))
    assert verdicts(status) == {
        "DiskReleased": "Unknown",
        "SafetySnapshotReady": "False",
        "Completed": "False",
        "Failed": "True",
    }
    failed = next(c for c in status["conditions"] if c["type"] == "Failed")
    assert (failed["reason"], failed["message"]) == ("TimedOut", "not begun. The disk was not touched")

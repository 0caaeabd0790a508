"""The status of a VolumeRollback: what people read, and the conditions that programs wait for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from support.rollback_cases import CREATED, SPEC, TARGET, UID

from csi_driver.domain.timestamps import format_timestamp
from csi_driver.operator.rollback.actions import UpdateStatus
from csi_driver.operator.rollback.resource import (
    Phase,
)
from csi_driver.operator.rollback.status import build_status


def rollback(**status: Any) -> dict[str, Any]:
    meta = {
        "namespace": "shop",
        "name": "back",
        "uid": UID,
        "creationTimestamp": format_timestamp(CREATED),
        "generation": 1,
    }
    return {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"}, "status": status}


def status_after(*updates: tuple[float, UpdateStatus]) -> dict[str, Any]:
    made = rollback()
    for at, update in updates:
        made["status"] = build_status(made, SPEC, update, at)
    status: dict[str, Any] = made["status"]
    return status


def verdicts(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


WAITING = UpdateStatus(Phase.WAITING, "VolumeInUse", "pod web-1", 2, TARGET)
MAKING = UpdateStatus(Phase.SAFETY, "CreatingSafetySnapshot", "made", 1, TARGET, f"safety-{UID}")
ROLLING = UpdateStatus(Phase.ROLLING, "RollingBack", "goes back", 0, TARGET, f"safety-{UID}")
COMPLETED = UpdateStatus(Phase.COMPLETED, "RolledBack", "done", safety_snapshot=f"safety-{UID}")


def test_a_status_tells_the_whole_story() -> None:
    waiting = status_after((CREATED + 1, WAITING))
    assert waiting["phase"] == "WaitingForRelease"
    assert waiting["volumeHandle"] == TARGET.volume_id
    assert verdicts(waiting) == {
        "Complete": "False",
        "Failed": "False",
        "Reconciling": "True",
        "Stalled": "False",
        "VolumeReleased": "False",
        "SafetySnapshotReady": "False",
        "Completed": "False",
    }
    making = status_after((CREATED + 1, WAITING), (CREATED + 2, MAKING))
    assert verdicts(making)["VolumeReleased"] == "True"
    assert verdicts(making)["SafetySnapshotReady"] == "False"
    ended = status_after(
        (CREATED + 1, WAITING), (CREATED + 2, MAKING), (CREATED + 3, ROLLING), (CREATED + 4, COMPLETED)
    )
    assert verdicts(ended) == {
        "VolumeReleased": "True",
        "SafetySnapshotReady": "True",
        "Complete": "True",
        "Completed": "True",
        "Failed": "False",
        "Reconciling": "False",
        "Stalled": "False",
    }
    assert (ended["rollingBackTime"], ended["completionTime"]) == (
        format_timestamp(CREATED + 3),
        format_timestamp(CREATED + 4),
    )
    assert ended["startTime"] == format_timestamp(CREATED)
    assert ended["safetySnapshotName"] == f"safety-{UID}"
    assert (ended["volumeName"], ended["observedGeneration"]) == ("pvc-1", 1)


def test_a_condition_keeps_its_time_while_it_stays_what_it_is() -> None:
    status = status_after((CREATED + 1, WAITING), (CREATED + 9, replace(WAITING, message="pod web-2")))
    condition = next(c for c in status["conditions"] if c["type"] == "VolumeReleased")
    assert (condition["lastTransitionTime"], condition["message"]) == (format_timestamp(CREATED + 1), "pod web-2")
    assert status_after((CREATED + 1, WAITING)) == status_after((CREATED + 1, WAITING), (CREATED + 9, WAITING)), (
        "nothing to write"
    )


def test_what_began_again_has_a_new_start_and_keeps_when_it_first_rolled() -> None:
    lapsed = UpdateStatus(Phase.WAITING, "HoldExpired", "again", 0, TARGET)
    status = status_after((CREATED + 3, ROLLING), (CREATED + 1000, lapsed), (CREATED + 1003, ROLLING))
    assert status["startTime"] == format_timestamp(CREATED + 1000)
    assert status["rollingBackTime"] == format_timestamp(CREATED + 3)


def test_a_failure_says_so_in_its_condition() -> None:
    status = status_after(
        (CREATED + 1, UpdateStatus(Phase.FAILED, "DeadlineExceeded", "not begun. The volume was not changed"))
    )
    assert verdicts(status) == {
        "VolumeReleased": "Unknown",
        "SafetySnapshotReady": "False",
        "Complete": "False",
        "Completed": "False",
        "Failed": "True",
        "Reconciling": "False",
        "Stalled": "True",
    }
    failed = next(c for c in status["conditions"] if c["type"] == "Failed")
    assert (failed["reason"], failed["message"]) == ("DeadlineExceeded", "not begun. The volume was not changed")


@pytest.mark.parametrize("phase", list(Phase))
def test_each_condition_is_one_of_the_api_conventions(phase: Phase) -> None:
    status = status_after((CREATED + 1, UpdateStatus(phase, "SomeReason", "some words", 0, TARGET)))
    for condition in status["conditions"]:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9]*)?", condition["reason"])
        assert condition["message"]
        assert condition["observedGeneration"] == 1
        assert condition["lastTransitionTime"] == format_timestamp(CREATED + 1)
    types = [condition["type"] for condition in status["conditions"]]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("phase", list(Phase))
def test_a_tool_that_knows_no_rollbacks_can_wait_for_the_end(phase: Phase) -> None:
    """kstatus: Reconciling is in progress, Stalled has failed, neither is current. kubectl wait: Complete or Failed, as of a Job."""
    holds = verdicts(status_after((CREATED + 1, UpdateStatus(phase, "SomeReason", "some words", 0, TARGET))))
    kstatus = "InProgress" if holds["Reconciling"] == "True" else "Failed" if holds["Stalled"] == "True" else "Current"
    assert kstatus == {Phase.COMPLETED: "Current", Phase.FAILED: "Failed"}.get(phase, "InProgress")
    assert (holds["Complete"] == "True") == (phase is Phase.COMPLETED)
    assert (holds["Failed"] == "True") == (phase is Phase.FAILED)
    assert holds["Completed"] == holds["Complete"], "for scripts that wait for the name that it had"


def test_a_condition_of_the_version_before_is_taken_over_with_its_time() -> None:
    old = {"status": "False", "reason": "DiskInUse", "message": "m", "lastTransitionTime": format_timestamp(CREATED)}
    made = rollback(
        phase="WaitingForRelease", conditions=[{"type": "DiskReleased", **old}, {"type": "Completed", **old}]
    )
    status = build_status(made, SPEC, WAITING, CREATED + 60)
    by_type = {condition["type"]: condition for condition in status["conditions"]}
    assert "DiskReleased" not in by_type
    for kind in ("VolumeReleased", "Complete", "Completed"):
        assert by_type[kind]["lastTransitionTime"] == format_timestamp(CREATED), kind
    assert by_type["Reconciling"]["lastTransitionTime"] == format_timestamp(CREATED + 60)

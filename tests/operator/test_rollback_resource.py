"""VolumeRollbacks as values: specs, statuses, durations and times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollback_cases import CREATED, SPEC, UID

from csi_driver.operator.rollback.resource import (
    format_time,
    parse_duration,
    parse_spec,
    parse_status,
    parse_time,
    unfinished,
)


def rollback(**status: Any) -> dict[str, Any]:
    meta = {"namespace": "shop", "name": "back", "uid": UID, "creationTimestamp": format_time(CREATED), "generation": 1}
    return {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"}, "status": status}


def test_an_object_is_read_with_the_defaults_of_its_definition() -> None:
    assert parse_spec(rollback()) == SPEC
    made = rollback()
    made["spec"] |= {"safetySnapshot": False, "keepSafety": 7, "timeout": "1h30m", "volumeSnapshotClassName": "gold"}
    assert parse_spec(made) == replace(SPEC, safety=False, keep_safety=7, timeout=5400.0, snapshot_class="gold")


def test_a_status_that_is_missing_is_the_beginning() -> None:
    progress = parse_status(rollback())
    assert (progress.phase, progress.unknown_phase, progress.started_at, progress.rolling_back_at) == (
        None,
        "",
        CREATED,
        0.0,
    )
    assert unfinished(rollback())
    conditions = [{"type": "Complete", "status": "True"}]
    assert not unfinished(rollback(phase="Completed", conditions=conditions))
    guarded = rollback(phase="Failed", conditions=conditions)
    guarded["metadata"]["finalizers"] = ["tidemark.dev/rollback"]
    assert unfinished(guarded)


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h1m1s", 7261), ("5ms", 0.005)]
)
def test_durations(text: str, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "-1m", "1.5h", "\u0661m", "10mm"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@given(st.integers(0, 4_000_000_000))
def test_times_come_back(moment: int) -> None:
    assert parse_time(format_time(moment)) == moment

"""VolumeRollbacks as values: specs, statuses, durations and times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rollback_cases import CREATED, SPEC, UID

from csi_driver.domain.timestamps import format_timestamp, parse_optional_timestamp
from csi_driver.operator.rollback.resource import (
    parse_spec,
    parse_status,
    unfinished,
)


def rollback(**status: Any) -> dict[str, Any]:
    meta = {
        "namespace": "shop",
        "name": "back",
        "uid": UID,
        "creationTimestamp": format_timestamp(CREATED),
        "generation": 1,
    }
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


@given(st.integers(0, 4_000_000_000))
def test_times_come_back(moment: int) -> None:
    assert parse_optional_timestamp(format_timestamp(moment)) == moment


def test_a_time_that_cannot_be_read_is_not_the_lack_of_one() -> None:
    """A rollback whose rollingBackTime is unreadable may have been sent: it must not be planned as if it had not."""
    for text in ("soon", "2026-01-01T00:00:00"):
        with pytest.raises(ValueError, match=text):
            parse_status(rollback(phase="RollingBack", rollingBackTime=text))
    assert parse_status(rollback(phase="RollingBack")).rolling_back_at == 0
    assert format_timestamp(CREATED + 0.9) == format_timestamp(CREATED)

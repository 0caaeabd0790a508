"""The status of a VolumeRollback across versions: each reads, finishes and admits what the other wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.rollback_cases import READY, SPEC, TARGET, UID

from csi_driver.operator.rollback.actions import Finished, UpdateStatus
from csi_driver.operator.rollback.planner import next_action
from csi_driver.operator.rollback.resource import FINALIZER, Phase, parse_status, unfinished
from csi_driver.operator.rollback.status import build_status

HERE = Path(__file__).parent
CONTRACT = yaml.safe_load((HERE / "contract.yaml").read_text())["definitions"]["volumerollbacks"]
CRD = yaml.safe_load((HERE.parent.parent / "charts/tidemark/files/crds/volumerollbacks.yaml").read_text())
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
WRITTEN = yaml.safe_load((HERE / "rollback_status.yaml").read_text())
NOW = 1_800_000_060.0


def rollback(status: dict[str, Any], finalizers: list[str] | None = None) -> dict[str, Any]:
    metadata = {"namespace": "shop", "name": "back", "uid": UID, "generation": 1, "finalizers": finalizers or []}
    metadata["creationTimestamp"] = "2027-01-15T08:00:00Z"
    return {"metadata": metadata, "spec": {"claimName": "v1", "snapshotName": "s1"}, "status": status}


def types(status: dict[str, Any]) -> list[str]:
    return [condition["type"] for condition in status["conditions"]]


@pytest.mark.parametrize("stage", list(WRITTEN))
def test_what_the_version_before_wrote_is_admitted_read_and_gone_on_with(stage: str) -> None:
    old = rollback(WRITTEN[stage])
    jsonschema.validate(old, SCHEMA)
    status = parse_status(old)
    assert str(status.phase) == WRITTEN[stage]["phase"]
    assert (status.unknown_phase, status.volume_id in ("", TARGET.volume_id)) == ("", True)
    assert unfinished(old), "also those that are over: Complete is missing"
    phase = status.phase
    assert phase is not None
    new = rollback(build_status(old, SPEC, UpdateStatus(phase, status.reason, status.message), NOW))
    jsonschema.validate(new, SCHEMA)
    assert types(new["status"]) == CONTRACT["conditions"]
    assert unfinished(new) is not phase.final
    kept = {key: value for key, value in WRITTEN[stage].items() if key != "conditions"}
    assert {key: new["status"][key] for key in kept} == kept


@pytest.mark.parametrize("stage", ["completed", "completed before", "failed"])
@pytest.mark.parametrize("finalizers", [[], [FINALIZER]])
def test_one_that_is_over_gets_the_conditions_once(stage: str, finalizers: list[str]) -> None:
    """Its phase, reason and times stay, so no event is emitted; `kubectl wait --for=condition=Complete` returns."""
    old = rollback(WRITTEN[stage], finalizers)
    observed = replace(READY, status=parse_status(old))
    action = next_action(observed)
    assert action == UpdateStatus(
        parse_status(old).phase or Phase.PENDING, old["status"]["reason"], old["status"]["message"]
    )
    new = rollback(build_status(old, SPEC, action, NOW), finalizers)
    by_type = {condition["type"]: condition for condition in new["status"]["conditions"]}
    outcome = "Failed" if stage == "failed" else "Complete"
    before = {condition["type"]: condition for condition in old["status"]["conditions"]}
    earlier = before["Failed" if stage == "failed" else "Completed"]
    assert by_type[outcome] == {**earlier, "type": outcome}, "since the time at which it ended"
    assert by_type["SafetySnapshotReady"]["status"] == before["SafetySnapshotReady"]["status"]
    after = next_action(replace(observed, status=parse_status(new)))
    assert isinstance(after, Finished) is (not finalizers)
    assert not isinstance(after, UpdateStatus)


@pytest.mark.parametrize("phase", list(Phase))
def test_what_this_version_writes_the_version_before_reads(phase: Phase) -> None:
    """It reads phase, times and names, and replaces all conditions by its own: 4414c43, rollback_wish.py, rollback_status.py."""
    status = build_status(rollback({}), SPEC, UpdateStatus(phase, "Reason", "words", 0, TARGET, "safety"), NOW)
    jsonschema.validate(rollback(status), SCHEMA)
    written = {key for stage in WRITTEN.values() for key in stage}
    assert status.keys() <= written
    assert status["phase"] in CONTRACT["phases"]
    assert types(status) == CONTRACT["conditions"]

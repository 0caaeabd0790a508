"""The definition of VolumeRollback, the code and the reference say the same."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.rollback_cases import CREATED, SPEC, TARGET, UID

from csi_driver.domain.durations import parse_duration
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.resources import ROLLBACKS
from csi_driver.operator.rollback import planner, reconciler, references, safety_snapshots
from csi_driver.operator.rollback.actions import UpdateStatus
from csi_driver.operator.rollback.resource import Phase, RollbackSpec, parse_spec
from csi_driver.operator.rollback.status import build_status

TREE = Path(__file__).parents[2]
CRD = yaml.safe_load((TREE / "charts/tidemark/files/crds/volumerollbacks.yaml").read_text())
VERSION = CRD["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC_FIELDS, STATUS_FIELDS = (SCHEMA["properties"][part]["properties"] for part in ("spec", "status"))
REFERENCE = (TREE / "docs/reference/volumerollback.md").read_text()


def test_it_defines_the_kind_that_the_controller_reads() -> None:
    assert CRD["metadata"]["name"] == str(ROLLBACKS)
    assert (CRD["spec"]["group"], VERSION["name"]) == (ROLLBACKS.group, ROLLBACKS.version)
    assert CRD["spec"]["scope"] == "Namespaced"


def test_defaults_are_those_of_the_code() -> None:
    defaults = {"safetySnapshot": "safety", "keepSafety": "keep_safety", "timeout": "timeout"}
    in_code = {field.name: field.default for field in fields(RollbackSpec)}
    for name, field in defaults.items():
        value = SPEC_FIELDS[name]["default"]
        assert in_code[field] == (parse_duration(value) if name == "timeout" else value)
    meta = {"namespace": "shop", "name": "back", "uid": UID, "creationTimestamp": format_timestamp(CREATED)}
    filled = {name: SPEC_FIELDS[name]["default"] for name in defaults}
    made = {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"} | filled}
    assert parse_spec(made) == SPEC


@pytest.mark.parametrize("phase", list(Phase))
def test_every_status_that_is_written_is_one_that_is_admitted(phase: Phase) -> None:
    meta = {
        "namespace": "shop",
        "name": "back",
        "uid": UID,
        "creationTimestamp": format_timestamp(CREATED),
        "generation": 1,
    }
    made: dict[str, Any] = {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"}}
    made["status"] = build_status(
        made, SPEC, UpdateStatus(phase, "Reason", "words", 0, TARGET, f"safety-{UID}"), CREATED
    )
    jsonschema.validate(made, _strict(SCHEMA))


def _strict(schema: Any) -> Any:
    """The schema, in which a field that it does not name is an error: the API server would drop it silently."""
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if "properties" in made and "title" not in made and set(made["properties"]) != {"spec", "status"}:
        made["additionalProperties"] = "apiVersion" in made["properties"]
    return made


def test_every_field_has_a_description_for_explain() -> None:
    def walk(schema: dict[str, Any], path: str) -> None:
        for name, field in schema.get("properties", {}).items():
            if path or name != "metadata":
                assert field.get("description"), f"{path}.{name}"
            walk(field, f"{path}.{name}")
            walk(field.get("items", {}), f"{path}.{name}[]")

    walk(SCHEMA, "")


def test_columns_show_fields_that_are_there() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        _, part, field = column["jsonPath"].split(".")
        known = {"spec": SPEC_FIELDS, "status": STATUS_FIELDS, "metadata": {"creationTimestamp": {}}}[part]
        assert field in known


def test_the_reference_has_every_field_and_every_reason() -> None:
    for name in [*SPEC_FIELDS, *STATUS_FIELDS]:
        assert f"`{name}`" in REFERENCE, name
    for phase in Phase:
        assert re.search(rf"^\| {phase} \|", REFERENCE, re.MULTILINE), phase
    used = set()
    for module in (planner, reconciler, references, safety_snapshots):
        text = Path(str(module.__file__)).read_text()
        used |= set(re.findall(r'UnresolvedReference\(\s*"(\w+)"', text))
        used |= set(re.findall(r'(?:_fail|_waiting|_stay)\((?:\s*observed,)?\s*"(\w+)"', text))
        used |= set(re.findall(r'UpdateStatus\([^")]*"(\w+)"', text))
    assert {"DeadlineExceeded", "VolumeInUse", "ClaimNotFound", "SafetySnapshotRejected", "RolledBack"} <= used
    for reason in used:
        assert f"`{reason}`" in REFERENCE, reason


def test_the_reference_and_the_definition_have_every_condition() -> None:
    meta = {"namespace": "shop", "name": "back", "uid": UID, "creationTimestamp": format_timestamp(CREATED)}
    status = build_status({"metadata": meta}, SPEC, UpdateStatus(Phase.PENDING, "Reason", "words"), CREATED)
    described = STATUS_FIELDS["conditions"]["description"]
    for condition in status["conditions"]:
        assert re.search(rf"^\| `{condition['type']}` \|", REFERENCE, re.MULTILINE), condition["type"]
        assert f"{condition['type']}:" in described

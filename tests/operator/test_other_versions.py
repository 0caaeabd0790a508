"""Objects that another version wrote: what it noted stays, and what is not known here is left to it, never guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.rollback_cases import CREATED, HELD, READY, ROLLING, SPEC, TARGET, UID, done, next_of, volume

from csi_driver import __version__
from csi_driver.domain.timestamps import format_timestamp
from csi_driver.kube.resources import SCHEDULES
from csi_driver.operator.rollback.actions import LeaveAlone, RollBack, UpdateStatus
from csi_driver.operator.rollback.completed import COMPLETED_ANNOTATION, record_completed
from csi_driver.operator.rollback.references import UnresolvedReference
from csi_driver.operator.rollback.resource import Phase, parse_spec, parse_status, unfinished
from csi_driver.operator.rollback.status import build_status
from csi_driver.operator.schedule.executor import PlanExecutor
from csi_driver.operator.schedule.planner import plan_invalid
from csi_driver.operator.schedule.resource import InvalidSpec
from csi_driver.operator.schedule.resource import parse_spec as parse_schedule
from csi_driver.operator.schedule.status import CONDITIONS

LATER = {"type": "Levitated", "status": "True", "reason": "Light", "message": "m", "lastTransitionTime": "t"}
"""A condition that nobody here knows."""


def rollback(**status: Any) -> dict[str, Any]:
    meta = {
        "namespace": "shop",
        "name": "back",
        "uid": UID,
        "creationTimestamp": format_timestamp(CREATED),
        "generation": 1,
    }
    return {"metadata": meta, "spec": {"claimName": "v1", "snapshotName": "s1"}, "status": status}


# ---- rollbacks


def test_a_phase_of_another_version_is_that_versions_alone() -> None:
    """It may be the end of a rollback: what was written since must not be rolled away a second time."""
    made = rollback(phase="RolledSideways")
    progress = parse_status(made)
    assert (progress.phase, progress.unknown_phase) == (None, "RolledSideways")
    assert unfinished(made)
    for more in ({}, {"volume_rollbacks": done()}, {"status_deleted_at": CREATED + 1}, {"now": CREATED + 10**6}):
        action = next_of(ROLLING, status_phase=None, status_unknown_phase="RolledSideways", **more)
        assert isinstance(action, LeaveAlone)
        assert f"version {__version__} of the controller does not know phase RolledSideways" in action.message


@pytest.mark.parametrize("base", [READY, HELD, ROLLING], ids=["ready", "held", "rolling"])
def test_a_field_of_another_version_must_not_be_overlooked(base: Any) -> None:
    made = rollback()
    made["spec"]["dryRun"] = True
    assert parse_spec(made).unknown_fields == ("dryRun",)
    action = next_of(base, spec_unknown_fields=("dryRun",))
    assert isinstance(action, UpdateStatus)
    assert (action.phase, action.reason) == (base.status.phase, "UnknownField")
    assert "spec.dryRun" in action.message
    late = next_of(READY, spec_unknown_fields=("dryRun",), now=CREATED + SPEC.timeout)
    assert isinstance(late, UpdateStatus)
    assert (late.phase, late.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert "The volume was not changed" in late.message


def test_names_that_cannot_be_read_stop_a_rollback_before_it_begins_and_none_that_rolls() -> None:
    unread = UnresolvedReference(
        "CompletedRollbacksUnreadable", "annotation tidemark.dev/rollbacks cannot be read", final=False
    )
    action = next_of(READY, completed=unread)
    assert isinstance(action, UpdateStatus)
    assert (action.phase, action.reason) == (Phase.WAITING, "CompletedRollbacksUnreadable")
    assert isinstance(next_of(ROLLING, completed=unread), RollBack)
    plan = next_of(ROLLING, completed=unread, volume_rollbacks=done())
    assert isinstance(plan, UpdateStatus)
    assert (plan.phase, plan.reason) == (Phase.ROLLING, "CompletedRollbacksUnreadable")


def test_what_another_version_noted_beside_a_used_name_stays() -> None:
    entry = {"uid": "u", "snapshot": "s", "at": "t", "by": "somebody"}
    noted = volume(
        metadata={"annotations": {COMPLETED_ANNOTATION: json.dumps({"shop/other": entry, "shop/back": entry})}}
    )
    written = json.loads(record_completed(noted, SPEC, "now"))
    assert written == {"shop/other": entry, "shop/back": {"uid": UID, "snapshot": "s1", "at": "now"}}


def test_what_another_version_noted_in_a_rollbacks_status_stays() -> None:
    made = rollback(phase="Pending", levitation=3, conditions=[LATER])
    made["status"] = build_status(
        made, SPEC, UpdateStatus(Phase.WAITING, "VolumeInUse", "pod web-1", 2, TARGET), CREATED + 1
    )
    assert made["status"]["levitation"] == 3
    assert LATER in made["status"]["conditions"]
    again = build_status(made, SPEC, UpdateStatus(Phase.WAITING, "VolumeInUse", "pod web-1", 2, TARGET), CREATED + 2)
    assert again == made["status"], "nothing to write"


# ---- schedules


def schedule(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    meta = {
        "namespace": "shop",
        "name": "nightly",
        "uid": UID,
        "creationTimestamp": format_timestamp(CREATED),
        "generation": 1,
    }
    wanted = {"cron": "0 1 * * *", "selector": {}} | (spec or {})
    return {"metadata": {**meta, "resourceVersion": "7"}, "spec": wanted, "status": status}


@pytest.mark.parametrize("spec", [{"pause": "1h"}, {"retention": {"keepLast": 2, "quarterly": 4}}])
def test_a_schedule_with_a_field_of_another_version_makes_and_deletes_nothing(spec: dict[str, Any]) -> None:
    """It may be the very rule that keeps what the others would let go."""
    made = schedule(spec, conditions=[LATER], levitation=3)
    words = r"does not know spec\.(pause|retention\.quarterly): it creates and deletes nothing"
    with pytest.raises(InvalidSpec, match=words) as caught:
        parse_schedule(made)
    decision = plan_invalid(made, caught.value, int(CREATED))
    assert not (decision.creations)
    assert not (decision.deletions)
    assert not (decision.labels)
    assert LATER in decision.status["conditions"]
    assert decision.status["levitation"] == 3


class Patches:
    """The API, as far as a status is written."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    async def patch(self, kind: object, name: str, body: Any, namespace: str, subresource: str) -> Any:
        assert (kind, name, namespace, subresource) == (SCHEDULES, "nightly", "shop", "status")
        self.made.append(body["status"])
        return body


async def written(before: dict[str, Any], status: dict[str, Any]) -> list[dict[str, Any]]:
    api = Patches()
    acts: Any = PlanExecutor(api, *[None] * 4)  # type: ignore[arg-type]
    await acts.write(schedule(**before), status)
    return api.made


async def test_what_another_version_noted_in_a_schedules_status_stays() -> None:
    run = {"scheduledFor": "2027-01-15T01:00:00Z", "waiting": [], "making": ["a"], "cutShort": False}
    before = {"times": "t", "nextScheduled": "n", "levitation": 3, "run": run | {"by": "somebody"}}
    assert await written(before, {"times": "t", "nextScheduled": "n", "run": run}) == []
    assert await written(before, {"times": "t", "run": run}) == [{"nextScheduled": None}], "what is over goes"
    (over,) = await written(before, {"times": "t", "nextScheduled": "n"})
    assert over == {"run": None}
    later = run | {"scheduledFor": "2027-01-16T01:00:00Z"}
    (begun,) = await written(before, {"times": "t", "nextScheduled": "n", "run": later})
    assert begun == {"run": later | {"by": None}}, "notes on an earlier run say nothing of this one"


def test_the_conditions_of_a_schedule_are_those_that_are_written() -> None:
    status = plan_invalid(schedule(), InvalidSpec("UnknownField", "why"), int(CREATED)).status
    assert {condition["type"] for condition in status["conditions"]} <= set(CONDITIONS)

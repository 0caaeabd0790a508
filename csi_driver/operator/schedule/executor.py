"""What a decision about a schedule does in the cluster. Every step may be repeated: names are derived, changes conditional."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from csi_driver.domain.errors import AlreadyExists, NotFound
from csi_driver.kube.client import QUIET_SECONDS, Api
from csi_driver.kube.errors import ApiRejected
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, SCHEDULES, Kind
from csi_driver.operator.schedule.create_plan import Label, SnapshotToCreate
from csi_driver.operator.schedule.metrics import ScheduleObserver
from csi_driver.operator.schedule.naming import GROUP, SCHEDULE
from csi_driver.operator.schedule.observed import KINDS
from csi_driver.operator.schedule.planner import Plan
from csi_driver.operator.schedule.pruner import SnapshotPruner
from csi_driver.operator.schedule.resource import Spec
from csi_driver.operator.schedule.status import KEYS

Object = dict[str, Any]

ASSUMED_SECONDS = 2 * QUIET_SECONDS
"""For which what was created is taken to be there, although no watch has shown it yet: one that died quietly is noticed by then."""


class ExpectedObjects:
    """What was just created and may not be seen yet: so that it is neither made twice nor left out of a count."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[SnapshotToCreate, float]] = {}

    def add(self, namespace: str, make: SnapshotToCreate) -> None:
        """Count it from now on."""
        self._made[namespace, make.name] = (make, time.monotonic() + ASSUMED_SECONDS)

    def drop(self, namespace: str, make: SnapshotToCreate) -> None:
        """It was not made after all, or is seen."""
        self._made.pop((namespace, make.name), None)

    def unseen(self, seen: Mapping[Kind, Any]) -> dict[tuple[str, str], SnapshotToCreate]:
        """All that no mirror in `seen` shows yet."""
        now = time.monotonic()
        for (namespace, name), (make, until) in list(self._made.items()):
            if until < now or seen[KINDS[make.kind]].get(name, namespace) is not None:
                del self._made[namespace, name]
        return {place: make for place, (make, _) in self._made.items()}


class PlanExecutor:
    """The few lines that change the cluster."""

    def __init__(
        self, api: Api, events: Events, observer: ScheduleObserver, assumed: ExpectedObjects, removals: SnapshotPruner
    ) -> None:
        self._api = api
        self._events = events
        self._observer = observer
        self._assumed = assumed
        self._removals = removals

    async def carry_out(self, spec: Spec, decision: Plan, schedule: Object) -> Mapping[str, Any]:
        """Label, make, delete; the status to write then. What the API refuses is told and stays to be done; Unavailable is
        raised, and Conflict where something was to be deleted for a schedule that has changed.
        """
        refused = await self._unlabelled(spec, decision, schedule)
        left = [make for make in decision.makes if make not in refused]
        for make in left:
            self._assumed.add(spec.namespace, make)
        try:
            while left:
                make = left[0]
                try:
                    await self._make(spec, make, schedule)
                except (ApiRejected, NotFound) as error:
                    refused.append(make)
                    self._assumed.drop(spec.namespace, make)
                    await self._events.emit(schedule, "Warning", "NotMade", f"{', '.join(make.claims[:5])}: {error}")
                left.pop(0)
        finally:
            for make in left:
                self._assumed.drop(spec.namespace, make)
        await self._removals.carry_out(spec, decision.removals, schedule)
        return still_waiting(decision.status, refused)

    async def write(self, schedule: Object, status: Mapping[str, Any]) -> Object:
        """Write the status if it is another one. Raises Conflict where the schedule was changed since."""
        before = schedule.get("status") or {}
        wanted = {key: _noted(before.get(key), value) if key == "run" else value for key, value in status.items()}
        patch: Object = {key: value for key, value in wanted.items() if before.get(key) != value}
        patch |= {key: None for key in before if key in KEYS and key not in status}
        if not patch:
            return schedule
        meta = schedule["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
        return await self._api.patch(SCHEDULES, meta["name"], body, meta["namespace"], "status")

    async def unlabel(self, namespace: str, claim: str, labels: Sequence[str]) -> None:
        """Take labels off a claim."""
        try:
            await self._api.patch(PVCS, claim, {"metadata": {"labels": dict.fromkeys(labels)}}, namespace)
        except NotFound:
            return

    async def _unlabelled(self, spec: Spec, decision: Plan, schedule: Object) -> list[SnapshotToCreate]:
        """Label; returns the groups that must not be made now: a claim would be missing in it, or be in it by mistake."""
        groups = [make for make in decision.makes if make.kind == "group"]
        wrong: set[str] = set()
        for label in decision.labels:
            try:
                await self._label(spec, label)
            except ApiRejected as error:
                # Which group a label that stays belongs to is not known here: none is made then.
                wrong |= {label.node} if label.node else {make.node for make in groups}
                await self._events.emit(schedule, "Warning", "NotLabelled", f"{label.claim}: {error}")
        return [make for make in groups if make.node in wrong]

    async def _label(self, spec: Spec, label: Label) -> None:
        if not label.node:
            await self.unlabel(spec.namespace, label.claim, [GROUP + spec.name])
            return
        try:
            await self._api.patch(
                PVCS, label.claim, {"metadata": {"labels": {GROUP + spec.name: label.node}}}, spec.namespace
            )
        except NotFound:
            return  # the group is made of the claims that are there

    async def _make(self, spec: Spec, make: SnapshotToCreate, schedule: Object) -> None:
        try:
            await self._api.create(KINDS[make.kind], dict(make.body), spec.namespace)
        except AlreadyExists:
            found = await self._api.get(KINDS[make.kind], make.name, spec.namespace)
            if found and (found["metadata"].get("labels") or {}).get(SCHEDULE) != spec.label:
                await self._events.emit(
                    schedule, "Warning", "NameTaken", f"{make.name} is there and not this schedule's"
                )
            return
        self._observer.made(spec.namespace, spec.name)


def _noted(before: Mapping[str, Any] | None, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is written of a run: notes of another version about this very run stay, those about an earlier one go with it."""
    was = before or {}
    if was.get("scheduledFor") == run["scheduledFor"]:
        return {**was, **run}
    return {**dict.fromkeys(was), **run}


def still_waiting(status: Mapping[str, Any], refused: Sequence[SnapshotToCreate]) -> Mapping[str, Any]:
    """The status where some of what was to be made was not."""
    if not refused or "run" not in status:
        return status
    run = status["run"]
    names = {make.name for make in refused}
    return {
        **status,
        "run": {
            **run,
            "waiting": [*run["waiting"], *(claim for make in refused for claim in make.claims)],
            "making": [name for name in run["making"] if name not in names],
        },
    }

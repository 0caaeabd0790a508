"""Executes the plan of a schedule. Every step may be repeated: names are derived, and changes are conditional."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from csi_driver.domain.errors import AlreadyExists, NotFound
from csi_driver.kube.client import QUIET_SECONDS, Api
from csi_driver.kube.errors import ApiRejected
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, SCHEDULES, Kind
from csi_driver.operator.schedule.metrics import ScheduleMetrics
from csi_driver.operator.schedule.naming import GROUP, SCHEDULE
from csi_driver.operator.schedule.objects import KINDS
from csi_driver.operator.schedule.plan import GroupLabel, Plan, SnapshotToCreate
from csi_driver.operator.schedule.pruner import SnapshotPruner
from csi_driver.operator.schedule.resource import Spec
from csi_driver.operator.schedule.status import KEYS, run_with

Object = dict[str, Any]

EXPECTED_SECONDS = 2 * QUIET_SECONDS
"""How long a created object counts as existing although no watch has shown it: a watch that died quietly is noticed by then."""


class ExpectedObjects:
    """What was just created and the informers may not show yet: it is neither created twice nor left out of a count."""

    def __init__(self) -> None:
        self._created: dict[tuple[str, str], tuple[SnapshotToCreate, float]] = {}

    def add(self, namespace: str, creation: SnapshotToCreate) -> None:
        """Count it from now on."""
        self._created[namespace, creation.name] = (creation, time.monotonic() + EXPECTED_SECONDS)

    def drop(self, namespace: str, creation: SnapshotToCreate) -> None:
        """Forget it: it was not created."""
        self._created.pop((namespace, creation.name), None)

    def unseen(self, informers: Mapping[Kind, Any]) -> dict[tuple[str, str], SnapshotToCreate]:
        """Return all that no informer shows yet."""
        now = time.monotonic()
        for (namespace, name), (creation, until) in list(self._created.items()):
            if until < now or informers[KINDS[creation.kind]].get(name, namespace) is not None:
                del self._created[namespace, name]
        return {key: creation for key, (creation, _) in self._created.items()}


class PlanExecutor:
    """Creates, labels, and writes the status; the pruner deletes."""

    def __init__(
        self, api: Api, events: Events, metrics: ScheduleMetrics, expected: ExpectedObjects, pruner: SnapshotPruner
    ) -> None:
        self._api = api
        self._events = events
        self._metrics = metrics
        self._expected = expected
        self._pruner = pruner

    async def execute(self, spec: Spec, plan: Plan, schedule: Object) -> Mapping[str, Any]:
        """Label, create and delete; return the status to write then.

        What the API rejects is reported by an event and stays to be done. Raises Unavailable, and Conflict if something was to be
        deleted for a schedule that has changed.
        """
        rejected = await self._label_members(spec, plan, schedule)
        pending = [creation for creation in plan.creations if creation not in rejected]
        for creation in pending:
            self._expected.add(spec.namespace, creation)
        try:
            while pending:
                creation = pending[0]
                try:
                    await self._create(spec, creation, schedule)
                except (ApiRejected, NotFound) as error:
                    rejected.append(creation)
                    self._expected.drop(spec.namespace, creation)
                    await self._warn(schedule, "CreateFailed", f"{', '.join(creation.pvcs[:5])}: {error}")
                pending.pop(0)
        finally:
            for creation in pending:
                self._expected.drop(spec.namespace, creation)
        await self._pruner.prune(spec, plan.deletions, schedule)
        return still_waiting(plan.status, rejected)

    async def write(self, schedule: Object, status: Mapping[str, Any]) -> Object:
        """Write the status if it has changed. Raises Conflict if the schedule was changed since it was read."""
        before = schedule.get("status") or {}
        after = {key: _merged(before.get(key), value) if key == "run" else value for key, value in status.items()}
        patch: Object = {key: value for key, value in after.items() if before.get(key) != value}
        patch |= {key: None for key in before if key in KEYS and key not in status}
        if not patch:
            return schedule
        meta = schedule["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
        return await self._api.patch(SCHEDULES, meta["name"], body, meta["namespace"], "status")

    async def remove_labels(self, namespace: str, pvc: str, labels: Sequence[str]) -> None:
        """Remove labels from a PVC."""
        try:
            await self._api.patch(PVCS, pvc, {"metadata": {"labels": dict.fromkeys(labels)}}, namespace)
        except NotFound:
            return

    async def _label_members(self, spec: Spec, plan: Plan, schedule: Object) -> list[SnapshotToCreate]:
        """Label; return the groups that must not be created now, because their members would be wrong."""
        groups = [creation for creation in plan.creations if creation.kind == "group"]
        nodes: set[str] = set()
        for label in plan.labels:
            try:
                await self._label(spec, label)
            except ApiRejected as error:
                # Which group a label that stays belongs to is not known here: no group is created then.
                nodes |= {label.node} if label.node else {group.node for group in groups}
                await self._warn(schedule, "LabelFailed", f"{label.pvc}: {error}")
        return [group for group in groups if group.node in nodes]

    async def _label(self, spec: Spec, label: GroupLabel) -> None:
        if not label.node:
            await self.remove_labels(spec.namespace, label.pvc, [GROUP + spec.name])
            return
        try:
            await self._api.patch(
                PVCS, label.pvc, {"metadata": {"labels": {GROUP + spec.name: label.node}}}, spec.namespace
            )
        except NotFound:
            return  # the PVC is gone: the group is created without it

    async def _create(self, spec: Spec, creation: SnapshotToCreate, schedule: Object) -> None:
        try:
            await self._api.create(KINDS[creation.kind], dict(creation.body), spec.namespace)
        except AlreadyExists:
            existing = await self._api.get(KINDS[creation.kind], creation.name, spec.namespace)
            if existing and (existing["metadata"].get("labels") or {}).get(SCHEDULE) != spec.label:
                await self._warn(schedule, "NameTaken", f"{creation.name} exists and is not of this schedule")
            return
        self._metrics.snapshot_created(spec.namespace, spec.name)

    async def _warn(self, schedule: Object, reason: str, message: str) -> None:
        await self._events.emit(schedule, "Warning", reason, message)


def _merged(before: Mapping[str, Any] | None, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What another version noted about this very run stays; its notes about an earlier run are removed."""
    noted = before or {}
    if noted.get("scheduledFor") == run["scheduledFor"]:
        return {**noted, **run}
    return {**dict.fromkeys(noted), **run}


def still_waiting(status: Mapping[str, Any], rejected: Sequence[SnapshotToCreate]) -> Mapping[str, Any]:
    """Return the status if some creations were rejected."""
    if not rejected or "run" not in status:
        return status
    run = status["run"]
    names = {creation.name for creation in rejected}
    waiting = [*run["waiting"], *(pvc for creation in rejected for pvc in creation.pvcs)]
    return {**status, "run": run_with(run, waiting, [name for name in run["creating"] if name not in names])}

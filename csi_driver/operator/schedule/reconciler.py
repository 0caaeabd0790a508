"""The reconciler of one SnapshotSchedule: from what the informers show to what is changed in the cluster."""

from collections.abc import Callable, Iterable, Mapping

from csi_driver.kube.client import Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.workqueue import Result
from csi_driver.operator.schedule import planner
from csi_driver.operator.schedule.cache import Key, ScheduleCache, count_by_node
from csi_driver.operator.schedule.dependencies import ScheduleDependencies
from csi_driver.operator.schedule.executor import ExpectedObjects, PlanExecutor
from csi_driver.operator.schedule.observed import ObservedSchedule, OwnedSnapshot
from csi_driver.operator.schedule.plan import Plan
from csi_driver.operator.schedule.pruner import SnapshotPruner
from csi_driver.operator.schedule.resource import InvalidSpec, Spec, parse_spec


class ScheduleReconciler:
    """Observes, plans and executes. `waiting` holds the schedules whose run waits for others to finish."""

    def __init__(
        self, dependencies: ScheduleDependencies, changed: Callable[[Iterable[Key]], None] = lambda _: None
    ) -> None:
        api, events, metrics = dependencies.api, dependencies.events, dependencies.metrics
        self._expected = ExpectedObjects()
        self._events = events
        self._metrics = metrics
        self._informers = dependencies.informers
        self._limit = dependencies.limit
        self._least_period = dependencies.least_period
        self._now = dependencies.now
        self._written: dict[Key, tuple[set[str], Object]] = {}
        self._failures: dict[Key, set[str]] = {}
        self.waiting: set[Key] = set()
        self.view = ScheduleCache(dependencies.informers, dependencies.driver, changed)
        self._executor = PlanExecutor(
            api, events, metrics, self._expected, SnapshotPruner(api, events, metrics, self.view)
        )

    async def reconcile(self, key: Key) -> Result:
        """Act for one schedule. Raises DriverError."""
        try:
            plan = await self.plan_and_execute(key)
        except Conflict:
            return Result(requeue_after=0.0)  # changed since it was read: plan again
        self.waiting.discard(key)
        if plan is None:
            return Result()
        if (plan.status.get("run") or {}).get("waiting"):
            self.waiting.add(key)
        return Result(None if plan.wake is None else max(0.0, plan.wake - self._now()))

    async def plan_and_execute(self, key: Key) -> Plan | None:
        """Plan and execute once; returns the plan, or None if the schedule is gone. Raises DriverError, Conflict among them."""
        schedule = self._newest(key)
        if schedule is None:
            self._failures.pop(key, None)
            self._written.pop(key, None)
            self._metrics.remove(*key)
            return None
        while True:
            now = int(self._now())
            try:
                spec = self._read(schedule)
            except InvalidSpec as error:
                plan = planner.plan_invalid(schedule, error, now)
                await self._write(key, schedule, plan.status)
                await self._emit_events(schedule, plan)
                return plan
            plan = planner.plan(self._observe(spec, schedule), now)
            if plan.starts_run:
                schedule = await self._write(key, schedule, plan.status)
                await self._emit_events(schedule, plan)
                continue
            status = await self._executor.execute(spec, plan, schedule)
            await self._write(key, schedule, status)
            await self._emit_events(schedule, plan)
            self._metrics.set_overdue(*key, plan.overdue_since)
            return plan

    async def remove_stale_labels(self) -> None:
        """Remove the labels of grouped schedules that are gone from their PVCs."""
        for (namespace, pvc), labels in list(self.view.stale_group_labels()):
            await self._executor.remove_labels(namespace, pvc, labels)

    def _read(self, schedule: Object) -> Spec:
        spec = parse_spec(schedule, self._least_period)
        if spec.grouped and not self.view.groups_served:
            raise InvalidSpec(
                "NoGroupSnapshots",
                "this cluster does not serve groupsnapshot.storage.k8s.io/v1: install the CRDs of group snapshots and restart "
                "the controller, or leave grouped out",
            )
        return spec

    def _observe(self, spec: Spec, schedule: Object) -> ObservedSchedule:
        view, unseen = self.view, self._expected.unseen(self._informers)
        pvcs, owned = view.pvcs(spec), view.owned_snapshots(spec)
        self._count_failures((spec.namespace, spec.name), owned)
        in_flight = view.in_flight() | {key: snapshot.node for key, snapshot in unseen.items()}
        expected = [snapshot for (namespace, _), snapshot in unseen.items() if namespace == spec.namespace]
        return ObservedSchedule(
            schedule=schedule,
            spec=spec,
            pvcs=pvcs,
            owned=owned,
            bound_handles=view.bound_handles(spec.namespace),
            pvcs_without_handle=view.pvcs_without_handle(spec.namespace) if spec.delete_with_claim else frozenset(),
            snapshot_counts={pvc.handle: view.snapshot_count(pvc.handle) for pvc in pvcs if pvc.handle},
            labelled=view.labelled(spec),
            expected_names=frozenset(snapshot.name for snapshot in expected),
            expected_handles=frozenset(handle for snapshot in expected for handle in snapshot.handles),
            in_flight=count_by_node(in_flight),
            in_flight_limit=self._limit,
        )

    def _newest(self, key: Key) -> Object | None:
        """Return the schedule as the informer has it, or as it was written here if the informer has not come so far."""
        cached = self.view.schedule(key)
        older, written = self._written.get(key, (set(), None))
        if cached is None or cached["metadata"]["resourceVersion"] not in older:
            self._written.pop(key, None)
            return cached
        return written

    async def _write(self, key: Key, schedule: Object, status: Mapping[str, object]) -> Object:
        written = await self._executor.write(schedule, status)
        if written is not schedule:
            older, _ = self._written.get(key, (set(), None))
            self._written[key] = (older | {schedule["metadata"]["resourceVersion"]}, written)
        return written

    async def _emit_events(self, schedule: Object, plan: Plan) -> None:
        for event in plan.events:
            await self._events.emit(schedule, event.type, event.reason, event.message)

    def _count_failures(self, key: Key, owned: Iterable[OwnedSnapshot]) -> None:
        """Count new failures. Those that are there at the first reconciliation were counted by the leader before."""
        failed = {snapshot.uid for snapshot in owned if snapshot.failed}
        for _ in failed - self._failures.get(key, failed):
            self._metrics.snapshot_failed(*key)
        self._failures[key] = failed

"""The component that reconciles SnapshotSchedules: its informers and its metrics."""

import time

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.controller.served import readable, until_served
from csi_driver.kube.resources import ROLLBACKS, SCHEDULES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.schedule.cache import OPTIONAL, TRIMMERS
from csi_driver.operator.schedule.controller import ScheduleController
from csi_driver.operator.schedule.dependencies import ScheduleDependencies

NEEDED = (SCHEDULES, SNAPSHOTS, SNAPSHOT_CONTENTS, ROLLBACKS)
"""Kinds that the component waits for. Without rollbacks it does not know which snapshots they use. The other custom kinds may be
missing, and the core's never are."""


class _Reconciler:
    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Reconcile until cancelled, as soon as the cluster serves schedules, snapshots and rollbacks."""
        context, settings = self._context, self._context.settings
        await until_served(context.api, "snapshot schedules", NEEDED)
        optional = {kind for kind in OPTIONAL if await readable(context.api, kind)}
        kinds = [kind for kind in TRIMMERS if kind not in OPTIONAL or kind in optional]
        informers = {kind: context.informers.for_kind(kind, transform=TRIMMERS[kind]) for kind in kinds}
        metrics = PrometheusScheduleMetrics(context.metrics)
        dependencies = ScheduleDependencies(
            context.api, informers, context.events, settings.driver_name, metrics, settings.snapshots_in_flight
        )
        try:
            await ScheduleController(dependencies).run()
        finally:
            metrics.clear()


class PrometheusScheduleMetrics:
    """Implements operator.schedule.metrics.ScheduleMetrics."""

    def __init__(self, metrics: ControllerMetrics) -> None:
        self._overdue = metrics.schedule_late
        self._snapshots = metrics.schedule_snapshots

    def snapshot_created(self, namespace: str, name: str) -> None:
        """See ScheduleMetrics."""
        self._snapshots.labels(namespace, name, "made").inc()

    def snapshot_failed(self, namespace: str, name: str) -> None:
        """See ScheduleMetrics."""
        self._snapshots.labels(namespace, name, "failed").inc()

    def snapshot_deleted(self, namespace: str, name: str) -> None:
        """See ScheduleMetrics."""
        self._snapshots.labels(namespace, name, "deleted").inc()

    def set_overdue(self, namespace: str, name: str, since: int | None) -> None:
        """See ScheduleMetrics. The gauge grows with the clock, also between reconciliations."""
        gauge = self._overdue.labels(namespace, name)
        if since is None:
            gauge.set_function(lambda: 0.0)
        else:
            gauge.set_function(lambda: max(0.0, time.time() - since))

    def remove(self, namespace: str, name: str) -> None:
        """See ScheduleMetrics."""
        self._overdue.remove(namespace, name)
        for result in ("made", "failed", "deleted"):
            self._snapshots.remove(namespace, name, result)

    def clear(self) -> None:
        """Remove the gauges: the next leader has them from now on."""
        self._overdue.clear()


def reconciler(context: ControllerContext) -> Component:
    """Return the component that the leader runs."""
    return _Reconciler(context)

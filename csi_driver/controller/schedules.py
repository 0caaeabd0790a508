"""The component that reconciles SnapshotSchedules: its informers and its metrics."""

import asyncio
import time

import structlog

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.domain.errors import DriverError
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected
from csi_driver.kube.resources import ROLLBACKS, SCHEDULES, SNAPSHOT_CONTENTS, SNAPSHOTS, Kind
from csi_driver.operator.schedule.cache import OPTIONAL, TRIMMERS
from csi_driver.operator.schedule.controller import ScheduleController

UNSERVED_SECONDS = 30.0
"""Between checks for the CRDs of schedules and snapshots, if the cluster has none."""

NEEDED = (SCHEDULES, SNAPSHOTS, SNAPSHOT_CONTENTS, ROLLBACKS)
"""Kinds that the component waits for. Without rollbacks it does not know which snapshots they use. The other custom kinds may be
missing, and the core's never are."""

log = structlog.get_logger()


class _Reconciler:
    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Reconcile until cancelled, as soon as the cluster serves schedules, snapshots and rollbacks."""
        context, settings = self._context, self._context.settings
        await until_served(context.api)
        optional = {kind for kind in OPTIONAL if await readable(context.api, kind)}
        kinds = [kind for kind in TRIMMERS if kind not in OPTIONAL or kind in optional]
        informers = {kind: context.informers.for_kind(kind, transform=TRIMMERS[kind]) for kind in kinds}
        metrics = PrometheusScheduleMetrics(context.metrics)
        controller = ScheduleController(
            context.api, informers, context.events, settings.driver_name, metrics, settings.snapshots_in_flight
        )
        try:
            await controller.run()
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


async def readable(api: Api, kind: Kind) -> bool:
    """Return whether the cluster serves a kind and this account may read it: a feature of the chart may be off."""
    if not await api.served(kind.group, kind.version, kind.plural):
        return False
    try:
        await api.get(kind, "none", "default" if kind.namespaced else "")
    except ApiRejected:
        return False
    return True


async def until_served(api: Api) -> None:
    """Wait for the needed kinds, and log which are missing."""
    while True:
        try:
            missing = [str(kind) for kind in NEEDED if not await readable(api, kind)]
            if not missing:
                return
            why = f"{', '.join(missing)} cannot be read: the CRDs or the chart's roles are missing"
        except DriverError as error:
            why = str(error)
        log.warning("snapshot schedules not available, retrying", why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)


def reconciler(context: ControllerContext) -> Component:
    """Return the component that the leader runs."""
    return _Reconciler(context)

"""Puts the reconciler of SnapshotSchedules together: copies of what it looks at, and its figures."""

import asyncio
import time

import structlog

from csi_driver.controller.component import Component, ControllerContext
from csi_driver.controller.metrics import ControllerTelemetry
from csi_driver.domain.errors import DriverError
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected
from csi_driver.kube.resources import ROLLBACKS, SCHEDULES, SNAPSHOT_CONTENTS, SNAPSHOTS, Kind
from csi_driver.operator.schedule.cache import OPTIONAL, TRIMMERS
from csi_driver.operator.schedule.controller import ScheduleController

UNSERVED_SECONDS = 30.0
"""Between looks for the definitions of schedules and snapshots, where the cluster has none."""

NEEDED = (SCHEDULES, SNAPSHOTS, SNAPSHOT_CONTENTS, ROLLBACKS)
"""Without the first there is nothing to do, and without rollbacks nobody knows which snapshots one wants: that the chart brings
them is worth waiting for. The other custom kinds may be missing, and the core's never are."""

log = structlog.get_logger()


class _Reconciler:
    def __init__(self, context: ControllerContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Reconcile as soon as the cluster knows schedules, snapshots and rollbacks. Until cancelled."""
        context, settings = self._context, self._context.settings
        await until_served(context.api)
        optional = {kind for kind in OPTIONAL if await readable(context.api, kind)}
        kinds = [kind for kind in TRIMMERS if kind not in OPTIONAL or kind in optional]
        mirrors = {kind: context.mirrors.of(kind, keep=TRIMMERS[kind]) for kind in kinds}
        figures = Figures(context.telemetry)
        controller = ScheduleController(
            context.api, mirrors, context.events, settings.driver_name, figures, settings.snapshots_in_flight
        )
        try:
            await controller.run()
        finally:
            figures.clear()


class Figures:
    """See operator.schedule_observer.ScheduleObserver."""

    def __init__(self, telemetry: ControllerTelemetry) -> None:
        self._late = telemetry.schedule_late
        self._snapshots = telemetry.schedule_snapshots

    def made(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "made").inc()

    def failed(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "failed").inc()

    def deleted(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._snapshots.labels(namespace, name, "deleted").inc()

    def late(self, namespace: str, name: str, since: int | None) -> None:
        """See ScheduleObserver. What is late grows with the clock, also while nobody looks at the schedule."""
        gauge = self._late.labels(namespace, name)
        if since is None:
            gauge.set_function(lambda: 0.0)
        else:
            gauge.set_function(lambda: max(0.0, time.time() - since))

    def gone(self, namespace: str, name: str) -> None:
        """See ScheduleObserver."""
        self._late.remove(namespace, name)
        for result in ("made", "failed", "deleted"):
            self._snapshots.remove(namespace, name, result)

    def clear(self) -> None:
        """Another replica tells from now on."""
        self._late.clear()


async def readable(api: Api, kind: Kind) -> bool:
    """Whether the cluster serves a kind, and this account may read it: a feature of the chart may be off."""
    if not await api.served(kind.group, kind.version, kind.plural):
        return False
    try:
        await api.get(kind, "none", "default" if kind.namespaced else "")
    except ApiRejected:
        return False
    return True


async def until_served(api: Api) -> None:
    """Wait for the kinds that are needed, and say which are missing."""
    while True:
        try:
            missing = [str(kind) for kind in NEEDED if not await readable(api, kind)]
            if not missing:
                return
            why = f"{', '.join(missing)} cannot be read: definitions, or rights of the chart, are not there"
        except DriverError as error:
            why = str(error)
        log.warning("SnapshotSchedules are not followed", why=why, again_in=UNSERVED_SECONDS)
        await asyncio.sleep(UNSERVED_SECONDS)


def reconciler(context: ControllerContext) -> Component:
    """The part that the leader runs."""
    return _Reconciler(context)

"""The controller of SnapshotSchedules: changes that informers show, and times that come, become keys in a work queue."""

import asyncio
import time
from collections.abc import Iterable

import structlog

from csi_driver.domain.errors import DriverError
from csi_driver.kube.workqueue import WorkQueue
from csi_driver.operator.schedule.cache import Key
from csi_driver.operator.schedule.dependencies import ScheduleDependencies
from csi_driver.operator.schedule.reconciler import ScheduleReconciler

CONCURRENCY = 8
"""Schedules that are reconciled at the same time: a reconciliation waits for the API, mostly."""

MIN_INTERVAL_SECONDS = 0.5
"""Between two reconciliations of one schedule: the hundred changes of a run are seen in a few."""

CLOCK_SECONDS = 5.0
"""Between two checks of the wall clock: one that was set is noticed then."""

CLOCK_STEP_SECONDS = 0.2
"""By how much the wall clock may move against the monotonic one before it counts as set."""

RESYNC_SECONDS = 600.0
"""Between two reconciliations of all schedules, whatever changed."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 30.0
"""After a reconciliation that failed; doubled with each failure in a row."""

log = structlog.get_logger()


class ScheduleController:
    """The leader runs it."""

    def __init__(self, dependencies: ScheduleDependencies) -> None:
        self._dependencies = dependencies
        self._now = dependencies.now
        self._queue: WorkQueue[Key] = WorkQueue(
            "schedule", CONCURRENCY, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, MIN_INTERVAL_SECONDS
        )
        self._reconciler: ScheduleReconciler | None = None

    async def run(self) -> None:
        """Reconcile all schedules, until cancelled."""
        for informer in self._dependencies.informers.values():
            await informer.wait_synced()
        reconciler = self._reconciler = ScheduleReconciler(self._dependencies, self._on_change)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._queue.run(reconciler))
                tasks.create_task(self._resync(reconciler))
                tasks.create_task(self._watch_clock(reconciler))
        finally:
            self._reconciler = None
            reconciler.view.close()

    async def _resync(self, reconciler: ScheduleReconciler) -> None:
        while True:
            self._on_change(reconciler.view.keys())
            try:
                await reconciler.remove_stale_labels()
            except DriverError as error:
                log.warning("remove group labels failed", why=str(error), retry_in=RESYNC_SECONDS)
            await asyncio.sleep(RESYNC_SECONDS)

    async def _watch_clock(self, reconciler: ScheduleReconciler) -> None:
        """Reconcile all schedules when the wall clock was set: the queue counts by one that is not."""
        offset = self._now() - time.monotonic()
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            step = self._now() - time.monotonic() - offset
            if abs(step) > CLOCK_STEP_SECONDS:
                log.info("wall clock was set", seconds=round(step, 1))
                offset += step
                self._on_change(reconciler.view.keys())

    def _on_change(self, keys: Iterable[Key]) -> None:
        """Queue what has changed, and the schedules that wait for capacity on a node: they may have it now."""
        for key in [*keys, *(self._reconciler.waiting if self._reconciler else ())]:
            self._queue.add(key)

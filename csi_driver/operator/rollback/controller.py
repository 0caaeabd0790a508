"""The controller of VolumeRollbacks: events of an informer become keys in a work queue, as long as this replica leads."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from csi_driver.kube.client import Api, Object
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.workqueue import WorkQueue
from csi_driver.operator.rollback.reconciler import Key, RollbackReconciler
from csi_driver.operator.rollback.resource import Phase, parse_status, unfinished
from csi_driver.service.agents import RollbackAgents

CONCURRENCY = 64
"""Reconciliations at the same time: each is ten calls. Those of volumes on a node that does not answer wait for seconds each, and
must not keep the others waiting."""

RESYNC_SECONDS = 30.0
"""For a change that no watch showed."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 5.0
"""After a reconciliation that failed; doubled with each failure in a row. Short: a pod that was scaled down may be waiting."""


class RollbackController:
    """`informer` holds all VolumeRollbacks. It says which there are; everything else is read from the API each time."""

    def __init__(
        self,
        api: Api,
        agents: RollbackAgents,
        informer: Informer,
        events: Events,
        driver: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._informer = informer
        self._reconciler = RollbackReconciler(api, agents, events, driver, now)
        self._queue: WorkQueue[Key] = WorkQueue("rollback", CONCURRENCY, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)

    def phases(self) -> dict[str, int]:
        """Count the VolumeRollbacks in each phase."""
        counts = Counter(parse_status(rollback).phase or Phase.PENDING for rollback in self._informer.all())
        return {str(phase): counts[phase] for phase in Phase}

    async def run(self) -> None:
        """Reconcile all of them, until cancelled."""
        await self._informer.wait_synced()
        unsubscribe = self._informer.subscribe(self._on_event)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._queue.run(self._reconciler))
                tasks.create_task(self._resync())
        finally:
            unsubscribe()  # the informer outlives this leader, and there is a new controller with each lease

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            for rollback in self._informer.all():
                key = _key(rollback)
                if unfinished(rollback) and key not in self._queue:
                    self._queue.add(key)

    def _on_event(self, old: Object | None, new: Object | None) -> None:
        """Queue an object that is new, changed or deleted. A change of the status alone is this controller's own."""
        rollback = new or old
        assert rollback is not None
        if old is not None and new is not None and _observed_fields(old) == _observed_fields(new):
            return
        key = _key(rollback)
        if key in self._queue or (new is not None and unfinished(new)):
            self._queue.forget(key)  # what failed before may go well now, and a deletion must be seen at once
            self._queue.add(key)


def _key(rollback: Object) -> Key:
    return rollback["metadata"]["namespace"], rollback["metadata"]["name"]


def _observed_fields(rollback: Object) -> tuple[object, ...]:
    metadata = rollback["metadata"]
    return metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp")

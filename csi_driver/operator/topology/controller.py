"""Selects the node of the data source for pending PVCs that the webhook has missed, and explains unschedulable pods.

Changes that informers show become keys of two work queues, one of PVCs and one of pods.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

from csi_driver.kube.client import Api, Object
from csi_driver.kube.events import EventRecorder
from csi_driver.kube.workqueue import WorkQueue
from csi_driver.operator.topology.capacity_cache import CapacityCache
from csi_driver.operator.topology.event_limiter import EventLimiter
from csi_driver.operator.topology.observe import Informers, Key, PvcStates
from csi_driver.operator.topology.pod_index import PodIndex
from csi_driver.operator.topology.pod_reconciler import PodReconciler
from csi_driver.operator.topology.pvc_reconciler import PvcDependencies, PvcReconciler
from csi_driver.operator.topology.trim import is_pending, without_version
from csi_driver.service.agents import AgentCapacity

CONCURRENCY = 32
"""PVCs that are reconciled at the same time. Those that wait for an agent without an answer do so for five seconds each, and must
not keep the others waiting."""

MIN_INTERVAL_SECONDS = 0.5
"""Between two reconciliations of one PVC, each of which may call the API and an agent. Those of a pod call neither."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 15.0
"""After a reconciliation that failed; doubled with each failure in a row. A change of the object itself ends it."""


class TopologyController:
    """The leader runs it. `clock` counts seconds and never goes back, `now` is the wall clock."""

    def __init__(
        self,
        api: Api,
        informers: Informers,
        capacities: AgentCapacity,
        events: EventRecorder,
        driver: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._informers = informers
        states, limiter, cache = PvcStates(), EventLimiter(events, clock), CapacityCache(capacities, clock)
        self._pvcs = PvcReconciler(
            PvcDependencies(api, informers, cache, limiter, states, driver, clock, self._add_pods_of)
        )
        self._pods = PodReconciler(informers, limiter, states, driver, now)
        backoff = FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS
        self._pvc_queue: WorkQueue[Key] = WorkQueue("topology", CONCURRENCY, *backoff, MIN_INTERVAL_SECONDS, clock)
        self._pod_queue: WorkQueue[Key] = WorkQueue("unscheduled pods", CONCURRENCY, *backoff, clock=clock)
        self._pending: set[Key] = set()
        self._pod_index = PodIndex()

    async def run(self) -> None:
        """Reconcile all pending PVCs with a data source and all pods without a node, until cancelled."""
        informers = self._informers
        await informers.wait_synced()
        with ExitStack() as subscriptions:  # the informers outlive this leader, and each lease has a new controller
            # Nodes first: while no PVC and no pod is known, those that exist already cost nothing.
            subscriptions.callback(informers.nodes.subscribe(self._on_node))
            subscriptions.callback(informers.storage_classes.subscribe(self._on_storage_class))
            subscriptions.callback(informers.pods.subscribe(self._on_pod))
            subscriptions.callback(informers.pvcs.subscribe(self._on_pvc))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pvc_queue.run(self._pvcs))
                tasks.create_task(self._pod_queue.run(self._pods))

    def _on_pvc(self, old: Object | None, new: Object | None) -> None:
        if _same(old, new):
            return
        key = _key(new or old)
        was_pending = key in self._pending
        self._pending.discard(key)
        if new is not None and is_pending(new):
            self._pending.add(key)
        if was_pending or key in self._pending:
            self._pvc_queue.forget(key)  # what failed before may go well now
            self._pvc_queue.add(key)
        self._add_pods_of(key)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if _same(old, new):
            return
        key = _key(new or old)
        self._pod_index.put(key, new["pvcs"] if new is not None else ())
        if key in self._pod_index:
            self._pod_queue.forget(key)
            self._pod_queue.add(key)

    def _on_node(self, old: Object | None, new: Object | None) -> None:
        """Reconcile all when a node comes, goes or changes. Its status is written every few minutes, mostly without a change."""
        if not _same(old, new):
            self._add_pending()
            for pod in self._pod_index:
                self._pod_queue.add(pod)

    def _on_storage_class(self, old: Object | None, new: Object | None) -> None:
        if not _same(old, new):
            self._add_pending()

    def _add_pending(self) -> None:
        for pvc in self._pending:
            self._pvc_queue.add(pvc)

    def _add_pods_of(self, pvc: Key) -> None:
        for pod in self._pod_index.using(pvc):
            self._pod_queue.add(pod)


def _same(old: Object | None, new: Object | None) -> bool:
    return old is not None and new is not None and without_version(old) == without_version(new)


def _key(obj: Object | None) -> Key:
    assert obj is not None
    return obj["metadata"]["namespace"], obj["metadata"]["name"]

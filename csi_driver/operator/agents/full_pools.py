"""Events on the nodes of full pools: the errors that pods get name neither the pool nor a remedy."""

import time
from collections.abc import Callable

import structlog

from csi_driver.domain.capacity import human
from csi_driver.kube.client import Object
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.workqueue import Result, WorkQueue
from csi_driver.service.agents import FullPool, FullPoolLister

PERIOD_SECONDS = 30.0
"""Between two checks: only the agents know which pools are full, and no watch shows that."""

MIN_INTERVAL_SECONDS = 5.0
"""Between two checks, however many agents become ready: each one asks all of them."""

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 5.0, 30.0
"""After a check that failed; doubled with each failure in a row."""

REPEAT_SECONDS = 3000.0
"""The API keeps an event for an hour: while a pool is full there is always one."""

KEY = "pools"
"""The only key: one check asks all agents."""

log = structlog.get_logger()


class FullPoolEvents:
    """Checks every half minute, and when an agent becomes ready. A new leader emits again, and the same message is one event.

    `pods` caches the pods of agents as discovery.py trims them.
    """

    def __init__(
        self, agents: FullPoolLister, pods: Informer, events: Events, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agents = agents
        self._pods = pods
        self._events = events
        self._clock = clock
        self._emitted: dict[tuple[str, str], tuple[float, bool]] = {}
        """When the last event was emitted for each full pool, and whether it named what deleting would free."""
        self._queue: WorkQueue[str] = WorkQueue(
            "full pools", 1, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, MIN_INTERVAL_SECONDS, clock
        )

    async def run(self) -> None:
        """Check until cancelled."""
        self._queue.add(KEY)
        unsubscribe = self._pods.subscribe(self._on_pod)
        try:
            await self._queue.run(self)
        finally:
            unsubscribe()  # the informer outlives this leader

    async def reconcile(self, _: str) -> Result:
        """Check once."""
        await self.check()
        return Result(PERIOD_SECONDS)

    async def check(self) -> None:
        """Emit an event for each pool that has become full, or is still full after almost an hour."""
        answers = await self._agents.full_pools()
        full = {(pool.owner, pool.name): pool for pools in answers.values() for pool in pools}
        # The pools of an agent that does not answer may still be full.
        self._emitted = {key: last for key, last in self._emitted.items() if key in full or key[0] not in answers}
        now = self._clock()
        for key, pool in full.items():
            emitted_at, complete = self._emitted.get(key, (-REPEAT_SECONDS, False))
            if now - emitted_at >= REPEAT_SECONDS or (pool.would_free and not complete):
                self._emitted[key] = now, bool(pool.would_free)
                await self._emit(pool)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if new is not None and new["ready"] and not (old is not None and old["ready"]):
            self._queue.add(KEY)

    async def _emit(self, pool: FullPool) -> None:
        log.warning("pool is full", node=pool.owner, pool=pool.name, free=human(pool.free))
        message = (
            f"pool {pool.name} ({human(pool.total)}) has run full: writes to its thin volumes fail, or soon will; delete "
            "snapshots or volumes, trim file systems, or enlarge the pool"
        )
        if pool.would_free:
            message += f"; deleting would free most: {', '.join(pool.would_free)}"
        # Nodes are referenced by name, as in the kubelet's own events.
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": pool.owner, "uid": pool.owner}}
        await self._events.emit(node, "Warning", "PoolFull", message)

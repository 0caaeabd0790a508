"""Events on the nodes of full pools: the errors that pods get name neither the pool nor a remedy."""

import asyncio
import time
from collections.abc import Callable

import structlog

from csi_driver.domain.capacity import human
from csi_driver.kube.events import Events
from csi_driver.service.agents import FullPool, FullPoolLister

PERIOD_SECONDS = 30.0
REPEAT_SECONDS = 3000.0
"""The API keeps an event for an hour: while a pool is full there is always one."""

log = structlog.get_logger()


class FullPoolEvents:
    """Checks every half minute. A new leader emits again, and the same message is one event."""

    def __init__(self, agents: FullPoolLister, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._agents = agents
        self._events = events
        self._clock = clock
        self._emitted: dict[tuple[str, str], tuple[float, bool]] = {}
        """When the last event was emitted for each full pool, and whether it named what deleting would free."""

    async def run(self) -> None:
        """Check every half minute, until cancelled."""
        while True:
            await self.reconcile()
            await asyncio.sleep(PERIOD_SECONDS)

    async def reconcile(self) -> None:
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

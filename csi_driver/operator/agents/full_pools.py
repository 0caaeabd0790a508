"""Pools that have run full, told as events on their nodes: the guests' errors name no pool, and no way out."""

import asyncio
import time
from collections.abc import Callable

import structlog

from csi_driver.domain.capacity import human
from csi_driver.kube.events import Events
from csi_driver.service.agents import FullPool, FullPoolLister

EVERY_SECONDS = 30.0
AGAIN_SECONDS = 3000.0
"""The API keeps an event for an hour: as long as the pool is full, one is there."""

log = structlog.get_logger()


class FullPoolEvents:
    """Asks every half minute. Another leader tells anew, and the same words are one event."""

    def __init__(self, agents: FullPoolLister, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._agents = agents
        self._events = events
        self._clock = clock
        self._told: dict[tuple[str, str], tuple[float, bool]] = {}
        """When each full pool was told last, and whether with what would free most."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Look once, and tell of pools that are full since the last look, or for another hour."""
        answers = await self._agents.full_pools()
        full = {(pool.owner, pool.name): pool for pools in answers.values() for pool in pools}
        # Who does not answer now is not known to have room again.
        self._told = {key: told for key, told in self._told.items() if key in full or key[0] not in answers}
        now = self._clock()
        for key, pool in full.items():
            last, whole = self._told.get(key, (-AGAIN_SECONDS, False))
            if now - last >= AGAIN_SECONDS or (pool.would_free and not whole):
                self._told[key] = now, bool(pool.would_free)
                await self._report(pool)

    async def _report(self, pool: FullPool) -> None:
        log.warning("pool has run full", node=pool.owner, pool=pool.name, free=human(pool.free))
        message = (
            f"pool {pool.name} ({human(pool.total)}) has run full: writes to its thin volumes fail, or soon will; delete snapshots or "
            "volumes, trim file systems, or make the pool larger"
        )
        if pool.would_free:
            message += f"; deleting would free most: {', '.join(pool.would_free)}"
        # By its name alone, as the kubelet tells of its node.
        about = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": pool.owner, "uid": pool.owner}}
        await self._events.emit(about, "Warning", "PoolFull", message)

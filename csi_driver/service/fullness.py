"""Thin pools that have run full: noticed within seconds, logged, and reported with the objects whose deletion frees most.

Pods notice by errors of their writes; without this, nobody else would.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import structlog

from csi_driver.domain.capacity import CapacityReport, human
from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.usage_scanner import UsageScanner

CHECK_SECONDS = 10.0
"""One statvfs a pool, and one stat for each thick volume."""
REPEAT_SECONDS = 3600.0
"""While a pool is full, it is logged again after this time."""
SNAPSHOTS, VOLUMES = 3, 2
"""How many of each are named: snapshots and groups first, since they are more often dispensable than volumes."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Freed:
    """What the deletion of one object frees, in bytes, by the last count of its extents."""

    id: str
    name: str
    kind: Literal["volume", "snapshot", "group"]
    exclusive: int

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({human(self.exclusive)})"


def has_run_full(pool: Pool, account: CapacityReport) -> bool:
    """Return whether writes fail for lack of space, or soon will: only those of thin volumes can."""
    return account.full and any(not volume.thick for volume in pool.volumes.values())


class Fullness:
    """Watches the pools of one agent."""

    def __init__(self, pools: Pools, usage_scanner: UsageScanner, clock: Callable[[], float] = time.monotonic) -> None:
        self._pools = pools
        self._usage_scanner = usage_scanner
        self._clock = clock
        self._reported: dict[str, float] = {}

    async def run(self) -> None:
        """Check all pools repeatedly until cancelled."""
        async with asyncio.TaskGroup() as group:
            for pool in self._pools:
                group.create_task(self._watch(pool))

    async def _watch(self, pool: Pool) -> None:
        while True:
            try:
                await self.check(pool)
            except DriverError as error:  # unavailable, which is reported elsewhere
                log.debug("pool check failed", pool=pool.name, why=str(error))
            await asyncio.sleep(CHECK_SECONDS)

    async def check(self, pool: Pool) -> bool:
        """Check one pool and log a change; returns whether it is full. Raises Unavailable."""
        if pool.unavailable_reason is not None:
            return False
        account = await pool.ensure_available().account()
        now = self._clock()
        if not has_run_full(pool, account):
            if self._reported.pop(pool.name, None) is not None:
                log.info("the pool has room again", pool=pool.name, free=human(account.space.free))
            return False
        if now - self._reported.get(pool.name, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._reported[pool.name] = now
            log.error(
                "the pool has run full: writes to its thin volumes fail, or soon will",
                pool=pool.name,
                free=human(account.space.free),
                total=human(account.space.total),
            )
            await self._usage_scanner.scan(pool)  # after the first message: with many images it takes long
            candidates = [str(freed) for freed in self.would_free(pool)]
            log.error("deleting one of these would free most", pool=pool.name, would_free=candidates)
        return True

    def would_free(self, pool: Pool) -> list[Freed]:
        """Return what frees most, the largest first; snapshots and groups before volumes. Uses the last count of extents."""
        snapshots = heapq.nlargest(SNAPSHOTS, self._snapshots(pool), key=_size)
        volumes = heapq.nlargest(VOLUMES, self._volumes(pool), key=_size)
        return [freed for freed in (*snapshots, *volumes) if freed.exclusive]

    def _snapshots(self, pool: Pool) -> Iterator[Freed]:
        """Snapshots, and the members of a group together: they are deleted together."""
        for snapshot in list(pool.snapshots.values()):
            if not snapshot.group:
                yield self._freed(snapshot, "snapshot", [snapshot])
        for group in list(pool.groups.values()):
            yield self._freed(group, "group", group.members)

    def _volumes(self, pool: Pool) -> Iterator[Freed]:
        for volume in list(pool.volumes.values()):
            yield self._freed(volume, "volume", [volume])

    def _freed(
        self,
        item: Volume | Snapshot | GroupSnapshot,
        kind: Literal["volume", "snapshot", "group"],
        images: Sequence[Volume | Snapshot],
    ) -> Freed:
        usages = [self._usage_scanner.last_usage(image) for image in images]
        return Freed(str(item.id), item.name, kind, sum(usage.exclusive for usage in usages if usage is not None))


def _size(freed: Freed) -> int:
    return freed.exclusive

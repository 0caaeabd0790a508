"""A thin pool that has run full: noticed within seconds, told in the log and to who asks, with what deleting would free most.

The guests notice by themselves, each in its own way; nobody else would.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from csi_driver.domain.capacity import CapacityReport, human
from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.usage_scanner import UsageScanner

LOOK_SECONDS = 10.0
"""One statvfs a pool, and one stat for each thick volume."""
AGAIN_SECONDS = 3600.0
"""After this it is told again, as long as it lasts."""
SNAPSHOTS, VOLUMES = 3, 2
"""How many of each are named: snapshots and groups first, for they are given up more easily; volumes for those that nobody needs."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Freed:
    """What deleting one object would free, in bytes, as of the last count of its extents."""

    id: str
    name: str
    kind: Literal["volume", "snapshot", "group"]
    exclusive: int

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({human(self.exclusive)})"


@dataclass(frozen=True, slots=True)
class FullPool:
    """A pool of the cluster that has run full; bytes."""

    owner: str
    name: str
    total: int
    free: int
    would_free: tuple[str, ...] = ()


class FullPools(Protocol):
    """Which pools of a cluster are full. A port: it is served over the agents."""

    async def full(self) -> Mapping[str, Sequence[FullPool]]:
        """By owner, of those alone whose agent answered; none of an owner whose pools have room."""
        ...


def has_run_full(pool: Pool, account: CapacityReport) -> bool:
    """Whether writes fail for want of space, or soon will: only thin volumes can meet that."""
    return account.full and any(not volume.thick for volume in pool.volumes.values())


class Fullness:
    """Looks at the pools of one agent."""

    def __init__(self, pools: Pools, walk: UsageScanner, clock: Callable[[], float] = time.monotonic) -> None:
        self._pools = pools
        self._walk = walk
        self._clock = clock
        self._told: dict[str, float] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for pool in self._pools:
                group.create_task(self._watch(pool))

    async def _watch(self, pool: Pool) -> None:
        while True:
            try:
                await self.look(pool)
            except DriverError as error:  # it is away, which is told elsewhere
                log.debug("pool cannot be looked at", pool=pool.name, why=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, pool: Pool) -> bool:
        """Look at one pool, and tell what is new. Raises Unavailable."""
        if pool.refusal is not None:
            return False
        account = await pool.serving().account()
        now = self._clock()
        if not has_run_full(pool, account):
            if self._told.pop(pool.name, None) is not None:
                log.info("the pool has room again", pool=pool.name, free=human(account.space.free))
            return False
        if now - self._told.get(pool.name, -AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._told[pool.name] = now
            log.error(
                "the pool has run full: writes to its thin volumes fail, or soon will",
                pool=pool.name,
                free=human(account.space.free),
                total=human(account.space.total),
            )
            await self._walk.scan(pool)  # after the news: of many images it takes its time
            found = [str(freed) for freed in self.would_free(pool)]
            log.error("deleting one of these would free most", pool=pool.name, would_free=found)
        return True

    def would_free(self, pool: Pool) -> list[Freed]:
        """What would free most, the most first; snapshots and groups before volumes. Nothing is counted for it."""
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
        usages = [self._walk.last_usage(image) for image in images]
        return Freed(str(item.id), item.name, kind, sum(usage.exclusive for usage in usages if usage is not None))


def _size(freed: Freed) -> int:
    return freed.exclusive

"""Counts the exclusive bytes and extents of a pool's objects in the background: that is never the work of a metrics scrape."""

import asyncio
import time
from dataclasses import dataclass

from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import Snapshot, Usage, Volume
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool

PAUSE_SECONDS = 300.0
"""Between the end of one scan and the next."""
MIN_PAUSE = 0.02
"""The least pause between two images."""
PAUSE_FACTOR = 10
"""A pause is this many times as long as the count before it: counting extents and cloning them take the same lock in XFS, and
a clone inside a freeze must not wait for a metric."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The sums of one scan, and when it ended (Unix nanoseconds; 0 before the first). `extents` None: the pool counts none."""

    exclusive: int = 0
    extents: int | None = None
    at: int = 0


class UsageScanner:
    """Scans all pools again and again; what has not changed since the last scan is not counted again."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._known: dict[str, tuple[str, str, Usage]] = {}
        self._sums: dict[str, ScanResult] = {}

    def totals(self, pool: str) -> ScanResult:
        """Return the sums of the last finished scan of a pool."""
        return self._sums.get(pool, ScanResult())

    def last_usage(self, item: Volume | Snapshot) -> Usage | None:
        """Return what was counted last of an object; None before that. An object of the same name before it does not count."""
        known = self._known.get(str(item.id))
        return known[2] if known and known[0] == item.uid else None

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            for pool in self._context.pools:
                if pool.unavailable_reason is None:
                    await self.scan(pool)
            await asyncio.sleep(PAUSE_SECONDS)

    async def scan(self, pool: Pool, pause: float = MIN_PAUSE) -> ScanResult:
        """Scan one pool once."""
        exclusive, extents = 0, 0 if pool.backend.traits.counts_extents else None
        seen: set[str] = set()
        items: list[Volume | Snapshot] = [*pool.volumes.values(), *pool.snapshots.values()]
        for item in items:
            started = time.monotonic()
            usage = await self._usage(pool, item)
            took = time.monotonic() - started
            if usage is not None:
                seen.add(str(item.id))
                exclusive += usage.exclusive
                if extents is not None:
                    extents += usage.extents or 0
            await asyncio.sleep(max(pause, PAUSE_FACTOR * took))
        for gone in [key for key in self._known if key not in seen and key.split(":")[1] == pool.name]:
            self._known.pop(gone, None)  # another scan of the same pool may have seen that too
        self._sums[pool.name] = ScanResult(exclusive, extents, self._context.now())
        return self._sums[pool.name]

    async def _usage(self, pool: Pool, item: Volume | Snapshot) -> Usage | None:
        try:
            stamp = pool.backend.change_token(item)
            known = self._known.get(str(item.id))
            if known is None or known[:2] != (item.uid, stamp):
                known = (item.uid, stamp, await pool.backend.usage(item))
                self._known[str(item.id)] = known
            return known[2]
        except DriverError:  # deleted meanwhile, or the pool has gone: it says so itself
            return None

"""The slow walk behind the figures of a pool's exclusive bytes and extents: counting them is never a scrape's work."""

import asyncio
import time
from dataclasses import dataclass

from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import Snapshot, Usage, Volume
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool

PAUSE_SECONDS = 300.0
"""Between the end of one walk and the next."""
BREATH_SECONDS = 0.02
"""The least pause between two images."""
SHARE = 10
"""A pause is this many times as long as the count before it: counting extents and cloning them take the same lock in XFS, and
a cut inside a freeze must not wait for a figure."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The sums of one walk, and when it ended (Unix nanoseconds; 0 before the first)."""

    exclusive: int = 0
    extents: int = 0
    at: int = 0


class UsageScanner:
    """Walks all images of all pools again and again; what has not changed since the last walk is not counted again."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context
        self._known: dict[str, tuple[str, Usage]] = {}
        self._sums: dict[str, ScanResult] = {}

    def sums(self, pool: str) -> ScanResult:
        """The last finished walk of a pool."""
        return self._sums.get(pool, ScanResult())

    def known(self, item: Volume | Snapshot) -> Usage | None:
        """What the last look at an image found; None before the first."""
        found = self._known.get(str(item.id))
        return found[1] if found else None

    async def run(self) -> None:
        """Walk until cancelled."""
        while True:
            for pool in self._context.pools:
                if pool.refusal is None:
                    await self.walk(pool)
            await asyncio.sleep(PAUSE_SECONDS)

    async def walk(self, pool: Pool, breath: float = BREATH_SECONDS) -> ScanResult:
        """Walk one pool once."""
        exclusive = extents = 0
        seen: set[str] = set()
        items: list[Volume | Snapshot] = [*pool.volumes.values(), *pool.snapshots.values()]
        for item in items:
            started = time.monotonic()
            usage = await self._usage(pool, item)
            took = time.monotonic() - started
            if usage is not None:
                seen.add(str(item.id))
                exclusive += usage.exclusive
                extents += usage.extents
            await asyncio.sleep(max(breath, SHARE * took))
        for gone in [key for key in self._known if key not in seen and key.split(":")[1] == pool.name]:
            self._known.pop(gone, None)  # another walk of the same pool may have seen that too
        self._sums[pool.name] = ScanResult(exclusive, extents, self._context.now())
        return self._sums[pool.name]

    async def _usage(self, pool: Pool, item: Volume | Snapshot) -> Usage | None:
        try:
            stamp = pool.backend.change_token(item)
            known = self._known.get(str(item.id))
            if known is None or known[0] != stamp:
                known = (stamp, await pool.backend.usage(item))
                self._known[str(item.id)] = known
            return known[1]
        except DriverError:  # deleted meanwhile, or the pool has gone: it says so itself
            return None

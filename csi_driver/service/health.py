"""The slow walk over all volumes that finds those in trouble, for whom nobody else asks, and throws away what was kept long enough.

A kubelet asks for the figures of each published volume about once a minute, and what is wrong is found there too; but not of
volumes that are only staged, nor where there is no kubelet.
"""

import asyncio
from contextlib import suppress

from csi_driver.domain.errors import DriverError
from csi_driver.service.conditions import recorded_trouble
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool

SCAN_INTERVAL = 300.0
"""Between the end of one walk and the next: a look at a volume in use takes a process or two."""
MIN_PAUSE = 0.02
"""Between two volumes."""


class HealthScanner:
    """Walks all volumes of all pools again and again."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context

    async def run(self) -> None:
        """Walk until cancelled."""
        while True:
            for pool in self._context.pools:
                if pool.refusal is None:
                    await self.scan(pool)
            await asyncio.sleep(SCAN_INTERVAL)

    async def scan(self, pool: Pool, pause: float = MIN_PAUSE) -> None:
        """Walk one pool once. What cannot be looked at now is left as it was known."""
        conditions = self._context.conditions
        for digest, volume in list(pool.volumes.items()):
            with suppress(DriverError):
                trouble = await pool.backend.access.trouble(volume)
                if (now := pool.volumes.get(digest)) is not None:
                    conditions.note(now, recorded_trouble(now) or trouble)
            await asyncio.sleep(pause)
        conditions.retain_only({str(volume.id) for each in self._context.pools for volume in each.volumes.values()})
        with suppress(DriverError):
            await pool.backend.checks.forget_old(self._context.now())

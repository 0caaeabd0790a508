"""Scans all volumes for trouble that no call reports, and deletes content that checks kept for long enough.

A kubelet asks for the statistics of each published volume about once a minute, which reports its condition too; but not for
volumes that are only staged, nor on a machine without a kubelet.
"""

import asyncio
from contextlib import suppress

from csi_driver.domain.errors import DriverError
from csi_driver.service.conditions import recorded_condition
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool

SCAN_INTERVAL = 300.0
"""Seconds between the end of one scan and the next: a volume in use takes a helper process or two."""
MIN_PAUSE = 0.02
"""Seconds between two volumes."""


class HealthScanner:
    """Scans all volumes of all pools repeatedly."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            for pool in self._context.pools:
                if pool.unavailable_reason is None:
                    await self.scan(pool)
            await asyncio.sleep(SCAN_INTERVAL)

    async def scan(self, pool: Pool, pause: float = MIN_PAUSE) -> None:
        """Scan one pool once. A volume that cannot be inspected now keeps its last known condition."""
        conditions = self._context.conditions
        for digest, volume in list(pool.volumes.items()):
            with suppress(DriverError):
                condition = await pool.backend.access.condition(volume)
                if (current := pool.volumes.get(digest)) is not None:
                    conditions.note(current, recorded_condition(current) or condition)
            await asyncio.sleep(pause)
        conditions.retain_only({str(volume.id) for each in self._context.pools for volume in each.volumes.values()})
        with suppress(DriverError):
            await pool.backend.checks.forget_old(self._context.now())

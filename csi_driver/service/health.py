"""The slow walk over all volumes that finds those in trouble, for whom nobody else asks, and throws away what was kept long enough.

A kubelet asks for the figures of each published volume about once a minute, and what is wrong is found there too; but not of
volumes that are only staged, nor where there is no kubelet.
"""

import asyncio
from contextlib import suppress

from csi_driver.domain.errors import DriverError
from csi_driver.service.conditions import of_record
from csi_driver.service.dependencies import ServiceDependencies
from csi_driver.service.pools import Pool

PAUSE_SECONDS = 300.0
"""Between the end of one walk and the next: a look at a volume in use takes a process or two."""
BREATH_SECONDS = 0.02
"""Between two volumes."""


class HealthWalk:
    """Walks all volumes of all pools again and again."""

    def __init__(self, context: ServiceDependencies) -> None:
        self._context = context

    async def run(self) -> None:
        """Walk until cancelled."""
        while True:
            for pool in self._context.pools:
                if pool.refusal is None:
                    await self.walk(pool)
            await asyncio.sleep(PAUSE_SECONDS)

    async def walk(self, pool: Pool, breath: float = BREATH_SECONDS) -> None:
        """Walk one pool once. What cannot be looked at now is left as it was known."""
        conditions = self._context.conditions
        for digest, volume in list(pool.volumes.items()):
            with suppress(DriverError):
                trouble = await pool.backend.access.trouble(volume)
                if (now := pool.volumes.get(digest)) is not None:
                    conditions.note(now, of_record(now) or trouble)
            await asyncio.sleep(breath)
        conditions.keep({str(volume.id) for each in self._context.pools for volume in each.volumes.values()})
        with suppress(DriverError):
            await pool.backend.checks.forget_old(self._context.now())

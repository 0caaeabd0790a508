"""Brings up the agent's pools: their image, their backends, and a retry for pools whose disk is missing at start."""

import asyncio
from contextlib import suppress

import structlog

from csi_driver.agent.settings import NEW_IMAGE, PoolImage, PoolSpec, Settings
from csi_driver.backends.base import Backend
from csi_driver.backends.options import PoolOptions
from csi_driver.backends.reflink.pool_image_setup import prepare, remove
from csi_driver.backends.registry import BACKENDS
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import DriverError, Precondition, Unavailable
from csi_driver.host.helper.client import HelperPool
from csi_driver.probes import AgentHealth
from csi_driver.service.pools import Pool, Pools

REOPEN_SECONDS = 15.0
"""Between two attempts to open a pool whose disk was missing at start."""

log = structlog.get_logger()


def make_backend(spec: PoolSpec, settings: Settings, owner: str, helpers: HelperPool) -> Backend:
    """Return the backend of a pool, not open."""
    image = settings.image
    in_image = image is not None and spec.path == image.mount
    options = PoolOptions(
        spec.name,
        owner,
        spec.path,
        init=settings.pool_init,
        freeze_deadline=settings.freeze_deadline,
        backing=image.path if image is not None and in_image and image.sparse else "",
        in_container=bool(settings.register),
        runtime_directory=settings.runtime_directory,
    )
    return BACKENDS[spec.backend].make(options, helpers)


class PoolStartup:
    """Opens all pools of one agent. `open` may be called once."""

    def __init__(self, pools: Pools, settings: Settings, health: AgentHealth, helpers: HelperPool) -> None:
        self._pools = pools
        self._settings = settings
        self._health = health
        self._helpers = helpers
        self._unavailable: list[Pool] = []

    async def open(self) -> None:
        """Mount the pool image and open the pools. Undoes a new image if that fails or is cancelled.

        Raises DriverError if no pool can be opened. In a pod, pools whose disk is missing are left to `reopen`.
        """
        created: PoolImage | None = None
        if (image := self._settings.image) is not None:
            self._health.set_not_ready("start", f"the pool image {image.path} is being made, grown or mounted")
            created = image if await self._prepare(image) else None
        self._health.set_not_ready("start", "the pools are being opened")
        try:
            await self._open_pools()
        except BaseException:  # refused, or cancelled by SIGTERM
            if created is not None:
                await asyncio.gather(*(pool.backend.close() for pool in self._pools))  # it cannot be unmounted before
                await remove(self._helpers, created.path, created.mount)
            raise

    async def reopen(self) -> None:
        """Open each unavailable pool as soon as its disk is back; returns when all are open."""
        while self._unavailable:
            await asyncio.sleep(REOPEN_SECONDS)
            for pool in list(self._unavailable):
                with suppress(DriverError):
                    await pool.open()
                    self._unavailable.remove(pool)
                    self._health.set_ready("pools")
                    log.info("pool is available again", pool=pool.name)
                    await _warn_if_full(pool)

    async def _prepare(self, image: PoolImage) -> bool:
        """Have the pool image mounted; returns whether it was created now."""
        size, keep = image.size or NEW_IMAGE, image.size is None
        in_container = bool(self._settings.register)
        done = await prepare(self._helpers, image.path, size, image.sparse, image.mount, in_container, keep)
        if done.kept:
            log.error("pool image keeps its size", image=image.path, why=done.kept)
            self._health.note("pool image", f"keeps its size: {done.kept}")
        return done.made

    async def _open_pools(self) -> None:
        for pool in self._pools:
            try:
                await pool.open()
            except Unavailable as error:
                log.error("pool is unavailable", pool=pool.name, why=str(error))
                self._unavailable.append(pool)
            else:
                await _warn_if_full(pool)
        if len(self._unavailable) == len(self._settings.pools):
            why = str(self._unavailable[0].unavailable_reason)
            if not self._settings.register:
                raise Precondition(why)
            # Pods must be able to end without their disk, and a kubelet would restart an agent that does not start forever.
            self._health.set_not_ready("pools", why)


async def _warn_if_full(pool: Pool) -> None:
    """Log at start that no volume fits, before the first PVC finds out."""
    try:
        account = await pool.account()
    except DriverError:  # it is unavailable again
        return
    if not account.available:
        log.warning(
            "pool has no capacity for new volumes",
            pool=pool.name,
            total=human(account.space.total),
            free=human(account.space.free),
            reserve=human(account.reserve),
            committed=f"{human(account.committed)} of {human(account.ceiling)}",
            way_out=pool.way_out,
        )

"""One leader among the replicas, by a Lease: whoever cannot renew it in time stops before another may begin.

Clocks of two machines are never compared: a lease has expired when it did not change here for its whole duration.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound
from csi_driver.kube.client import Api, Object
from csi_driver.kube.errors import Conflict
from csi_driver.kube.resources import LEASES

LEASE_SECONDS = 15.0
"""For which others wait after the last renewal that they saw."""

RENEW_SECONDS = 10.0
"""Without a renewal for so long, the leader stops: the rest of the lease is its time to end."""

RETRY_SECONDS = 2.0
"""Between two tries, to renew as to acquire."""

GIVE_BACK_SECONDS = 2.0
"""For that at the end: worth a moment, not more, since the lease runs out by itself."""

log = structlog.get_logger()


class LeaderElector:
    """A candidate. `identity` must differ between replicas: the pod's name does."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        lease: float = LEASE_SECONDS,
        renew: float = RENEW_SECONDS,
        retry: float = RETRY_SECONDS,
    ) -> None:
        self._api = api
        self._place = (name, namespace)
        self._identity = identity
        self._lease, self._renew, self._retry = lease, renew, retry
        self._seen: tuple[str, float] = ("", time.monotonic())
        self.leading = False

    async def run(self, on_lead: Callable[[], Awaitable[None]]) -> None:
        """Run `on_lead` whenever this replica leads; it is cancelled when it must not any more. Until cancelled.

        Work that ends by itself, or fails, is begun again under the next lease. On cancellation the lease is given back,
        so that another replica leads at once.
        """
        while True:
            await self._acquire()
            self.leading = True
            log.info("leading", lease=self._place[0])
            work = asyncio.ensure_future(on_lead())
            try:
                await self._renew_while(work)
            finally:
                await _end(work)
                self.leading = False
                log.info("not leading any more", lease=self._place[0])
                await self._give_back()
            await asyncio.sleep(self._retry)

    async def _acquire(self) -> None:
        told = ""
        while True:
            try:
                async with asyncio.timeout(self._renew):
                    if await self._try():
                        return
            except Conflict:
                pass  # another was quicker
            except (DriverError, TimeoutError) as error:
                if str(error) != told:
                    log.warning("the lease cannot be asked for", lease=self._place[0], why=str(error))
                told = str(error)
            await asyncio.sleep(self._retry * random.uniform(1, 1.2))  # noqa: S311  spreads replicas, hides nothing

    async def _renew_while(self, work: asyncio.Future[None]) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.wait({work}, timeout=min(self._retry, max(0, renewed + self._renew - time.monotonic())))
            if work.done():
                return
            began = time.monotonic()
            try:
                async with asyncio.timeout(max(0, renewed + self._renew - began)):
                    if not await self._try():
                        log.warning("the lease was taken by another", lease=self._place[0])
                        return
                renewed = began
            except TimeoutError:
                log.warning("the lease could not be renewed in time", lease=self._place[0])
                return
            except DriverError as error:
                log.warning("the lease is not renewed yet", lease=self._place[0], why=str(error))

    async def _try(self) -> bool:
        """Acquire or renew once. Raises Conflict where another was quicker."""
        name, namespace = self._place
        found = await self._api.get(LEASES, name, namespace)
        if found is None:
            body = {"kind": "Lease", "metadata": {"name": name, "namespace": namespace}, "spec": self._spec({})}
            with suppress(AlreadyExists):
                await self._api.create(LEASES, body, namespace)
                return True
            return False
        spec = found.get("spec") or {}
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        holder = spec.get("holderIdentity") or ""
        lasts = float(spec.get("leaseDurationSeconds") or self._lease)
        if holder not in {"", self._identity} and time.monotonic() - self._seen[1] < lasts:
            return False
        await self._api.replace(LEASES, found | {"spec": spec | self._spec(spec)})
        return True

    def _spec(self, old: Object) -> Object:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        kept = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._lease)),
            "acquireTime": old.get("acquireTime", now) if kept else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if kept else 1),
        }

    async def _give_back(self) -> None:
        name, namespace = self._place
        with suppress(DriverError, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                found = await self._api.get(LEASES, name, namespace)
                if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._identity:
                    with suppress(NotFound):
                        await self._api.replace(LEASES, found | {"spec": found["spec"] | {"holderIdentity": ""}})


async def _end(work: asyncio.Future[None]) -> None:
    """Cancel the work and wait until it has ended; what it failed with is logged."""
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("the leader's work failed", exc_info=error)

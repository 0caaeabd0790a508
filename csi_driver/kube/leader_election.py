"""Leader election by a Lease: a leader that cannot renew it in time stops before another may begin.

Clocks of two machines are never compared: a lease has expired if this replica saw no change for its whole duration.
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
"""How long others wait after the last renewal that they saw."""

RENEW_SECONDS = 10.0
"""After so long without a renewal the leader stops: it has the rest of the lease to end."""

RETRY_SECONDS = 2.0
"""Between two tries to renew or acquire."""

RELEASE_SECONDS = 2.0
"""For the release at the end: not more, since the lease expires anyway."""

log = structlog.get_logger()


class LeaderElector:
    """One candidate. `identity` must differ between replicas, as the pod's name does."""

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
        self._key = (name, namespace)
        self._identity = identity
        self._lease, self._renew, self._retry = lease, renew, retry
        self._seen: tuple[str, float] = ("", time.monotonic())
        self.leading = False

    async def run(self, on_lead: Callable[[], Awaitable[None]]) -> None:
        """Run `on_lead` whenever this replica leads, and cancel it when it no longer does. Until cancelled.

        Work that returns or fails is started again under the next lease. On cancellation the lease is released, so that
        another replica leads at once.
        """
        while True:
            await self._acquire()
            self.leading = True
            log.info("started leading", lease=self._key[0])
            work = asyncio.ensure_future(on_lead())
            try:
                await self._renew_while(work)
            finally:
                await _end(work)
                self.leading = False
                log.info("stopped leading", lease=self._key[0])
                await self._release()
            await asyncio.sleep(self._retry)

    async def _acquire(self) -> None:
        last_error = ""
        while True:
            try:
                async with asyncio.timeout(self._renew):
                    if await self._acquire_or_renew():
                        return
            except Conflict:
                pass  # another was quicker
            except (DriverError, TimeoutError) as error:
                if str(error) != last_error:
                    log.warning("acquire lease failed", lease=self._key[0], why=str(error))
                last_error = str(error)
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
                    if not await self._acquire_or_renew():
                        log.warning("lease was taken by another replica", lease=self._key[0])
                        return
                renewed = began
            except TimeoutError:
                log.warning("renew deadline exceeded", lease=self._key[0])
                return
            except DriverError as error:
                log.warning("renew lease failed, retrying", lease=self._key[0], why=str(error))

    async def _acquire_or_renew(self) -> bool:
        """Acquire or renew once. Raises Conflict if another replica was quicker."""
        name, namespace = self._key
        lease = await self._api.get(LEASES, name, namespace)
        if lease is None:
            body = {"kind": "Lease", "metadata": {"name": name, "namespace": namespace}, "spec": self._spec({})}
            with suppress(AlreadyExists):
                await self._api.create(LEASES, body, namespace)
                return True
            return False
        spec = lease.get("spec") or {}
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        holder = spec.get("holderIdentity") or ""
        duration = float(spec.get("leaseDurationSeconds") or self._lease)
        if holder not in {"", self._identity} and time.monotonic() - self._seen[1] < duration:
            return False
        await self._api.replace(LEASES, lease | {"spec": spec | self._spec(spec)})
        return True

    def _spec(self, old: Object) -> Object:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        renewed = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._lease)),
            "acquireTime": old.get("acquireTime", now) if renewed else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if renewed else 1),
        }

    async def _release(self) -> None:
        name, namespace = self._key
        with suppress(DriverError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                lease = await self._api.get(LEASES, name, namespace)
                if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                    with suppress(NotFound):
                        await self._api.replace(LEASES, lease | {"spec": lease["spec"] | {"holderIdentity": ""}})


async def _end(work: asyncio.Future[None]) -> None:
    """Cancel the work, wait until it has ended, and log its error."""
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("leader component failed", exc_info=error)

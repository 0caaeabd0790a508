"""What every service needs besides the pools: clock, randomness, observer."""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from csi_driver.backends.base import SnapshotTimings
from csi_driver.domain.errors import DriverError, InUse
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.domain.page_tokens import read_token, token_after
from csi_driver.service.conditions import Conditions
from csi_driver.service.pools import Pool, Pools

HOLD_SECONDS = 300
"""After this a hold lapses that nobody renews."""

SHORT_SECONDS = 5
"""Work that takes no longer is not worth giving back to a hold."""

Item = TypeVar("Item", Volume, Snapshot)


class Observer(Protocol):
    """Where figures go; agent/metrics.py counts them for Prometheus."""

    def cut(self, pool: str, report: SnapshotTimings) -> None:
        """One snapshot, group or clone of a volume was cut."""
        ...

    def checked(self, pool: str, result: str) -> None:
        """A check of a file system has ended: mended, damaged or failed."""
        ...


class Unobserved:
    """An observer that drops everything."""

    def cut(self, pool: str, report: SnapshotTimings) -> None:
        """See Observer."""

    def checked(self, pool: str, result: str) -> None:
        """See Observer."""


@dataclass(frozen=True)
class ServiceDependencies:
    """Pools, clock and observer, shared by the services of one agent."""

    pools: Pools
    now: Callable[[], int] = time.time_ns
    new_uid: Callable[[], str] = lambda: uuid.uuid4().hex
    observer: Observer = field(default_factory=Unobserved)
    conditions: Conditions = field(default_factory=Conditions)
    _outlasting: set[str] = field(default_factory=set)
    """Volumes at work whose hold stood when that began."""

    def current_holder(self, volume: Volume) -> str:
        """Who holds the volume now; empty where nobody does or the hold has lapsed."""
        hold = volume.hold
        stands = hold and (hold.expires > self.now() or volume.id.hash in self._outlasting)
        return hold.holder if hold and stands else ""

    @asynccontextmanager
    async def extend_hold_while(self, pool: Pool, volumes: Iterable[Volume]) -> AsyncIterator[None]:
        """Let no hold that stands lapse while its volume is locked for work that may take longer than a hold lasts.

        Its holder cannot renew it meanwhile, and would take a lapse for the proof that the work was never begun. When the
        work ends, however it ends, the hold has as long to go as it had before: work of others renews it for nobody.
        """
        began = self.now()
        held = {volume.id.hash for volume in volumes if self.current_holder(volume)}
        self._outlasting.update(held)
        try:
            yield
        finally:
            took = self.now() - began
            try:
                for digest in held:
                    volume = pool.volumes.get(digest)
                    # Most work takes no time, and a record takes a log flush.
                    if volume and volume.hold and took > SHORT_SECONDS * 1_000_000_000:
                        longer = replace(volume, hold=replace(volume.hold, expires=volume.hold.expires + took))
                        with suppress(DriverError):  # it lapses then, which its holder sees
                            await pool.backend.save_volume(longer)
                            pool.put_volume(longer)
            finally:
                self._outlasting.difference_update(held)

    def ensure_not_held(self, volume: Volume, doing: str) -> None:
        """Raise InUse while somebody holds the volume."""
        holder = self.current_holder(volume)
        if holder:
            raise InUse(
                f"{doing} of {volume.id} is refused while {holder!r} holds it for a rollback: wait for its release"
            )


def page(items: list[Item], limit: int, token: str) -> tuple[list[Item], str]:
    """One page in the order of ids, and the token of the next (empty at the end).

    The token names the last id given, so pages stay right while objects come and go. Raises BadToken.
    """
    ordered = sorted(items, key=lambda item: str(item.id))
    if token:
        last = read_token(token)
        ordered = [item for item in ordered if str(item.id) > str(last)]
    if not limit or len(ordered) <= limit:
        return ordered, ""
    return ordered[:limit], token_after(ordered[limit - 1].id)

"""Holds: a volume is kept out of use for one holder until the hold expires. Rollbacks makes and releases them."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from csi_driver.domain.errors import DriverError, InUse
from csi_driver.domain.model import Volume
from csi_driver.service.pools import Pool

HOLD_SECONDS = 300
"""A hold expires after this time unless its holder renews it."""

SHORT_SECONDS = 5
"""Work that takes no longer does not extend a hold: saving a record costs a flush of the log."""


class Holds:
    """Answers who holds a volume. `now` is Unix time in nanoseconds."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._extended: set[str] = set()
        """Hashes of volumes under work whose hold was valid when the work began."""

    def current_holder(self, volume: Volume) -> str:
        """Return who holds the volume now; empty if nobody does or the hold has expired."""
        hold = volume.hold
        is_valid = hold and (hold.expires > self._now() or volume.id.hash in self._extended)
        return hold.holder if hold and is_valid else ""

    @asynccontextmanager
    async def extend_hold_while(self, pool: Pool, volumes: Iterable[Volume]) -> AsyncIterator[None]:
        """Keep valid holds from expiring while their volumes are locked for work that may outlast a hold.

        The holder cannot renew its hold meanwhile, and would take an expired one as proof that the work never began. When the
        work ends, with or without success, each hold has as much time left as before: work of others renews no hold.
        """
        began = self._now()
        held = {volume.id.hash for volume in volumes if self.current_holder(volume)}
        self._extended.update(held)
        try:
            yield
        finally:
            took = self._now() - began
            try:
                for digest in held:
                    volume = pool.volumes.get(digest)
                    if volume and volume.hold and took > SHORT_SECONDS * 1_000_000_000:
                        extended = replace(volume, hold=replace(volume.hold, expires=volume.hold.expires + took))
                        with suppress(DriverError):  # then the hold expires, and its holder notices
                            await pool.backend.save_volume(extended)
                            pool.put_volume(extended)
            finally:
                self._extended.difference_update(held)

    def ensure_not_held(self, volume: Volume, operation: str) -> None:
        """Raise InUse while somebody holds the volume."""
        if holder := self.current_holder(volume):
            raise InUse(
                f"{operation} of {volume.id} is refused while {holder!r} holds it for a rollback: wait for its release"
            )

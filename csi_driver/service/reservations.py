"""Space for thick volumes: reserved before a call begins, and for nobody else until it has ended. The backend says how much.

A call that ran out of space half-way would have filled the pool first, and every thin volume in it would meet that.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from csi_driver.backends.base import SpaceNeeded
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import Busy, OutOfSpace
from csi_driver.service.pools import Pool


@asynccontextmanager
async def reserve_space(
    pool: Pool, doing: str, needed: SpaceNeeded, size: int = 0, own: int = 0
) -> AsyncIterator[None]:
    """Count the bytes of `needed` as taken while they are being taken, and `size` of a new volume as committed.

    Raises OutOfSpace if they are not free, or are reserved for others; Busy if calls under way have them, beside the `own` that
    are reserved for this one already: whether they keep them is known when these have ended. Thin volumes need none.
    """
    account = await pool.account() if needed.bytes else None
    if account is not None and needed.bytes > account.reservable:
        what = f"{doing} must set aside {needed.bytes} bytes ({human(needed.bytes)}; {needed.formula})"
        if needed.bytes <= account.reservable_after_pending(own):
            raise Busy(
                f"{what}, and pool {pool.name} can reserve {human(account.reservable)} while other thick volumes are worked on, "
                f"for which {human(account.under_way - own)} are reserved: try again"
            )
        if account.passed_limit is not None:
            raise OutOfSpace(
                f"{what}, and pool {pool.name} reserves nothing, since {account.passed_limit}: {pool.remedy(account)}"
            )
        raise OutOfSpace(
            f"{what}, and pool {pool.name} can reserve {account.reservable} bytes ({human(account.space.free)} free, less "
            f"{human(account.reserve)} kept in reserve and {human(account.promised)} reserved for thick volumes): {pool.way_out}"
        )
    pool.pending += size
    pool.pending_thick += needed.bytes
    try:
        yield
    finally:
        pool.pending -= size
        pool.pending_thick -= needed.bytes
        pool.space_changed()

"""Room for thick volumes: asked for before a call begins, and promised to nobody else until it has ended.

A call that ran out of space half-way would have filled the pool first, and every thin volume in it would meet that.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from csi_driver.domain.errors import Busy, OutOfSpace
from csi_driver.domain.model import Volume
from csi_driver.service.pools import Pool


def taken(pool: Pool, cut: Iterable[Volume] = (), made: Volume | None = None) -> int:
    """The bytes that thick volumes take at once when some are cut and an image is made.

    A cut leaves its blocks to the copy, and the volume is given as many again. A thick copy keeps what it was left and is
    given the rest of its size, so that both together take no more than the larger of the two.
    """
    again = sum(pool.backend.allocated(volume) for volume in cut if volume.thick)
    return max(again, made.size if made is not None and made.thick else 0)


@contextmanager
def promised(pool: Pool, doing: str, needed: int, size: int = 0, own: int = 0) -> Iterator[None]:
    """Count `needed` bytes as taken while they are being taken, and `size` bytes of a new volume as committed.

    Raises OutOfSpace where `needed` bytes are not free, or were promised to others; Busy where it is calls under way that have
    them, beside the `own` that were promised to this one already: whether they keep them is known when these have ended.
    Thin volumes need none.
    """
    account = pool.account() if needed else None
    if account is not None and needed > account.unpromised:
        if needed <= account.unpromised_later(own):
            raise Busy(
                f"{doing} must set aside {needed} bytes, and pool {pool.name} has room for {account.unpromised} while other thick "
                f"volumes are worked on, for which {account.under_way - own} are promised: try again"
            )
        raise OutOfSpace(
            f"{doing} must set aside {needed} bytes, and pool {pool.name} has room for {account.unpromised} "
            f"({account.space.free} bytes free, {account.reserve} kept in reserve, {account.promised} promised to thick "
            "volumes): delete something first"
        )
    pool.pending += size
    pool.pending_thick += needed
    try:
        yield
    finally:
        pool.pending -= size
        pool.pending_thick -= needed

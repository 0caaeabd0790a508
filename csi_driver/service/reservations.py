"""Room for thick volumes: asked for before a call begins, and promised to nobody else until it has ended.

A call that ran out of space half-way would have filled the pool first, and every thin volume in it would meet that.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from csi_driver.domain.capacity import human
from csi_driver.domain.errors import Busy, OutOfSpace
from csi_driver.domain.model import Volume
from csi_driver.service.pools import Pool

MADE = "the whole size, since its blocks are its own from the start"
CUT = "as much again as each thick volume that is cut has allocated: the copy keeps the old blocks, the volume gets new ones"
COPIED = "the larger of what the thick source has allocated, which is given as much again, and the size of a thick copy"
CHECKED = "the volume's size: what it held is kept beside what it will hold"
BACK = "the volume's size: old and new content are there at the same time; a safety snapshot takes as much on top"
"""What `needed` is, in words for a refusal; docs/how-to/space.md has the same as a table."""


def space_needed(pool: Pool, cut: Iterable[Volume] = (), made: Volume | None = None) -> int:
    """The bytes that thick volumes take at once when some are cut and an image is made.

    A cut leaves its blocks to the copy, and the volume is given as many again. A thick copy keeps what it was left and is
    given the rest of its size, so that both together take no more than the larger of the two. What was allocated and never written
    is not shared by a cut, so less may be taken in the end; but a writer may write it until the cut.
    """
    again = sum(pool.backend.allocated(volume) for volume in cut if volume.thick)
    return max(again, made.size if made is not None and made.thick else 0)


@contextmanager
def reserve_space(pool: Pool, doing: str, needed: int, formula: str, size: int = 0, own: int = 0) -> Iterator[None]:
    """Count `needed` bytes, which `formula` explains, as taken while they are being taken, and `size` of a new volume as committed.

    Raises OutOfSpace where `needed` bytes are not free, or were promised to others; Busy where it is calls under way that have
    them, beside the `own` that were promised to this one already: whether they keep them is known when these have ended.
    Thin volumes need none.
    """
    account = pool.account() if needed else None
    if account is not None and needed > account.unpromised:
        told = f"{doing} must set aside {needed} bytes ({human(needed)}; {formula})"
        if needed <= account.reservable_after_pending(own):
            raise Busy(
                f"{told}, and pool {pool.name} has room for {human(account.unpromised)} while other thick volumes are worked on, "
                f"for which {human(account.under_way - own)} are promised: try again"
            )
        raise OutOfSpace(
            f"{told}, and pool {pool.name} has room for {account.unpromised} bytes ({human(account.space.free)} free, less "
            f"{human(account.reserve)} kept in reserve and {human(account.promised)} promised to thick volumes): {pool.way_out}"
        )
    pool.pending += size
    pool.pending_thick += needed
    try:
        yield
    finally:
        pool.pending -= size
        pool.pending_thick -= needed

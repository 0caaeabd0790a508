"""What operations cost in a pool whose copies share blocks with their sources, as reflink and the memory pool have it."""

from csi_driver.backends.base import SpaceNeeded, SpaceOperation
from csi_driver.domain.model import Volume

_FORMULAS = {
    "create": "the whole size, since its blocks are its own from the start",
    "snapshot": "as much again as each thick volume that is snapshotted has allocated: the snapshot keeps the old blocks, the volume "
    "gets new ones",
    "clone": "the larger of what the thick source has allocated, which is given as much again, and the size of a thick clone",
    "check": "the volume's size: what it held is kept beside what it will hold",
    "rollback": "the volume's size: old and new content are there at the same time; a safety snapshot takes as much on top",
}
"""docs/how-to/space.md has the same as a table."""


def space_needed(operation: SpaceOperation, allocated: "dict[str, int]") -> SpaceNeeded:
    """Return what an operation takes; `allocated`: the bytes of each thick source, by its hash.

    A snapshot leaves the source's blocks to the copy, and a thick source is given as many again. A thick clone keeps what it was
    left and is given the rest of its size, so that both together take no more than the larger of the two. What was allocated and
    never written is not shared by a snapshot, so less may be taken in the end; but a writer may write it until then.
    """
    made = operation.volume
    again = sum(allocated.values())
    return SpaceNeeded(max(again, made.size if made is not None and made.thick else 0), _FORMULAS[operation.kind])


def thick(operation: SpaceOperation) -> list[Volume]:
    """Return the sources whose allocation counts."""
    return [source for source in operation.sources if source.thick]

"""Counts what deleting several images together would free, from their extents.

FIEMAP says of an extent whether anything else refers to it, and not what. So the physical places of the chosen images'
shared extents are compared with those of every other image of the pool: what none of these has goes with the chosen ones.
A file outside the pool's directory that somebody made from an image by reflink is not seen: what it shares is counted as
freed although it stays. An image in the trash does not count: it is being removed.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from csi_driver.backends.reflink.layout import RECORD, Layout
from csi_driver.domain.spans import Span, common, length, merged, without
from csi_driver.host.fs import extents

_BATCH = 100_000
"""Extents of other images that are compared at once: what is kept in memory does not grow with the pool."""


def freed_bytes(layout: Layout, chosen: Sequence[Path]) -> int:
    """Return the bytes that only these images refer to, counted now: about 1 us for each extent of the pool, and 10 us for
    each that is shared. Raises OSError; other images may disappear meanwhile.
    """
    exclusive = 0
    shared: list[Span] = []
    for image in chosen:
        with image.open("rb") as file:
            for extent in extents.extents(file.fileno()):
                if extent.flags & extents.SHARED:
                    shared.append((extent.physical, extent.physical + extent.length))
                else:
                    exclusive += extent.length
    rest = merged(shared)
    others = _shared_spans(_other_images(layout, chosen))
    while rest and (batch := list(islice(others, _BATCH))):
        rest = without(rest, merged(common(rest, batch)))
    return exclusive + length(rest)


def _shared_spans(images: Iterable[Path]) -> Iterator[Span]:
    """Yield the places of the extents that anything else refers to; no other one of these images can be a chosen one's."""
    for image in images:
        try:
            with image.open("rb") as file:
                # Not written back first: that would write out every volume in use, and until then their old blocks stay
                # referred to.
                for extent in extents.extents(file.fileno(), sync=False):
                    if extent.flags & extents.SHARED and not extent.flags & extents.DELAYED:
                        yield extent.physical, extent.physical + extent.length
        except FileNotFoundError:
            continue


def _other_images(layout: Layout, chosen: Sequence[Path]) -> Iterator[Path]:
    left_out = set(chosen)
    for directory, names, files in os.walk(layout.root):
        if Path(directory) == layout.root:
            names[:] = [name for name in names if name != layout.trash.name]
        for name in files:
            path = Path(directory, name)
            if name != RECORD and path not in left_out and path.is_file() and not path.is_symlink():
                yield path

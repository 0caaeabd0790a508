"""Arithmetic of sizes: which size a request means, and when it can never be served. All values in bytes.

`granule`: sizes of a pool are multiples of it, and it is itself a multiple of 4096.
"""

from collections.abc import Sequence

from csi_driver.domain.errors import OutOfRange
from csi_driver.domain.model import Capability, SizeRange

BLOCK = 4096
DEFAULT = 1 << 30
LARGEST = (1 << 63) - BLOCK
"""No file system holds more, and every sum of sizes below still fits the protocol's int64."""

_SMALLEST_FS = {"ext4": 16 << 20, "xfs": 300 << 20}
"""mkfs.ext4 makes no journal at 4 MiB; mkfs.xfs refuses below 300 MiB. A size that a request was raised to stays one of these
for `requested`, whatever later versions raise to.
"""


def round_up(size: int, granule: int = BLOCK) -> int:
    """The next multiple of the granule: never more, so that a caller gets what it asked for."""
    return -(-size // granule) * granule


def check_range(wanted: SizeRange) -> None:
    """Refuse a range that contradicts itself."""
    if wanted.required < 0 or wanted.limit < 0:
        raise OutOfRange(
            f"a size cannot be negative (required {wanted.required}, limit {wanted.limit}): ask for 0 or more bytes"
        )
    if wanted.limit and wanted.limit < wanted.required:
        raise OutOfRange(f"limit {wanted.limit} is below required {wanted.required}: raise the limit")
    if round_up(wanted.required) > LARGEST:
        raise OutOfRange(f"{wanted.required} bytes are more than any pool can hold: ask for less")


def smallest(capabilities: Sequence[Capability], source_format: str = "") -> int:
    """The least size at which every capability can be served."""
    least = BLOCK
    for capability in capabilities:
        if capability.access == "mount":
            least = max(least, _SMALLEST_FS.get(capability.fs_type or source_format or "ext4", BLOCK))
    return least


def requested(asked: int, size: int, granule: int = BLOCK) -> int:
    """What to record of a request for `asked` bytes that became `size`: 0 where the size says it, or does not follow from it.

    Rounding and the least sizes of file systems alone make a size larger than its request.
    """
    raised = {round_up(max(asked, least), granule) for least in (BLOCK, *_SMALLEST_FS.values())}
    return asked if 0 < asked < size and size in raised else 0


def least_request(recorded: int, size: int, granule: int = BLOCK) -> int:
    """The smallest request that may be answered with a copy of `size` bytes, where `recorded` was asked for of it.

    What is recorded may be of before the last growth, by a crash or an older driver: it is then left out of account.
    """
    return requested(recorded, size, granule) or size


def choose(wanted: SizeRange, least: int, source_size: int = 0, source_request: int = 0, granule: int = BLOCK) -> int:
    """The size of a new volume: rounded up, at least `least`, at least the source's. Raises OutOfRange.

    `source_request`: what was asked for of the source, which may be asked for again.
    """
    check_range(wanted)
    if wanted.required:
        size = wanted.required
    elif source_size:
        size = source_size
    elif wanted.limit:
        size = min(DEFAULT, wanted.limit // granule * granule or granule)
    else:
        size = DEFAULT
    enough = least_request(source_request, source_size, granule)
    if 0 < wanted.required < enough and round_up(max(wanted.required, least), granule) < source_size:
        raise OutOfRange(
            f"{wanted.required} bytes are less than the source's {source_size}: a copy cannot be smaller than its source; ask "
            f"for {enough} or more"
        )
    size = round_up(max(size, least, source_size), granule)
    if wanted.limit and size > wanted.limit:
        least = round_up(least, granule)
        why = f"its source has {source_size} bytes" if source_size > wanted.limit else f"the least is {least}"
        raise OutOfRange(f"limit {wanted.limit} is too low: sizes are multiples of {granule} bytes and {why}")
    _refuse_beyond_any_pool(size, wanted)
    return size


def _refuse_beyond_any_pool(size: int, wanted: SizeRange) -> None:
    """Refuse what is too large only by its granule; what is by itself, check_range has refused."""
    if size > LARGEST:
        raise OutOfRange(f"{wanted.required} bytes are more than any pool can hold: ask for less")


def within(size: int, wanted: SizeRange) -> bool:
    """Whether an existing size serves a range."""
    return size >= wanted.required and (not wanted.limit or size <= wanted.limit)


def expanded(current: int, wanted: SizeRange, granule: int = BLOCK) -> int:
    """The size after an expansion; the current one where it already suffices. Never shrinks. Raises OutOfRange."""
    check_range(wanted)
    size = max(current, round_up(wanted.required, granule))
    if wanted.limit and size > wanted.limit:
        raise OutOfRange(
            f"the volume has {current} bytes and sizes are multiples of {granule}: limit {wanted.limit} cannot be kept; "
            "volumes never shrink"
        )
    _refuse_beyond_any_pool(size, wanted)
    return size

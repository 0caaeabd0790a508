"""Which size a request means: properties that hold for every request, and the cases with names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import OutOfRange
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.domain.sizes import (
    BLOCK,
    DEFAULT,
    LARGEST,
    check_range,
    choose,
    expanded,
    least_request,
    requested,
    round_up,
    smallest,
    within,
)

INT64 = (1 << 63) - 1
BYTES = st.integers(0, INT64) | st.integers(0, 1 << 20) | st.integers(0, 64).map(lambda n: n * BLOCK)
RANGES = st.builds(SizeRange, BYTES, BYTES)
SIZES = st.integers(1, 1 << 40).map(round_up)
LEASTS = st.sampled_from([BLOCK, 16 << 20, 300 << 20])


@given(st.integers(0, INT64))
def test_rounding_adds_less_than_a_block(size: int) -> None:
    assert 0 <= round_up(size) - size < BLOCK
    assert round_up(size) % BLOCK == 0


@given(RANGES, LEASTS, st.just(0) | SIZES)
def test_what_is_chosen_serves_the_request(wanted: SizeRange, least: int, source: int) -> None:
    try:
        size = choose(wanted, least, source)
    except OutOfRange:
        # Refused only where no multiple of a block could serve.
        need = round_up(max(wanted.required, least, source))
        too_small = bool(wanted.required) and round_up(max(wanted.required, least)) < source
        assert (wanted.limit and wanted.limit < need) or too_small or need > LARGEST
        return
    assert size % BLOCK == 0
    assert size >= max(least, source)
    assert within(size, wanted)
    assert size <= LARGEST
    if wanted.required:
        assert size == round_up(max(wanted.required, least)), "never more than was asked for"


@given(RANGES, LEASTS)
def test_a_copy_by_the_same_request_is_as_large(wanted: SizeRange, least: int) -> None:
    try:
        size = choose(wanted, least)
    except OutOfRange:
        return
    assert choose(wanted, least, size) == size


@given(SIZES, RANGES)
def test_an_expansion_never_shrinks(current: int, wanted: SizeRange) -> None:
    try:
        size = expanded(current, wanted)
    except OutOfRange:
        need = max(current, round_up(wanted.required))
        assert (wanted.limit and wanted.limit < need) or round_up(wanted.required) > LARGEST
        return
    assert size in {current, round_up(wanted.required)}
    assert size >= current
    assert within(size, wanted)
    assert expanded(size, wanted) == size, "the same again changes nothing"


@pytest.mark.parametrize(
    ("required", "limit", "source", "size"),
    [
        (0, 0, 0, DEFAULT),
        (0, 2 * DEFAULT, 0, DEFAULT),
        (0, 10 * BLOCK + 1, 0, 10 * BLOCK),
        (0, BLOCK, 0, BLOCK),
        (1, 0, 0, BLOCK),
        (BLOCK, BLOCK, 0, BLOCK),
        (BLOCK + 1, 2 * BLOCK, 0, 2 * BLOCK),
        (0, 0, 3 * BLOCK, 3 * BLOCK),
        (5 * BLOCK, 0, 3 * BLOCK, 5 * BLOCK),
        (2 * BLOCK + 1, 0, 3 * BLOCK, 3 * BLOCK),
        (LARGEST, 0, 0, LARGEST),
    ],
)
def test_chosen(required: int, limit: int, source: int, size: int) -> None:
    assert choose(SizeRange(required, limit), BLOCK, source) == size


@pytest.mark.parametrize(
    ("required", "limit", "least", "source"),
    [
        (-1, 0, BLOCK, 0),
        (0, -1, BLOCK, 0),
        (2, 1, BLOCK, 0),
        (1, BLOCK - 1, BLOCK, 0),
        (0, BLOCK - 1, BLOCK, 0),
        (0, 299 << 20, 300 << 20, 0),
        (2 * BLOCK, 0, BLOCK, 3 * BLOCK),
        (0, 2 * BLOCK, BLOCK, 3 * BLOCK),
        (LARGEST + 1, 0, BLOCK, 0),
        (INT64, INT64, BLOCK, 0),
    ],
)
def test_refused(required: int, limit: int, least: int, source: int) -> None:
    with pytest.raises(OutOfRange):
        choose(SizeRange(required, limit), least, source)


def test_the_least_that_a_file_system_needs() -> None:
    def mount(fs_type: str) -> Capability:
        return Capability("mount", AccessMode.WRITER, fs_type)

    block = Capability("block", AccessMode.WRITER)
    assert smallest([]) == smallest([block]) == BLOCK
    assert smallest([mount("ext4")]) == smallest([mount("")]) == 16 << 20
    assert smallest([mount("xfs")]) == smallest([block, mount("xfs")]) == 300 << 20
    assert smallest([mount("")], "xfs") == 300 << 20
    assert smallest([block], "xfs") == BLOCK


def test_a_small_claim_of_xfs_can_be_cloned_by_the_same_request() -> None:
    least = smallest([Capability("mount", AccessMode.WRITER, "xfs")])
    size = choose(SizeRange(100 << 20), least)
    assert size == 300 << 20
    assert choose(SizeRange(100 << 20), least, size) == size


@given(RANGES, LEASTS, LEASTS, st.just(0) | SIZES, BYTES)
def test_a_copy_by_what_was_asked_for_is_as_large_as_its_source(
    wanted: SizeRange, least: int, least_of_copy: int, source: int, recorded: int
) -> None:
    """Whatever was recorded of the source, the smallest request that its snapshot tells is served, and gives the same size."""
    try:
        size = choose(wanted, least, source, recorded)
    except OutOfRange:
        return
    mine = requested(wanted.required, size)
    smallest_request = least_request(mine, size)
    assert 0 < smallest_request <= size
    assert smallest_request <= (wanted.required or size), "what was asked for may be asked for again"
    # As a file system or as a block device: a copy of a raised size is allowed either way.
    assert choose(SizeRange(smallest_request), min(least, least_of_copy), size, mine) == size
    if smallest_request > 1 and round_up(max(smallest_request - 1, least)) < size:
        with pytest.raises(OutOfRange, match=f"ask for {smallest_request} or more"):
            choose(SizeRange(smallest_request - 1), least, size, mine)


@pytest.mark.parametrize(
    ("asked", "size", "told"),
    [
        (10_000_000_000, 10_000_003_072, 10_000_000_000),  # a claim of 10G
        (500_000_000, 500_002_816, 500_000_000),  # 500M
        (100 << 20, 300 << 20, 100 << 20),  # xfs
        (5_000_000, 16 << 20, 5_000_000),  # ext4
        (1, BLOCK, 1),
        (BLOCK, BLOCK, BLOCK),
        (0, DEFAULT, DEFAULT),  # nothing was said, or it is a record from before
        (10_000_000_000, 20 << 30, 20 << 30),  # grown since, by a driver that did not write that down
        (20 << 30, 10_000_003_072, 10_000_003_072),  # never grown to that
    ],
)
def test_the_smallest_request_that_a_disk_answers(asked: int, size: int, told: int) -> None:
    assert least_request(asked, size) == told
    assert requested(asked, size) == (told if told != size else 0)
    assert choose(SizeRange(told), BLOCK, size, asked) == size


def test_ranges_without_a_contradiction() -> None:
    check_range(SizeRange())
    check_range(SizeRange(5, 5))
    check_range(SizeRange(0, 5))
    check_range(SizeRange(5, 0))


GRANULES = st.sampled_from([BLOCK, 16 * BLOCK, 3 * BLOCK, 4 << 20, 32 << 20])


@given(RANGES, LEASTS, GRANULES, st.integers(0, 1 << 10))
def test_in_a_pool_of_large_granules_sizes_are_multiples_of_them(
    wanted: SizeRange, least: int, granule: int, of_source: int
) -> None:
    source = of_source * granule
    try:
        size = choose(wanted, least, source, granule=granule)
    except OutOfRange:
        need = round_up(max(wanted.required, least, source), granule)
        too_small = bool(wanted.required) and round_up(max(wanted.required, least), granule) < source
        assert (wanted.limit and wanted.limit < need) or too_small or need > LARGEST
        return
    assert size % granule == 0
    assert size >= max(least, source)
    assert within(size, wanted)
    assert size <= LARGEST
    if wanted.required:
        assert size == round_up(max(wanted.required, least), granule), "never more than was asked for"
    assert choose(wanted, least, size, granule=granule) == size, "a copy by the same request is as large"
    # What was asked for may be asked for again, of a copy; no less is.
    smallest_request = least_request(requested(wanted.required, size, granule), size, granule)
    assert choose(SizeRange(smallest_request), BLOCK, size, wanted.required, granule) == size


@given(GRANULES, st.integers(1, 1 << 20), RANGES)
def test_an_expansion_goes_by_granules(granule: int, count: int, wanted: SizeRange) -> None:
    current = count * granule
    try:
        size = expanded(current, wanted, granule)
    except OutOfRange:
        need = max(current, round_up(wanted.required, granule))
        assert (wanted.limit and wanted.limit < need) or need > LARGEST
        return
    assert size in {current, round_up(wanted.required, granule)}
    assert size >= current
    assert within(size, wanted)


@pytest.mark.parametrize(
    ("required", "limit", "why"),
    [
        (0, (4 << 20) - 1, "multiples of 4194304 bytes and the least is 4194304"),
        ((4 << 20) + 1, 8 << 20, ""),
        ((4 << 20) + 1, (8 << 20) - 1, "multiples of 4194304"),
        (0, (1 << 30) + 1, ""),
    ],
)
def test_a_limit_between_two_granules(required: int, limit: int, why: str) -> None:
    wanted = SizeRange(required, limit)
    if not why:
        assert choose(wanted, BLOCK, granule=4 << 20) == min(DEFAULT, limit // (4 << 20) * (4 << 20))
        return
    with pytest.raises(OutOfRange, match=why):
        choose(wanted, BLOCK, granule=4 << 20)

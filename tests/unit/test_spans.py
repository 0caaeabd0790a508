"""Arithmetic of spans, against sets of single bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.spans import Span, common, length, merged, without

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def bytes_of(spans: list[Span]) -> set[int]:
    return {at for start, end in spans for at in range(start, end)}


def is_merged(spans: list[Span]) -> bool:
    return all(start < end for start, end in spans) and all(left[1] < right[0] for left, right in pairwise(spans))


@given(SPANS)
def test_merged_has_the_same_bytes_once(spans: list[Span]) -> None:
    result = merged(spans)
    assert is_merged(result)
    assert bytes_of(result) == bytes_of(spans)
    assert length(result) == len(bytes_of(spans))


@given(SPANS, SPANS)
def test_common_and_without_part_what_was_chosen(chosen: list[Span], others: list[Span]) -> None:
    base = merged(chosen)
    shared = merged(common(base, others))
    rest = without(base, shared)
    assert bytes_of(shared) == bytes_of(chosen) & bytes_of(others)
    assert bytes_of(rest) == bytes_of(chosen) - bytes_of(others)
    assert is_merged(rest)
    assert length(shared) + length(rest) == length(base)


@given(SPANS, st.lists(SPANS, max_size=4))
def test_one_after_the_other_is_all_at_once(chosen: list[Span], files: list[list[Span]]) -> None:
    """As the extents of many images are taken away: each costs only what it has in common with the rest."""
    rest = merged(chosen)
    for file in files:
        rest = without(rest, merged(common(rest, file)))
    assert bytes_of(rest) == bytes_of(chosen) - bytes_of([span for file in files for span in file])

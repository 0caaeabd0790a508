"""Arithmetic of spans of storage: (start, end) in bytes, the end not included."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the same bytes as the fewest spans, in order; what several spans have counts once."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def length(spans: Iterable[Span]) -> int:
    """Add up spans that do not overlap, in bytes."""
    return sum(end - start for start, end in spans)


def common(chosen: list[Span], others: Iterable[Span]) -> Iterator[Span]:
    """Yield the parts of `others` that lie in `chosen`, which is merged. `others` may be endless, in any order."""
    starts = [start for start, _ in chosen]
    for start, end in others:
        index = max(0, bisect_right(starts, start) - 1)
        while index < len(chosen) and chosen[index][0] < end:
            low, high = max(start, chosen[index][0]), min(end, chosen[index][1])
            if low < high:
                yield low, high
            index += 1


def without(chosen: list[Span], taken: list[Span]) -> list[Span]:
    """Return what of `chosen` is not in `taken`; both are merged, and so is the result."""
    result: list[Span] = []
    index = 0
    for start, end in chosen:
        while index < len(taken) and taken[index][1] <= start:
            index += 1
        at, position = start, index
        while position < len(taken) and taken[position][0] < end:
            if taken[position][0] > at:
                result.append((at, taken[position][0]))
            at = max(at, taken[position][1])
            position += 1
        if at < end:
            result.append((at, end))
    return result

"""Durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.durations import format_duration, parse_duration
from csi_driver.domain.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("30d", 2592000), ("1d2h3m4s", 93784), ("0h1s", 1)],
)
def test_what_they_mean(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@given(st.integers(1, 10**9))
def test_there_and_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "0s", "10", "1.5h", "m", "-1m", "1m1h", "1h1h", "10 m", "1w", "\u0661m", "1m\n"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="duration"):
        parse_duration(text)

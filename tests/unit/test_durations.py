"""Durations as people write them: one grammar for all resources."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.durations import PATTERN, format_duration, parse_duration
from csi_driver.domain.errors import InvalidRequest

DEFINITIONS = Path(__file__).resolve().parent.parent.parent / "charts" / "tidemark" / "files" / "crds"
OF_SCHEDULES = r"([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?"
OF_ROLLBACKS = r"([0-9]{1,6}(s|m|h))+"
"""What earlier versions accepted, in one resource each."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("30d", 2592000),
        ("1d2h3m4s", 93784),
        ("0h1s", 1),
        ("30m1h", 5400),
        ("1h1h", 7200),
        ("1d1s1h", 90001),
        ("000001d", 86400),
    ],
)
def test_the_meaning(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@given(st.integers(1, 10**9))
def test_there_and_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0s", "10", "1.5h", "m", "-1m", "10 m", "1w", "\u0661m", "1m\n", "5ms", "10mm", "1h2d", "1d1d", "1234567s"],
)
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a duration"):
        parse_duration(text)


@given(st.from_regex(OF_SCHEDULES, fullmatch=True) | st.from_regex(OF_ROLLBACKS, fullmatch=True))
def test_what_was_accepted_before_is_accepted(text: str) -> None:
    assert re.fullmatch(PATTERN, text, re.ASCII)
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    expected = sum(int(part[:-1]) * units[part[-1]] for part in re.findall("[0-9]+[dhms]", text))
    if expected:
        assert parse_duration(text) == expected


def test_all_resources_have_this_grammar() -> None:
    patterns = [
        pattern
        for name in ("snapshotschedules", "volumerollbacks")
        for pattern in _patterns(yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text()))
    ]
    assert patterns == [f"^{PATTERN}$"] * 5


def _patterns(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [pattern for part in schema for pattern in _patterns(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema["pattern"]] if "[0-9]{1,6}" in str(schema.get("pattern", "")) else []
    return own + [pattern for part in schema.values() for pattern in _patterns(part)]

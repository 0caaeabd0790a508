"""Durations as people write them in a resource: `90s`, `10m`, `1h30m`, `30d`. Whole seconds inside.

The grammar is that of Go in whole numbers, with days in front: at most one number of days, then hours, minutes and seconds in any
order, each as often as one likes.
"""

import re

from csi_driver.domain.errors import InvalidRequest

PATTERN = r"([0-9]{1,6}d)?([0-9]{1,6}(h|m|s))*"
"""The CRDs hold the same text. It matches the empty text, which no field takes for a duration."""

_DURATION = re.compile(PATTERN, re.ASCII)
_PART = re.compile(r"([0-9]+)([dhms])", re.ASCII)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> int:
    """Return the seconds. A day is 24 hours, whatever the clocks do. Raises InvalidRequest, also for 0 seconds."""
    seconds = 0
    if _DURATION.fullmatch(text):
        seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not seconds:
        raise InvalidRequest(f"{text!r} is not a duration: use e.g. 90s, 10m, 1h30m or 30d; it must be longer than 0s")
    return seconds


def format_duration(seconds: int) -> str:
    """Return the shortest text, largest unit first; `0s` for 0."""
    parts = []
    rest = seconds
    for letter, unit in _UNITS.items():
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{letter}")
    return "".join(parts) or "0s"

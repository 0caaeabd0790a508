"""Durations as people write them in a resource: `90s`, `10m`, `1h30m`, `30d`. Whole seconds inside."""

import re

from csi_driver.domain.errors import InvalidRequest

PATTERN = r"([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?"
"""Days, hours, minutes and seconds, in that order, each at most once. The CRDs hold the same text."""

_DURATION = re.compile(PATTERN, re.ASCII)
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def parse_duration(text: str) -> int:
    """Seconds. A day is 24 hours, whatever the clocks do. Raises InvalidRequest for anything else, and for no time."""
    found = _DURATION.fullmatch(text)
    seconds = 0
    if found:
        seconds = sum(unit * int(part[:-1]) for (unit, _), part in zip(_UNITS, found.groups(), strict=True) if part)
    if not seconds:
        raise InvalidRequest(f"{text!r} is no duration: write it like 90s, 10m, 1h30m or 30d, and longer than nothing")
    return seconds


def format_duration(seconds: int) -> str:
    """The shortest way to write it, largest unit first; `0s` for nothing."""
    parts = []
    rest = seconds
    for unit, letter in _UNITS:
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{letter}")
    return "".join(parts) or "0s"

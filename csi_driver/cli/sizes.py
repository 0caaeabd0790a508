"""Sizes as people write and read them, with the suffixes of Kubernetes. No other module reads suffixes."""

import re

import typer

from csi_driver.domain.capacity import human
from csi_driver.domain.sizes import BLOCK, round_up

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPE]i?)?B?", re.ASCII | re.IGNORECASE)
_POWER = {letter: power for power, letter in enumerate("KMGTPE", start=1)}


class BadSize(ValueError):
    """Invalid size; the message has an example."""


def parse(text: str) -> int:
    """Return bytes: `20Gi` is 20 times 2^30, `20G` is 20 times 10^9 (as in a PersistentVolumeClaim), `4096` is itself."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadSize(f"{text!r} is not a size: use 20Gi, 512Mi, 20G or a number of bytes")
    number, suffix = match.groups()
    factor = 1
    if suffix:
        factor = (1024 if len(suffix) == 2 else 1000) ** _POWER[suffix[0].upper()]
    whole, _, fraction = number.partition(".")
    # Whole numbers only: a float would lose bytes above 2^53.
    value = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    if value >= 1 << 63:
        raise BadSize(f"{text!r} exceeds the maximum size of a volume: use less than 8Ei")
    return value


def show(count: int) -> str:
    """Return bytes for a table: `1.5 GiB`, without a fraction of zero."""
    return human(count)


def written(size: int) -> str:
    """Return a size as one types it, exactly: `20Gi`, or the number of bytes."""
    for power, letter in reversed(list(enumerate("KMGTPE", start=1))):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{letter}i"
    return str(size)


def positive(text: str, option: str) -> int:
    """Parse a size that a user asks for. Raises BadParameter for one that is invalid, or 0."""
    try:
        size = parse(text)
    except BadSize as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    if size == 0:
        raise typer.BadParameter("a volume has a size: use e.g. 10Gi", param_hint=option)
    return size


def one_of(positional: str, option: str) -> str:
    """Return the size that is given as an argument or by --size. Raises BadParameter if both are, and differ."""
    if positional and option and _parse_or(positional) != _parse_or(option):
        raise typer.BadParameter(f"the size is given twice, {positional} and {option}: give it once")
    return positional or option


def _parse_or(text: str) -> int | str:
    """Return the size in bytes, or the text if it is not a size."""
    try:
        return parse(text)
    except BadSize:
        return text


def rounded(text: str, size: int) -> str:
    """Return ` (1000M rounded up ...)` if a volume of `size` bytes is larger than the size that the user wrote."""
    asked = parse(text) if text else 0
    if not 0 < asked < size:
        return ""
    if size == round_up(asked):
        return f" ({text} rounded up to a multiple of {show(BLOCK)})"
    return f" ({text} raised to the minimum for this volume)"

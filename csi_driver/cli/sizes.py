"""Sizes as people write and read them, with the suffixes of Kubernetes. No other module reads suffixes."""

import re

from csi_driver.domain.capacity import human

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

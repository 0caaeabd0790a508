"""Quantities as the Kubernetes API writes them: 1Gi, 500M, 0.5, 1e3."""

import math
import re
from decimal import Decimal, InvalidOperation

_UNITS: dict[str, Decimal] = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", re.ASCII)


def parse_quantity(text: object) -> int | None:
    """Return a quantity (of bytes, if it is a size) rounded up to a whole number; None if it is invalid."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in _UNITS:
        return None
    try:
        value = Decimal(match[1]) * _UNITS[match[2]]
    except InvalidOperation:
        return None
    return math.ceil(value)

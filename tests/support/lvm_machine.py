"""What the machine of tests/lvm needs of this one, for those who boot one of their own."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "lvm"))

from machine import why_not as why_no_lvm

__all__ = ["why_no_lvm"]

"""Measurements: `make bench` and `make soak`. Figures go to docs/benchmarks.md by hand, with the machine named."""

import sys
from pathlib import Path

# For tests/support: an agent in a process of its own, the Kubernetes API in memory.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

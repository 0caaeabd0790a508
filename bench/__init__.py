"""Measurements: `make bench` and `make soak`. Figures go to docs/benchmarks.md by hand, with the machine named."""

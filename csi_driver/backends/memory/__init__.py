"""A pool in memory: for tests, and for the demo without root."""

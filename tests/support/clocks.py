"""Clocks that a test turns."""

import time


class Clock:
    """Unix time in nanoseconds, `offset` seconds away from the real one.

    Snapshots are stamped by the real clock: a test in which their order counts begins in the past.
    """

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> int:
        return time.time_ns() + int(self.offset * 1_000_000_000)

    def go_back(self, seconds: float) -> None:
        """Begin that long ago."""
        self.offset = -seconds

    def forward(self, seconds: float) -> None:
        """Let time pass, but never beyond the real clock."""
        assert self.offset + seconds <= 0
        self.offset += seconds

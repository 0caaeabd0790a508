"""How far a transfer is, on a terminal."""

import sys
import time
from collections.abc import Callable

from csi_driver.cli.output.escape import escape
from csi_driver.cli.sizes import show

INTERVAL = 0.5
"""Seconds between two lines."""


class ProgressLine:
    """One line on stderr that is written again and again; nothing if that is no terminal."""

    def __init__(self, what: str, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._now = what, total, now
        self._shown = 0.0
        self._width = 0
        self._visible = sys.stderr.isatty()

    def show(self, done: int, written: int) -> None:
        """Write the line if the last one is old enough."""
        if not self._visible or self._now() - self._shown < INTERVAL:
            return
        self._shown = self._now()
        self._write(escape(line(self._what, done, written, self._total)))

    def clear(self) -> None:
        """Leave nothing of it on the terminal."""
        if self._visible and self._width:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text:<{self._width}}" + ("" if text else "\r"))
        sys.stderr.flush()
        self._width = len(text)


def line(what: str, done: int, written: int, total: int) -> str:
    """Return the line, e.g. `exporting: 40 % of 10 GiB, 1.2 GiB of data`."""
    percent = 100 * done // total if total else 100
    return f"{what}: {percent} % of {show(total)}, {show(written)} of data"

"""Waits for what comes true by itself. What does not in time fails the test."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 60.0, pause: float = 0.01) -> None:
    """Wait until the condition holds, and let the event loop run meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        await asyncio.sleep(pause)


def wait_until(condition: Callable[[], object], what: str = "", seconds: float = 60.0, pause: float = 0.01) -> None:
    """Wait until the condition holds; `what` says in the failure what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s{what and ': ' + what}"
        time.sleep(pause)

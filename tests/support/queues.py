"""Work queues on a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from csi_driver.kube.workqueue import WorkQueue


async def settle(clock: Callable[[], float], *queues: WorkQueue[Any]) -> None:
    """Let running queues do all that is due by the clock."""
    for queue in queues:
        queue._changed.set()  # they sleep by the real clock
    async with asyncio.timeout(60):
        while any(queue._active or any(due <= clock() for due in queue._due.values()) for queue in queues):
            await asyncio.sleep(0)

"""The life of a process, agent or controller: it starts, and runs until it is asked to end."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from csi_driver.domain.errors import DriverError

UNDO_SECONDS = 20.0
"""For a cancelled start to undo its work, e.g. an incomplete pool image."""

log = structlog.get_logger()


async def run_until_signal(start: Callable[[], Coroutine[Any, Any, None]], process: str) -> bool:
    """Start and wait for SIGTERM or SIGINT, which also ends a start that is under way. Returns False if the start failed.

    `process`: its name, for the log. A failure is a DriverError; whatever else `start` raises goes on to the caller.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    starting = asyncio.create_task(start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        else:
            starting.cancel()
            await asyncio.wait({starting}, timeout=UNDO_SECONDS)
            if starting.done() and not starting.cancelled():
                starting.exception()  # its failure no longer matters
        await stopping
    except DriverError as error:
        log.error(f"{process} start failed", why=str(error))
        return False
    finally:
        stopping.cancel()
    return True

"""What the tests of the memory pool's faults, images and links share."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress

import pytest
from contract_rig import World

from csi_driver.backends.memory.backend import Faults
from csi_driver.backends.memory.faults import Pause
from csi_driver.domain.errors import Unavailable
from csi_driver.domain.model import Snapshot, Volume

Faulty = tuple[World, Faults]


async def images(world: World) -> int:
    """How many memfds of the pool this process has open."""
    return sum("/memfd:" in os.readlink(f"/proc/self/fd/{fd}") for fd in _open_files())


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            os.readlink(f"/proc/self/fd/{fd}")
            found.append(fd)
    return found


@asynccontextmanager
async def standing(faults: Faults, method: str, call: Awaitable[object]) -> AsyncIterator[Pause]:
    """Run the block while `call` stands still in the middle of `method`; then let it end well."""
    pause = faults.pause(method)
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait_for(pause.reached.wait(), 30)
        yield pause
    finally:
        pause.release()
        await task


async def safety_of_a_failed_try(world: World, faults: Faults, volume: Volume, snapshot: Snapshot) -> Snapshot:
    """Roll back under the name `r`, which fails after the safety snapshot was made; that snapshot."""
    faults.fail("roll_back", OSError(errno.EIO, "broken"))
    with pytest.raises(Unavailable):
        await world.roll_back(volume, snapshot, "r", safety="")
    return next(found for found in world.snapshots.list()[0] if found != snapshot)

"""A snapshot, a group snapshot and a clone are made in four steps: whichever fails or is cancelled, nothing is left of them."""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from contract_rig import World, piece
from faulty_rig import Faulty, images

from csi_driver.backends.memory.faults import Point
from csi_driver.domain.errors import Unavailable
from csi_driver.domain.model import Volume

MAKINGS: dict[str, Callable[[World, Volume], Coroutine[Any, Any, Any]]] = {
    "snapshot": lambda world, v: world.snapshot("new", v),
    "group": lambda world, v: world.group("new", v),
    "clone": lambda world, v: world.volume("new", 0, source=v),
}
GAPS: list[tuple[str, Point]] = [
    ("prepare", "before"),
    ("prepare", "after"),
    ("quick", "before"),
    ("quick", "after"),
    ("publish", "before"),
]
"""Up to here nothing was shown."""


def shown(world: World) -> tuple[set[str], set[str], set[str]]:
    return set(world.pool.volumes), set(world.pool.snapshots), set(world.pool.groups)


@pytest.mark.parametrize("making", MAKINGS)
@pytest.mark.parametrize(("step", "point"), GAPS)
async def test_a_step_that_fails_leaves_nothing(faulty: Faulty, making: str, step: str, point: Point) -> None:
    world, faults = faulty
    v = await world.volume("v")
    await world.write(v, piece(0, "a"))
    before, open_images = shown(world), await images(world)
    faults.fail(step, OSError(errno.EIO, "injected"), point)
    with pytest.raises(Unavailable):
        await MAKINGS[making](world, v)
    assert shown(world) == before
    await world.reopen()
    assert shown(world) == before
    assert await images(world) == open_images
    await MAKINGS[making](world, v)
    assert shown(world) != before


@pytest.mark.parametrize("making", MAKINGS)
@pytest.mark.parametrize(("step", "point"), GAPS)
async def test_a_call_that_is_cancelled_leaves_nothing(faulty: Faulty, making: str, step: str, point: Point) -> None:
    world, faults = faulty
    v = await world.volume("v")
    before, open_images = shown(world), await images(world)
    pause = faults.pause(step, point)
    call = asyncio.ensure_future(MAKINGS[making](world, v))
    await asyncio.wait_for(pause.reached.wait(), 30)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await world.reopen()
    assert shown(world) == before
    assert await images(world) == open_images
    await MAKINGS[making](world, v)


@pytest.mark.parametrize("making", MAKINGS)
async def test_an_answer_that_is_lost_after_the_last_step_is_found_by_a_retry(faulty: Faulty, making: str) -> None:
    world, faults = faulty
    v = await world.volume("v")
    faults.fail("publish", OSError(errno.EIO, "the answer is lost"), "after")
    with pytest.raises(Unavailable):
        await MAKINGS[making](world, v)
    await world.reopen()
    found = shown(world)
    made = await MAKINGS[making](world, v)
    assert shown(world) == found
    assert made.id.hash in found[0] | found[1] | found[2]

"""A pool that has run full: told once, with what would free most, and told again when that lasts; nothing is told of others."""

import os
from typing import Any

import pytest
from contract_rig import World
from faulty_rig import Faulty
from structlog.testing import capture_logs

from csi_driver.domain.capacity import GIB, CapacityPolicy, Space, full_below
from csi_driver.domain.errors import OutOfSpace
from csi_driver.domain.model import Volume
from csi_driver.service.fullness import REPEAT_SECONDS, Fullness
from csi_driver.service.usage_scanner import UsageScanner

MEGA = 1 << 20
Logs = list[tuple[str, Any]]


async def answering(space: Space) -> Space:
    return space


class Watched:
    """A pool of 10 GiB of which a test says how much is free, and what was reported of it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.now = 0.0
        self.free = 5 * GIB
        self.walk = UsageScanner(world.context)
        self.fullness = Fullness(world.pools, self.walk, lambda: self.now)
        monkeypatch.setattr(world.backend, "space", lambda: answering(Space(10 * GIB, self.free)))

    async def look(self) -> Logs:
        with capture_logs() as logs:
            await self.fullness.check(self.world.pool)
        return [(entry["log_level"], entry.get("would_free")) for entry in logs]


async def written(world: World, name: str, megas: int, **parameters: str) -> Volume:
    volume = await world.volume(name, 8 * MEGA, **parameters)
    await world.write(volume, (0, os.urandom(megas * MEGA)))
    return volume


async def test_it_is_reported_with_what_would_free_most(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = faulty
    watched = Watched(world, monkeypatch)
    v = await written(world, "v", 4)
    w = await written(world, "w", 1)
    await world.snapshot("small", v)
    await world.write(v, (0, os.urandom(3 * MEGA)))
    await world.group("both", v, w)
    await world.write(v, (0, os.urandom(4 * MEGA)))
    await world.write(w, (0, os.urandom(MEGA)))
    assert await watched.look() == []
    watched.free = full_below(10 * GIB)
    assert await watched.look() == []
    watched.free -= 1
    told, which = await watched.look()
    assert told == ("error", None)
    assert which == ("error", ["group both (4 MiB)", "snapshot small (3 MiB)", "volume v (4 MiB)", "volume w (1 MiB)"])
    watched.now += REPEAT_SECONDS - 1
    assert await watched.look() == []
    watched.now += 1
    assert [level for level, _ in await watched.look()] == ["error", "error"]
    watched.free = 5 * GIB
    assert await watched.look() == [("info", None)]
    assert await watched.look() == []


async def test_of_thick_volumes_alone_nothing_is_reported(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their writes do not fail."""
    world, _ = faulty
    watched = Watched(world, monkeypatch)
    await written(world, "v", 1, provisioning="thick")
    watched.free = 0
    assert await watched.look() == []
    watched.free = 5 * GIB
    await written(world, "thin", 1)
    watched.free = 0
    assert [level for level, _ in await watched.look()] == ["error", "error"]


async def test_a_refusal_says_what_there_is_to_do(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty pool there is nothing to delete."""
    world, _ = faulty
    world.pool.policy = CapacityPolicy()
    monkeypatch.setattr(world.backend, "space", lambda: answering(Space(GIB, GIB - MEGA)))
    small = await world.volume("small", 512 * MEGA)
    await world.volumes.delete(str(small.id))
    world.pool.policy = CapacityPolicy(reserve=GIB)
    with pytest.raises(OutOfSpace, match=r"1 GiB kept in reserve.* the pool is empty, so make it larger"):
        await world.volume("v")
    world.pool.policy = CapacityPolicy()
    await world.volume("v", 4 * MEGA, provisioning="thick")
    with pytest.raises(OutOfSpace, match="delete something first"):
        await world.volume("w", 1000 * MEGA, provisioning="thick")

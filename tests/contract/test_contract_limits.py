"""Limits of a pool beside bytes: passed, nothing new is made, and the refusal names the limit; what exists goes on."""

import pytest
from contract_rig import SIZE, World, filled, piece
from faulty_rig import Faulty
from support.sizes import GIB

from csi_driver.agent.metric_readers import MetricReaders
from csi_driver.backends.memory.backend import MemoryBackend
from csi_driver.domain.capacity import CapacityPolicy, Limit
from csi_driver.domain.errors import DriverError, OutOfRange, OutOfSpace
from csi_driver.host.helper.client import HelperPool

BELOW = Limit("metadata", 74, 100, 75, "give the pool more metadata")
PASSED = Limit("metadata", 75, 100, 75, "give the pool more metadata")
OTHER = Limit("area for records", 1, 1000, 900)


def limits(world: World, *limits: Limit) -> None:
    assert isinstance(world.backend, MemoryBackend)
    world.backend.limits = limits


async def test_nothing_is_made_beyond_a_limit(faulty: Faulty) -> None:
    world, _ = faulty
    v, thick = await world.volume("v"), await world.volume("thick", provisioning="thick")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    limits(world, OTHER, BELOW)
    before = await world.volume("before")
    assert (await world.volumes.capacity({}, []))[0] > GIB
    limits(world, OTHER, PASSED)
    known = world.now(v)
    named = (
        "its metadata is 75% used, and from 75% on nothing is made.*give the pool more metadata, or delete something"
    )
    refused = [
        (OutOfSpace, world.volume("new")),
        (OutOfSpace, world.volume("new", provisioning="thick")),
        (OutOfSpace, world.volume("copy", 0, source=s)),
        (OutOfSpace, world.volume("clone", 0, source=v)),
        (OutOfSpace, world.snapshot("t", v)),
        (OutOfSpace, world.group("g", v, before)),
        (OutOfSpace, world.snapshot("u", thick)),
        (OutOfSpace, world.roll_back(v, s, "r", safety="")),
        (OutOfRange, world.expand(v, 2 * SIZE)),
        (OutOfRange, world.expand(thick, 2 * SIZE)),
    ]
    for kind, call in refused:
        with pytest.raises(DriverError, match=named) as refusal:
            await call
        assert type(refusal.value) is kind
    for parameters in ({}, {"provisioning": "thick"}):
        assert (await world.volumes.capacity(parameters, []))[:2] == (0, 0)
    assert world.now(v) == known
    assert {volume.name for volume in world.volumes.list()[0]} == {"v", "thick", "before"}
    assert world.snapshots.list() == ([s], "")
    assert (world.pool.pending, world.pool.pending_thick) == (0, 0)


async def test_what_exists_goes_on_beyond_a_limit(faulty: Faulty) -> None:
    """Deleting above all: it is what helps."""
    world, _ = faulty
    v, other = await world.volume("v"), await world.volume("other")
    await world.write(v, piece(0, "a"))
    s = await world.snapshot("s", v)
    limits(world, PASSED)
    assert await world.volume("v") == world.now(v), "what exists is still answered"
    assert await world.snapshot("s", v) == s
    await world.write(v, piece(0, "b"))
    assert await world.read(v) == filled("b")
    await world.roll_back(v, s, "r")
    assert await world.read(v) == filled("a")
    await world.reopen()
    await world.hold(v, "me")
    await world.volumes.delete(str(other.id))
    await world.snapshots.delete(str(s.id))
    limits(world)
    await world.volume("new")


async def test_a_full_pool_is_not_blamed_on_a_limit(faulty: Faulty) -> None:
    world, _ = faulty
    v = await world.volume("v")
    limits(world, BELOW, OTHER)
    world.pool.policy = CapacityPolicy(reserve=(await world.backend.space()).free + 1)
    for call in (world.volume("new"), world.snapshot("s", v)):
        with pytest.raises(OutOfSpace, match="in reserve") as refused:
            await call
        assert "metadata" not in str(refused.value)


async def test_limits_are_measured(faulty: Faulty) -> None:
    world, _ = faulty
    limits(world, PASSED, OTHER)
    await world.pool.account()
    read = MetricReaders(world.pools, world.services.usage_scanner, world.context.conditions, HelperPool(), 0)
    (pool,) = read.pools()
    assert [(m.pool, m.limit, m.used, m.total, m.refuse_at) for m in pool.limits] == [
        ("contract", "metadata", 75, 100, 75),
        ("contract", "area for records", 1, 1000, 900),
    ]
    assert pool.available == 0

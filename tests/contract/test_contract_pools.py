"""An agent with several pools, of which one goes away: what that keeps from working, and what not."""

from collections.abc import AsyncIterator

import pytest
from contract_rig import RAW_BLOCK, SIZE

from csi_driver.backends.memory.backend import Faults, MemoryBackend
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.domain.errors import AlreadyExists, DriverError, Unavailable
from csi_driver.domain.model import SizeRange, Volume, VolumeRequest
from csi_driver.service.build import build_services
from csi_driver.service.pools import Pool, Pools
from csi_driver.service.snapshots import SnapshotRequest

OWNER = "node-1"


class Two:
    """Two pools in memory under one agent."""

    def __init__(self) -> None:
        self.faults = {name: Faults() for name in ("one", "two")}
        backends = [MemoryBackend(name, OWNER, 1 << 30, faults=faults) for name, faults in self.faults.items()]
        self.pools = [Pool(backend, CapacityPolicy(reserve=0)) for backend in backends]
        services = build_services(Pools(OWNER, self.pools))
        self.volumes, self.snapshots = services.volumes, services.snapshots

    async def volume(self, name: str, pool: str) -> Volume:
        parameters = {"pool": pool}
        return await self.volumes.create(VolumeRequest(name, SizeRange(SIZE), (RAW_BLOCK,), parameters, {}, None))


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    made = Two()
    try:
        yield made
    finally:
        for pool in made.pools:
            await pool.backend.close()
            pool.backend.discard()  # type: ignore[attr-defined]


async def test_a_disk_that_dies_keeps_the_other_pool_from_nothing(two: Two) -> None:
    for pool in two.pools:
        await pool.open()
    old = await two.volume("old", "one")
    two.faults["one"].fail("check", Unavailable("its disk is away"), times=None)
    new = await two.volume("new", "two")
    assert (await two.snapshots.create(SnapshotRequest("s", str(new.id)))).source_id == str(new.id)
    assert await two.volume("new", "two") == new
    # A name that the dead pool holds is not made a second time, in whichever pool.
    for pool in ("one", "two"):
        with pytest.raises(Unavailable, match="its disk is away"):
            await two.volume("old", pool)
    with pytest.raises(Unavailable):
        two.volumes.list()  # never a shorter list
    two.faults["one"].clear()
    assert await two.volume("old", "one") == old
    with pytest.raises(AlreadyExists):
        await two.volume("old", "two")


async def test_a_pool_that_was_never_opened_may_hold_any_name(two: Two) -> None:
    two.faults["one"].fail("open", Unavailable("its disk is away"))
    with pytest.raises(DriverError):
        await two.pools[0].open()
    await two.pools[1].open()
    with pytest.raises(Unavailable, match="its disk is away"):
        await two.volume("new", "two")
    await two.pools[0].open()
    assert await two.volume("new", "two")

"""Fixtures of the contract suite: `world` for every technology, `faulty` for the one that can be told to fail."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from contract_rig import RIGS, Rig, World, kind_of, runs_here
from lvm_rig import in_machine, volume_group
from support.machine import skip_unless_root
from support.pool_disk import clean, make_disk
from support.sizes import GIB

from csi_driver.backends.memory.backend import Faults
from csi_driver.backends.registry import BACKENDS

collect_ignore = [] if in_machine() else ["test_lvm_pool.py"]


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    skip_unless_root()
    place = tmp_path_factory.mktemp("xfs")
    try:
        yield make_disk(place, 4 * GIB, "xfs").point
    finally:
        clean(place)


@pytest.fixture(scope="session")
def lvm_group() -> Iterator[None]:
    with volume_group():
        yield


@pytest_asyncio.fixture(
    params=[
        pytest.param(n, marks=[pytest.mark.root] if BACKENDS[kind_of(n)].block else []) for n in RIGS if runs_here(n)
    ]
)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with RIGS[request.param](request) as made:
        yield made


@pytest_asyncio.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    made = World(rig, tmp_path)
    await made.open()
    yield made
    await made.clean()


@pytest_asyncio.fixture
async def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[World, Faults]]:
    """A world over memory, with its faults."""
    async with RIGS["memory"](request) as rig:
        assert rig.faults is not None
        made = World(rig, tmp_path)
        await made.open()
        yield made, rig.faults
        rig.faults.clear()
        await made.clean()

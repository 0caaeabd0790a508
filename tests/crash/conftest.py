"""Fixtures of the crash suite: one disk for all runs of a test, and the server that forks what is killed, one for all tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from crash_killer import Killer
from crash_lvm import lvm_world
from crash_rig import World, make_world
from support.fork_servers import helper_pool
from support.machine import KIND, skip_unless_root
from support.pool_disk import clean, devices_below, mounts_below, share


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    made = Killer()
    yield made
    made.stop()


@pytest_asyncio.fixture
async def world(tmp_path: Path, killer: Killer) -> AsyncIterator[World]:
    skip_unless_root()
    if KIND == "lvm":
        async with lvm_world(tmp_path, killer) as made:
            yield made
        return
    share(tmp_path)
    try:
        async with helper_pool() as agents:
            yield make_world(tmp_path, agents, killer)
    finally:
        clean(tmp_path)
    assert not mounts_below(tmp_path)
    assert not devices_below(tmp_path)

"""Fixtures of the node suite: a pool of its own for each test. Needs root; skipped loudly without."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from support.node_rig import Rig, make_rig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(240))  # several calls, each of which may take its PATIENCE


@pytest_asyncio.fixture
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """A pool of 2 GiB; `@pytest.mark.parametrize("rig", [{...}], indirect=True)` for other options."""
    async with make_rig(tmp_path, **getattr(request, "param", {})) as made:
        yield made

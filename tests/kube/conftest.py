from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.fake_api import FakeApi


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with FakeApi() as made:
        yield made

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from controller_rig import ControllerRig
from support.fake_api import FakeApi


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with FakeApi() as made:
        yield made


@pytest.fixture
async def rig(fake: FakeApi) -> AsyncIterator[ControllerRig]:
    async with ControllerRig(fake) as made:
        yield made

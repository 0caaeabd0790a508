from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.fake_api import FakeApi
from support.rollback_rig import World

from csi_driver.rpc.clients import agent_channels


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with FakeApi() as made:
        yield made


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    # Agents that are off are found to be so at once: this clock is real, and nothing here depends on it.
    monkeypatch.setattr(agent_channels, "CONNECT_SECONDS", 0.2)
    # Not tmp_path: its names are longer than a socket's path may be.
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with World(Path(directory)).running() as made:
            yield made

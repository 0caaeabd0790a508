from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.cluster_rig import Cluster
from support.rpc_rig import Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    # Not tmp_path: its names are longer than a socket's path may be.
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with Rig(Path(directory)) as made:
            yield made


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with Cluster(Path(directory)) as made:
            yield made

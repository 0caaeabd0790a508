"""Fixtures of the tests that run a real agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.agent_process import AgentRig
from support.agent_rigs import agent_rig
from support.machine import skip_unless_root

from csi_driver.rpc.clients.cli_client import Client


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    """An agent that is not started yet."""
    skip_unless_root()
    made = agent_rig(tmp_path)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def client(rig: AgentRig) -> Iterator[Client]:
    """A client of a running agent."""
    with rig.start() as connected:
        yield connected

"""Fixtures of the tests that run a real agent."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "node"))
sys.path.append(str(Path(__file__).parent.parent / "rpc"))

from agent_rig import AgentRig

from csi_driver.rpc.clients.cli_client import Client


def why_not() -> str:
    """Why a real pool cannot be had here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root: loop devices and mounts"
    if not os.access("/dev/loop-control", os.W_OK):
        return "needs /dev/loop-control"
    if shutil.which("mkfs.xfs") is None and not os.path.exists("/usr/sbin/mkfs.xfs"):
        return "needs mkfs.xfs: install Debian's xfsprogs"
    return ""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[AgentRig]:
    """An agent that is not started yet."""
    if reason := why_not():
        pytest.skip(reason)
    made = AgentRig(tmp_path)
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture
def client(rig: AgentRig) -> Iterator[Client]:
    """A client of a running agent."""
    with rig.start() as connected:
        yield connected

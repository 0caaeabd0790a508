"""Fixtures of the unit tests."""

import time
from collections.abc import Iterator

import pytest
from support.fake_agent import CommandLine, FakeAgent


@pytest.fixture
def agent() -> FakeAgent:
    """An agent without objects."""
    return FakeAgent()


@pytest.fixture
def tidemark(
    agent: FakeAgent,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CommandLine]:
    """The command, with that agent behind its socket and times in UTC."""
    from csi_driver.cli import mount_paths, snapshot_mounts

    staging = tmp_path_factory.mktemp("staging")
    monkeypatch.setattr(mount_paths, "STAGING", staging)
    monkeypatch.setattr(snapshot_mounts, "STAGING", staging)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield CommandLine(agent, monkeypatch, capsys)
    monkeypatch.undo()
    time.tzset()

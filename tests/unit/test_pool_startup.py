"""Pools whose disk is missing at start: who refuses to start, who serves the others, and what /readyz says until it is back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from csi_driver.agent import pools
from csi_driver.agent.pools import PoolStartup
from csi_driver.agent.settings import PoolSpec, Settings
from csi_driver.domain.errors import Precondition, Unavailable
from csi_driver.probes import AgentHealth


class FakePool:
    """Opens when `disk` is there."""

    def __init__(self, name: str, disk: bool) -> None:
        self.name = name
        self.disk = disk
        self.unavailable_reason = f"pool {name}: its disk is missing"

    async def open(self) -> None:
        if not self.disk:
            raise Unavailable(self.unavailable_reason)

    def account(self) -> Any:
        raise Unavailable(self.unavailable_reason)


def startup(health: AgentHealth, *fakes: FakePool, register: str = "") -> PoolStartup:
    specs = tuple(PoolSpec(fake.name, "reflink", f"/srv/{fake.name}") for fake in fakes)
    settings = Settings(pools=specs, register=register, kubelet_socket="/csi.sock" if register else "")
    return PoolStartup(list(fakes), settings, health, object())  # type: ignore[arg-type]


async def test_an_agent_of_a_host_does_not_start_without_any_pool() -> None:
    with pytest.raises(Precondition, match="pool a: its disk is missing"):
        await startup(AgentHealth(), FakePool("a", False)).open()
    await startup(AgentHealth(), FakePool("a", False), FakePool("b", True)).open()


async def test_an_agent_in_a_pod_starts_and_is_ready_when_a_disk_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "REOPEN_SECONDS", 0.001)
    health, pool = AgentHealth(), FakePool("a", False)
    starting = startup(health, pool, register="/registration")
    await starting.open()
    health.set_ready("start")
    assert health.ready() == (False, "pools: pool a: its disk is missing")
    reopening = asyncio.create_task(starting.reopen())
    await asyncio.sleep(0.02)
    assert not reopening.done()
    pool.disk = True
    await asyncio.wait_for(reopening, 60)
    assert health.ready() == (True, "ready: yes")

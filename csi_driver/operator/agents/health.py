"""Probes every agent from time to time: a metric for people, and channels that are connected when a call needs them."""

import asyncio
from collections.abc import Callable, Mapping

from csi_driver.service.agents import AgentHealth

EVERY_SECONDS = 15.0


class AgentHealthProbe:
    """Reports which agents answer; nothing is decided by it."""

    def __init__(self, agents: AgentHealth, report: Callable[[Mapping[str, bool]], None]) -> None:
        self._agents = agents
        self._report = report

    async def run(self) -> None:
        """Probe again and again, until cancelled."""
        while True:
            self._report(await self._agents.reachable_agents())
            await self._agents.close_removed()
            await asyncio.sleep(EVERY_SECONDS)

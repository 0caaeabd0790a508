"""Which agents answer, asked of each from time to time: a figure for people, and channels that are warm when needed."""

import asyncio
from collections.abc import Callable, Mapping

import grpc

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import DriverError
from csi_driver.rpc.clients.agent_channels import AgentChannels

EVERY_SECONDS = 15.0
ASK_SECONDS = 5.0
"""For an answer to Probe, which takes no lock."""


async def probe_all(agents: AgentChannels) -> dict[str, bool]:
    """Whether the agent of each owner answers now. Reading alone: nothing decides by it."""
    owners = agents.discovery.owners()
    return dict(zip(owners, await asyncio.gather(*(_answers(agents, owner) for owner in owners)), strict=True))


class AgentHealthProbe:
    """Tells who answers, again and again, and lets channels to nodes that are gone go."""

    def __init__(self, agents: AgentChannels, tell: Callable[[Mapping[str, bool]], None]) -> None:
        self._agents = agents
        self._tell = tell

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            if self._agents.discovery.known():
                self._tell(await probe_all(self._agents))
                await self._agents.close_removed()
            await asyncio.sleep(EVERY_SECONDS)


async def _answers(agents: AgentChannels, owner: str) -> bool:
    method, kind = "csi.v1.Identity/Probe", csi_pb2.ProbeResponse
    try:
        await agents.call(owner, method, csi_pb2.ProbeRequest(), kind, ASK_SECONDS)
    except (DriverError, grpc.aio.AioRpcError):
        return False
    return True

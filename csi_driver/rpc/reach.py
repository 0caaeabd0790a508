"""Which agents answer, asked of each from time to time: a figure for people, and channels that are warm when needed."""

import asyncio
from collections.abc import Callable, Mapping

import grpc

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import DriverError
from csi_driver.rpc.agents import Agents

EVERY_SECONDS = 15.0
ASK_SECONDS = 5.0
"""For an answer to Probe, which takes no lock."""


async def ask_all(agents: Agents) -> dict[str, bool]:
    """Whether the agent of each owner answers now. Reading alone: nothing decides by it."""
    owners = agents.discovery.owners()
    return dict(zip(owners, await asyncio.gather(*(_answers(agents, owner) for owner in owners)), strict=True))


async def keep_asking(agents: Agents, tell: Callable[[Mapping[str, bool]], None]) -> None:
    """Tell who answers, again and again, until cancelled."""
    while True:
        if agents.discovery.known():
            tell(await ask_all(agents))
        await asyncio.sleep(EVERY_SECONDS)


async def _answers(agents: Agents, owner: str) -> bool:
    method, kind = "csi.v1.Identity/Probe", csi_pb2.ProbeResponse
    try:
        await agents.call(owner, method, csi_pb2.ProbeRequest(), kind, ASK_SECONDS)
    except (DriverError, grpc.aio.AioRpcError):
        return False
    return True

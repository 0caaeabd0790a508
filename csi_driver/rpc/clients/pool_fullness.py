"""The operator's port to the pools that have run full, over the agents' ListPools."""

import asyncio
from collections.abc import Mapping, Sequence

import grpc
import structlog

from csi_driver._pb import tidemark_pb2
from csi_driver.domain.capacity import human
from csi_driver.domain.errors import DriverError
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.service.fullness import FullPool

ASK_SECONDS = 5.0

log = structlog.get_logger()


class AgentFullness:
    """Full pools of all agents. See service.fullness.FullPools."""

    def __init__(self, agents: AgentChannels) -> None:
        self._agents = agents

    async def full(self) -> Mapping[str, Sequence[FullPool]]:
        """See FullPools."""
        owners = self._agents.discovery.owners() if self._agents.discovery.known() else []
        answers = await asyncio.gather(*(self._of(owner) for owner in owners))
        return {owner: pools for owner, pools in zip(owners, answers, strict=True) if pools is not None}

    async def _of(self, owner: str) -> list[FullPool] | None:
        method, kind = "tidemark.v1.Tidemark/ListPools", tidemark_pb2.ListPoolsResponse
        try:
            answer = await self._agents.call(owner, method, tidemark_pb2.ListPoolsRequest(), kind, ASK_SECONDS)
        except (DriverError, grpc.aio.AioRpcError) as error:
            log.debug("an agent's pools are not known now", node=owner, why=str(error))
            return None
        return [_full(owner, pool) for pool in answer.pools if pool.full]


def _full(owner: str, pool: tidemark_pb2.Pool) -> FullPool:
    freed = tuple(
        f"{tidemark_pb2.TreeNode.Kind.Name(one.kind).lower()} {one.name} ({human(one.exclusive_bytes)})"
        for one in pool.would_free
    )
    return FullPool(owner, pool.name, pool.total_bytes, pool.free_bytes, freed)

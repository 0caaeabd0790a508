"""The operator's port to what the agents have, over ListVolumes."""

import asyncio
from collections.abc import Mapping, Sequence

import grpc
import structlog

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import DriverError
from csi_driver.rpc.clients.agent_channels import AgentChannels

PAGE = 1000
ASK_SECONDS = 20.0

log = structlog.get_logger()


class AgentInventory:
    """Volumes of all agents. See service.inventory.Inventory."""

    def __init__(self, agents: AgentChannels) -> None:
        self._agents = agents

    async def volumes(self) -> Mapping[str, Sequence[str]]:
        """See Inventory."""
        owners = self._agents.discovery.owners() if self._agents.discovery.known() else []
        answers = await asyncio.gather(*(self._of(owner) for owner in owners))
        return {owner: ids for owner, ids in zip(owners, answers, strict=True) if ids is not None}

    async def _of(self, owner: str) -> list[str] | None:
        method, kind = "csi.v1.Controller/ListVolumes", csi_pb2.ListVolumesResponse
        ids: list[str] = []
        token = ""
        try:
            while True:
                request = csi_pb2.ListVolumesRequest(max_entries=PAGE, starting_token=token)
                answer = await self._agents.call(owner, method, request, kind, ASK_SECONDS)
                ids += [entry.volume.volume_id for entry in answer.entries]
                token = answer.next_token
                if not token:
                    return ids
        except (DriverError, grpc.aio.AioRpcError) as error:
            log.debug("an agent's volumes are not known now", node=owner, why=str(error))
            return None

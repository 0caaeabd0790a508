"""The operator's port to the room that the agents have, over GetCapacity."""

from collections.abc import Mapping

import grpc

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import Unavailable
from csi_driver.rpc import convert
from csi_driver.rpc.clients.agent_channels import AgentChannels

ASK_SECONDS = 5.0


class AgentRooms:
    """See service.rooms.Rooms."""

    def __init__(self, agents: AgentChannels) -> None:
        self._agents = agents

    async def room(self, owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        """See Rooms."""
        request = csi_pb2.GetCapacityRequest(
            parameters={**({"pool": pool} if pool else {}), **parameters}, accessible_topology=convert.topology(owner)
        )
        method, kind = "csi.v1.Controller/GetCapacity", csi_pb2.GetCapacityResponse
        try:
            answer = await self._agents.call(owner, method, request, kind, ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"agent of node {owner} does not tell its room: {error.details()}") from error
        return int(answer.available_capacity)

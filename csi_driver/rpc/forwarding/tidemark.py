"""tidemark.v1 over all agents."""

import grpc

from csi_driver._pb import tidemark_pb2, tidemark_pb2_grpc
from csi_driver.domain.routing import known_pool
from csi_driver.rpc.convert import required
from csi_driver.rpc.forwarding.forwarder import Context, Forwarder, by_id, deletion_by_id
from csi_driver.service.agent_routing import Purpose


class ForwardingTidemark(Forwarder, tidemark_pb2_grpc.TidemarkServicer):
    """Forwards by id, and puts the views together. A view is UNAVAILABLE if an agent does not answer, and names the node."""

    service = "tidemark.v1.Tidemark"

    Hold = by_id("volume", "volume_id", tidemark_pb2.HoldResponse, Purpose.NODE)
    # A hold on a volume that no agent can have, or that is gone with its node, is released.
    Release = deletion_by_id("volume_id", tidemark_pb2.ReleaseResponse)
    Rollback = by_id("volume", "volume_id", tidemark_pb2.RollbackResponse, Purpose.NODE)
    SetLabel = by_id("volume", "volume_id", tidemark_pb2.SetLabelResponse, Purpose.NODE)
    DescribeVolume = by_id("volume", "volume_id", tidemark_pb2.DescribeVolumeResponse, Purpose.NODE)

    async def EstimateFreed(
        self, request: tidemark_pb2.EstimateFreedRequest, context: Context
    ) -> tidemark_pb2.EstimateFreedResponse:
        """Forward by the first id: all are in one pool, or its agent says so."""
        first = required(request.ids[0] if request.ids else "", "ids")
        owner = await self.router.agent_for(known_pool(first, "object"), Purpose.RECORD, first)
        return await self.forward(owner, "EstimateFreed", request, tidemark_pb2.EstimateFreedResponse, context)

    async def GetTree(self, request: tidemark_pb2.GetTreeRequest, context: Context) -> tidemark_pb2.GetTreeResponse:
        """Forward by the volume's id; else ask all agents. A pool need not be on every node, but must be on one."""
        answer = tidemark_pb2.GetTreeResponse
        if request.volume_id:
            pool = known_pool(request.volume_id, "volume")
            owner = await self.router.agent_for(pool, Purpose.NODE, request.volume_id)
            return await self.forward(owner, "GetTree", request, answer, context)
        tree, unknown_pool = answer(), []
        owners = sorted(self.owners())
        for owner in owners:
            try:
                part = await self.forward(owner, "GetTree", request, answer, context)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                unknown_pool.append(error)
            else:
                tree.nodes.extend(part.nodes)
        if owners and len(unknown_pool) == len(owners):
            raise unknown_pool[0]
        return tree

    async def ListPools(
        self, request: tidemark_pb2.ListPoolsRequest, context: Context
    ) -> tidemark_pb2.ListPoolsResponse:
        """Ask all agents."""
        pools = tidemark_pb2.ListPoolsResponse()
        for owner in sorted(self.owners()):
            part = await self.forward(owner, "ListPools", request, tidemark_pb2.ListPoolsResponse, context)
            pools.pools.extend(part.pools)
        return pools

"""tidemark.v1 at the controller: by id to the owner, and the views put together from all agents."""

from typing import Any

import grpc

from csi_driver._pb import tidemark_pb2, tidemark_pb2_grpc
from csi_driver.domain.routing import known_owner
from csi_driver.rpc.convert import required
from csi_driver.rpc.forwarding.controller import Forwarder

_Context = grpc.aio.ServicerContext[Any, Any]


class RoutedTidemark(Forwarder, tidemark_pb2_grpc.TidemarkServicer):
    """One silent agent makes a view UNAVAILABLE and names it: never a shorter one."""

    async def Hold(self, request: tidemark_pb2.HoldRequest, context: _Context) -> tidemark_pb2.HoldResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        return await self._to(owner, "tidemark.v1.Tidemark/Hold", request, tidemark_pb2.HoldResponse, context)

    async def Release(self, request: tidemark_pb2.ReleaseRequest, context: _Context) -> tidemark_pb2.ReleaseResponse:
        """By id; what nobody can have is released."""
        volume_id = required(request.volume_id, "volume_id")
        kind = tidemark_pb2.ReleaseResponse
        return await self._delete(volume_id, "tidemark.v1.Tidemark/Release", request, kind, context)

    async def Rollback(self, request: tidemark_pb2.RollbackRequest, context: _Context) -> tidemark_pb2.RollbackResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        return await self._to(owner, "tidemark.v1.Tidemark/Rollback", request, tidemark_pb2.RollbackResponse, context)

    async def GetTree(self, request: tidemark_pb2.GetTreeRequest, context: _Context) -> tidemark_pb2.GetTreeResponse:
        """Of one volume from its agent; else from all. A pool need not be on every node, but must be on one."""
        method, kind = "tidemark.v1.Tidemark/GetTree", tidemark_pb2.GetTreeResponse
        if request.volume_id:
            owner = known_owner(request.volume_id, "volume")
            return await self._to(owner, method, request, kind, context)
        answer, missing = kind(), []
        owners = sorted(self._everyone())
        for owner in owners:
            try:
                part = await self._to(owner, method, request, kind, context)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                missing.append(error)
            else:
                answer.nodes.extend(part.nodes)
        if owners and len(missing) == len(owners):
            raise missing[0]
        return answer

    async def DescribeVolume(
        self, request: tidemark_pb2.DescribeVolumeRequest, context: _Context
    ) -> tidemark_pb2.DescribeVolumeResponse:
        """By id."""
        owner = known_owner(required(request.volume_id, "volume_id"), "volume")
        kind = tidemark_pb2.DescribeVolumeResponse
        return await self._to(owner, "tidemark.v1.Tidemark/DescribeVolume", request, kind, context)

    async def ListPools(
        self, request: tidemark_pb2.ListPoolsRequest, context: _Context
    ) -> tidemark_pb2.ListPoolsResponse:
        """From all."""
        answer = tidemark_pb2.ListPoolsResponse()
        for owner in sorted(self._everyone()):
            kind = tidemark_pb2.ListPoolsResponse
            part = await self._to(owner, "tidemark.v1.Tidemark/ListPools", request, kind, context)
            answer.pools.extend(part.pools)
        return answer

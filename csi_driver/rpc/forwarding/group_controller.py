"""csi.v1.GroupController over all agents: a group lies on one node."""

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.routing import pool_on_one_node
from csi_driver.rpc.convert import required
from csi_driver.rpc.forwarding.forwarder import Context, Forwarder, by_id, deletion_by_id
from csi_driver.service.agent_routing import Purpose

_Rpc = csi_pb2.GroupControllerServiceCapability.RPC


class ForwardingGroupController(Forwarder, csi_pb2_grpc.GroupControllerServicer):
    """Forwards by the id of the group, or by those of its members."""

    service = "csi.v1.GroupController"

    GetVolumeGroupSnapshot = by_id("group snapshot", "group_snapshot_id", csi_pb2.GetVolumeGroupSnapshotResponse)
    DeleteVolumeGroupSnapshot = deletion_by_id("group_snapshot_id", csi_pb2.DeleteVolumeGroupSnapshotResponse)

    async def GroupControllerGetCapabilities(
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """Return those of an agent."""
        rpc = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        capabilities = [csi_pb2.GroupControllerServiceCapability(rpc=rpc)]
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=capabilities)

    async def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Forward to the node of all members; FAILED_PRECONDITION names the nodes if there are several."""
        required(request.name, "the group snapshot's name")
        if not request.source_volume_ids:
            raise InvalidRequest("source_volume_ids is empty: name the volumes of the group")
        volume_ids = [required(volume_id, "one of source_volume_ids") for volume_id in request.source_volume_ids]
        owner = await self.router.agent_for(pool_on_one_node(volume_ids), Purpose.NODE, volume_ids[0])
        answer = csi_pb2.CreateVolumeGroupSnapshotResponse
        return await self.forward(owner, "CreateVolumeGroupSnapshot", request, answer, context)

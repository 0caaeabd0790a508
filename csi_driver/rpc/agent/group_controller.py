"""csi.v1.GroupController: snapshots of several volumes at one moment."""

from typing import Any

import grpc

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc import convert
from csi_driver.rpc.convert import required
from csi_driver.service.group_snapshots import GroupSnapshots

_Context = grpc.aio.ServicerContext[Any, Any]
_Rpc = csi_pb2.GroupControllerServiceCapability.RPC


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Translates; every decision is the service's."""

    def __init__(self, groups: GroupSnapshots) -> None:
        self._groups = groups

    async def GroupControllerGetCapabilities(
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """All three calls."""
        rpc = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        found = [csi_pb2.GroupControllerServiceCapability(rpc=rpc)]
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=found)

    async def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Cut all, or answer with the group that the same request made."""
        required(request.name, "the group snapshot's name")
        for source_id in request.source_volume_ids:
            required(source_id, "one of source_volume_ids")
        made = await self._groups.create(request.name, list(request.source_volume_ids), request.parameters)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=convert.group(made))

    async def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Delete the group with its members; unknown is fine."""
        group_id = required(request.group_snapshot_id, "group_snapshot_id")
        await self._groups.delete(group_id, list(request.snapshot_ids))
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """One group; existence comes before the list of members."""
        group_id = required(request.group_snapshot_id, "group_snapshot_id")
        found = self._groups.get(group_id, list(request.snapshot_ids))
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=convert.group(found))

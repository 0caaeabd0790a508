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
    """Converts messages; the service decides."""

    def __init__(self, groups: GroupSnapshots) -> None:
        self._groups = groups

    async def GroupControllerGetCapabilities(
        self, _request: csi_pb2.GroupControllerGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """Return the one that stands for all three calls."""
        rpc = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        capabilities = [csi_pb2.GroupControllerServiceCapability(rpc=rpc)]
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=capabilities)

    async def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Take the snapshots, or answer with the group that the same request made."""
        required(request.name, "the group snapshot's name")
        for source_id in request.source_volume_ids:
            required(source_id, "one of source_volume_ids")
        group = await self._groups.create(request.name, list(request.source_volume_ids), request.parameters)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(
            group_snapshot=convert.group(group, self._groups.granule(group))
        )

    async def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Delete the group with its members; an unknown one is deleted already."""
        group_id = required(request.group_snapshot_id, "group_snapshot_id")
        await self._groups.delete(group_id, list(request.snapshot_ids))
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, _context: _Context
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """Return one group; an unknown one is refused before a wrong list of members."""
        group_id = required(request.group_snapshot_id, "group_snapshot_id")
        await self._groups.refresh()
        group = self._groups.get(group_id, list(request.snapshot_ids))
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=convert.group(group, self._groups.granule(group)))

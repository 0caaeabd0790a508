"""csi.v1.Controller: volumes and snapshots of this agent's pools."""

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.model import VolumeRequest
from csi_driver.domain.requests import split_labels
from csi_driver.rpc import convert
from csi_driver.rpc.agent.unimplemented import NotOffered
from csi_driver.rpc.convert import UnsupportedCapability, required
from csi_driver.service.snapshots import SnapshotRequest, Snapshots
from csi_driver.service.volumes import Volumes

_Context = grpc.aio.ServicerContext[Any, Any]
_Rpc = csi_pb2.ControllerServiceCapability.RPC

CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.GET_SNAPSHOT,
)

MAX_PAGE = 8000
"""Entries of one answer. The largest entry has about 450 bytes, and Go clients refuse a message above 4 MiB, so this
stays below; a pool with more gives a token even to a caller that set no limit, as the protocol allows."""


class Controller(NotOffered):
    """Converts messages; the services decide."""

    def __init__(self, volumes: Volumes, snapshots: Snapshots) -> None:
        self._volumes = volumes
        self._snapshots = snapshots

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, _context: _Context
    ) -> csi_pb2.CreateVolumeResponse:
        """Create a volume, or answer with the one that the same request created."""
        required(request.name, "the volume's name")
        if request.mutable_parameters:
            raise InvalidRequest(
                f"mutable parameters ({', '.join(sorted(request.mutable_parameters))}) are unknown: this driver has no "
                "MODIFY_VOLUME; use a claim without a VolumeAttributesClass"
            )
        capabilities = convert.capabilities(request.volume_capabilities)
        parameters, labels = split_labels(request.parameters, "parameters")
        volume_request = VolumeRequest(
            name=request.name,
            range=convert.size_range(request.capacity_range),
            capabilities=capabilities,
            parameters=parameters,
            labels=labels,
            source=convert.source(request),
        )
        volume = await self._volumes.create(volume_request, convert.owners(request.accessibility_requirements))
        return csi_pb2.CreateVolumeResponse(volume=convert.volume(volume))

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, _context: _Context
    ) -> csi_pb2.DeleteVolumeResponse:
        """Delete a volume; an unknown one is deleted already."""
        await self._volumes.delete(required(request.volume_id, "volume_id"))
        return csi_pb2.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm all that was asked, or say why not; only a malformed request is an error."""
        required(request.volume_id, "volume_id")
        reason = ""
        await self._volumes.refresh()
        try:
            capabilities = convert.capabilities(request.volume_capabilities)
        except UnsupportedCapability as error:
            self._volumes.get(request.volume_id)
            reason = str(error)
        else:
            reason = self._volumes.validate(request.volume_id, capabilities, request.parameters)
        if not reason and request.mutable_parameters:
            reason = "this driver has no mutable parameters: leave them out"
        if reason:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=reason)
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    async def ListVolumes(self, request: csi_pb2.ListVolumesRequest, _context: _Context) -> csi_pb2.ListVolumesResponse:
        """Return one page."""
        await self._volumes.refresh()
        items, token = self._volumes.list(_page_size(request.max_entries), request.starting_token)
        entries = [csi_pb2.ListVolumesResponse.Entry(volume=convert.volume(item)) for item in items]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, _context: _Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """Return one volume, as ListVolumes does."""
        await self._volumes.refresh()
        item = self._volumes.get(required(request.volume_id, "volume_id"))
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus()
        return csi_pb2.ControllerGetVolumeResponse(volume=convert.volume(item), status=status)

    async def GetCapacity(self, request: csi_pb2.GetCapacityRequest, _context: _Context) -> csi_pb2.GetCapacityResponse:
        """Return the capacity for new volumes of this kind at this topology; 0 if there can be none."""
        try:
            capabilities = convert.capacity_capabilities(request.volume_capabilities)
        except UnsupportedCapability:
            return csi_pb2.GetCapacityResponse(maximum_volume_size=Int64Value(value=0))
        owner = convert.owner(request.accessible_topology) if request.accessible_topology.segments else None
        available, largest, smallest = await self._volumes.capacity(request.parameters, capabilities, owner)
        return csi_pb2.GetCapacityResponse(
            available_capacity=available,
            maximum_volume_size=Int64Value(value=largest),
            minimum_volume_size=Int64Value(value=smallest),
        )

    async def ControllerGetCapabilities(
        self, _request: csi_pb2.ControllerGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Return what is served below."""
        capabilities = [csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=capabilities)

    async def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, _context: _Context
    ) -> csi_pb2.CreateSnapshotResponse:
        """Take a snapshot of a volume, or answer with the one that the same request took."""
        required(request.name, "the snapshot's name")
        required(request.source_volume_id, "source_volume_id")
        if request.HasField("accessibility_requirements"):
            raise InvalidRequest(
                "accessibility_requirements are refused: a snapshot is where its volume is, and this driver does not "
                "have SNAPSHOT_ACCESSIBILITY_CONSTRAINTS; leave them out"
            )
        snapshot_request = SnapshotRequest(request.name, request.source_volume_id, request.parameters)
        snapshot = await self._snapshots.create(snapshot_request)
        return csi_pb2.CreateSnapshotResponse(snapshot=convert.snapshot(snapshot, self._snapshots.granule(snapshot)))

    async def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, _context: _Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Delete a snapshot; an unknown one is deleted already."""
        await self._snapshots.delete(required(request.snapshot_id, "snapshot_id"))
        return csi_pb2.DeleteSnapshotResponse()

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, _context: _Context
    ) -> csi_pb2.ListSnapshotsResponse:
        """Return one page of those that match; group members are among them."""
        await self._snapshots.refresh()
        items, token = self._snapshots.list(
            _page_size(request.max_entries), request.starting_token, request.snapshot_id, request.source_volume_id
        )
        entries = [
            csi_pb2.ListSnapshotsResponse.Entry(snapshot=convert.snapshot(item, self._snapshots.granule(item)))
            for item in items
        ]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    async def GetSnapshot(self, request: csi_pb2.GetSnapshotRequest, _context: _Context) -> csi_pb2.GetSnapshotResponse:
        """Return one snapshot."""
        await self._snapshots.refresh()
        item = self._snapshots.get(required(request.snapshot_id, "snapshot_id"))
        return csi_pb2.GetSnapshotResponse(snapshot=convert.snapshot(item, self._snapshots.granule(item)))

    async def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, _context: _Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Grow a volume. A file system has to follow on the node; a block device grows here already."""
        required(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise InvalidRequest("capacity_range is missing: say how large the volume is to be")
        used = [convert.capability(request.volume_capability)] if request.HasField("volume_capability") else []
        grown = await self._volumes.expand(request.volume_id, convert.size_range(request.capacity_range))
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=grown.size,
            node_expansion_required=any(c.access == "mount" for c in used or grown.request.capabilities),
        )


def _page_size(asked: int) -> int:
    """Return the size asked for, but never more than one message may hold; the service refuses a negative value."""
    return min(asked or MAX_PAGE, MAX_PAGE)

"""csi.v1.Node: stage, publish and back, on this node. Missing fields come first, in the protocol's order."""

from typing import Any

import grpc

from csi_driver._pb import csi_pb2, csi_pb2_grpc
from csi_driver.domain.errors import Unsupported
from csi_driver.rpc import convert
from csi_driver.rpc.agent import volume_health as conditions
from csi_driver.rpc.convert import required
from csi_driver.service.node_volumes import NodeVolumes

_Context = grpc.aio.ServicerContext[Any, Any]
_Rpc = csi_pb2.NodeServiceCapability.RPC
_Usage = csi_pb2.VolumeUsage
_Stats = csi_pb2.NodeGetVolumeStatsResponse

CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)
HEALTH_CAPABILITIES = (_Rpc.GET_VOLUME_HEALTH, conditions.VOLUME_CONDITION)
"""What is served in any case, and announced only on demand: both are alpha, and clients exist that fail at what they do not know."""


class Node(csi_pb2_grpc.NodeServicer):
    """Converts messages; the service decides. Contexts and secrets of the requests are not read.

    `volume_health`: announce that the health of volumes is reported.
    """

    def __init__(self, nodes: NodeVolumes, owner: str, volume_health: bool = False) -> None:
        self._nodes = nodes
        self._owner = owner
        self._capabilities = CAPABILITIES + (HEALTH_CAPABILITIES if volume_health else ())

    async def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, _context: _Context
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Attach, format once, mount."""
        volume_id = required(request.volume_id, "volume_id")
        staging = required(request.staging_target_path, "staging_target_path")
        await self._nodes.stage(volume_id, staging, convert.one_capability(request))
        return csi_pb2.NodeStageVolumeResponse()

    async def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, _context: _Context
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Undo the stage."""
        volume_id = required(request.volume_id, "volume_id")
        await self._nodes.unstage(volume_id, required(request.staging_target_path, "staging_target_path"))
        return csi_pb2.NodeUnstageVolumeResponse()

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, _context: _Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Mount a staged volume for one workload."""
        volume_id = required(request.volume_id, "volume_id")
        target = required(request.target_path, "target_path")
        capability = convert.one_capability(request)
        await self._nodes.publish(volume_id, request.staging_target_path, target, capability, request.readonly)
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, _context: _Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Undo a publish, and remove the target path."""
        volume_id = required(request.volume_id, "volume_id")
        await self._nodes.unpublish(volume_id, required(request.target_path, "target_path"))
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, _context: _Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and inodes of a file system, and its condition; of a block device its size alone."""
        volume_id = required(request.volume_id, "volume_id")
        _, stats = await self._nodes.stats(volume_id, required(request.volume_path, "volume_path"))
        if not stats.inodes:
            return conditions.with_condition(
                _Stats(usage=[_Usage(total=stats.total, unit=_Usage.BYTES)]), stats.condition
            )
        size = _Usage(total=stats.total, used=stats.used, available=stats.available, unit=_Usage.BYTES)
        inodes = _Usage(total=stats.inodes, used=stats.inodes_used, available=stats.inodes_free, unit=_Usage.INODES)
        return conditions.with_condition(_Stats(usage=[size, inodes]), stats.condition)

    async def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, _context: _Context
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Grow the file system to the size that the volume has."""
        volume_id = required(request.volume_id, "volume_id")
        path = required(request.volume_path, "volume_path")
        grown = await self._nodes.expand(volume_id, path, convert.size_range(request.capacity_range))
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=grown.size)

    async def NodeGetCapabilities(
        self, _request: csi_pb2.NodeGetCapabilitiesRequest, _context: _Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """Return what is served here."""
        capabilities = [csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in self._capabilities]
        return csi_pb2.NodeGetCapabilitiesResponse(capabilities=capabilities)

    async def NodeGetInfo(
        self, _request: csi_pb2.NodeGetInfoRequest, _context: _Context
    ) -> csi_pb2.NodeGetInfoResponse:
        """Return the node's owner, as its id and its topology: the first part of a volume's id is where its pods must run."""
        topology = convert.topology(self._owner)
        return csi_pb2.NodeGetInfoResponse(node_id=self._owner, accessible_topology=topology)

    async def NodeGetVolumeHealth(
        self, request: csi_pb2.NodeGetVolumeHealthRequest, _context: _Context
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        """Return what is wrong with a volume, staged or not."""
        volume_id = required(request.volume_id, "volume_id")
        volume_health = conditions.health(volume_id, await self._nodes.condition(volume_id))
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=volume_health)

    async def NodeGetStorageHealth(
        self, _request: csi_pb2.NodeGetStorageHealthRequest, _context: _Context
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        """Not served."""
        raise Unsupported("NodeGetStorageHealth is not offered: this driver does not have GET_STORAGE_HEALTH")

"""The operator's port to the disks, over the agents' tidemark.v1."""

from typing import Any

import grpc

from csi_driver._pb import tidemark_pb2
from csi_driver.domain.errors import Damaged, NotFound, OtherVersion, Unavailable
from csi_driver.domain.routing import known_owner
from csi_driver.rpc.clients.agent_channels import AgentChannels
from csi_driver.rpc.errors import from_status
from csi_driver.service.disks import Back, Disk, Held, Wanted

QUICK_SECONDS = 20.0
"""For calls that read or change a record. A look asks the kernel too, which answers at once or not at all."""

ROLLBACK_SECONDS = 120.0
"""For the exchange: the clone of a badly fragmented image takes this long. The work goes on after it; a retry finds it."""


class AgentDisks:
    """Disks of all agents, each reached by the owner in the id. See service.disks.Disks."""

    def __init__(self, agents: AgentChannels) -> None:
        self._agents = agents

    async def look(self, volume_id: str) -> Disk:
        """See Disks. A disk on a node that a person has given up is gone with it, as for the deletes of the router; but not
        while the cluster knows the node, or an agent there: what became of the disk can be asked again.
        """
        try:
            volume, own = await self._describe(volume_id)
        except Unavailable as error:
            owner = known_owner(volume_id, "volume")
            discovery = self._agents.discovery
            if not discovery.forgotten(owner) or discovery.place(owner) is not None:
                raise
            raise NotFound(f"{volume_id} was lost with node {owner}, which was forgotten") from error
        return Disk(
            id=volume.id,
            uid=volume.uid,
            snapshots=own,
            used_by=tuple(volume.used_by),
            held=Held(volume.hold.holder, volume.hold.since.ToNanoseconds()) if volume.HasField("hold") else None,
            rollbacks=tuple(
                Back(r.name, r.snapshot_id, r.at.ToNanoseconds(), r.safety_snapshot_id) for r in volume.rollbacks
            ),
        )

    async def _describe(self, volume_id: str) -> tuple[tidemark_pb2.TreeNode, dict[str, int]]:
        """A volume, and when each of its own snapshots was taken, by id."""
        try:
            request = tidemark_pb2.DescribeVolumeRequest(volume_id=volume_id)
            kind = tidemark_pb2.DescribeVolumeResponse
            response = await self._call("DescribeVolume", volume_id, request, kind, QUICK_SECONDS)
        except OtherVersion:
            return await self._describe_by_tree(volume_id)
        return response.volume, {one.id: one.created.ToNanoseconds() for one in response.snapshots}

    async def _describe_by_tree(self, volume_id: str) -> tuple[tidemark_pb2.TreeNode, dict[str, int]]:
        """The same from an agent of 4414c43, which has no DescribeVolume."""
        request = tidemark_pb2.GetTreeRequest(volume_id=volume_id)
        tree = await self._call("GetTree", volume_id, request, tidemark_pb2.GetTreeResponse, QUICK_SECONDS)
        volume = next((node for node in tree.nodes if node.id == volume_id and node.kind == node.VOLUME), None)
        if volume is None:
            raise Damaged(f"the agent's answer about {volume_id} leaves that disk out: report this")
        return volume, {
            node.id: node.created.ToNanoseconds()
            for node in tree.nodes
            if node.kind == node.SNAPSHOT and node.parent_uid == volume.uid
        }

    async def hold(self, volume_id: str, holder: str) -> None:
        """See Disks."""
        request = tidemark_pb2.HoldRequest(volume_id=volume_id, holder=holder)
        await self._call("Hold", volume_id, request, tidemark_pb2.HoldResponse, QUICK_SECONDS)

    async def release(self, volume_id: str, holder: str) -> None:
        """See Disks."""
        request = tidemark_pb2.ReleaseRequest(volume_id=volume_id, holder=holder)
        await self._call("Release", volume_id, request, tidemark_pb2.ReleaseResponse, QUICK_SECONDS)

    async def roll_back(self, wanted: Wanted) -> None:
        """See Disks."""
        request = tidemark_pb2.RollbackRequest(
            volume_id=wanted.volume_id,
            snapshot_id=wanted.snapshot_id,
            name=wanted.name,
            holder=wanted.holder,
            skip_safety_snapshot=not wanted.safety,
            safety_snapshot_id=wanted.safety,
        )
        await self._call("Rollback", wanted.volume_id, request, tidemark_pb2.RollbackResponse, ROLLBACK_SECONDS)

    async def _call(self, method: str, volume_id: str, request: Any, answer: type[Any], seconds: float) -> Any:
        owner = known_owner(volume_id, "volume")
        try:
            return await self._agents.call(owner, f"tidemark.v1.Tidemark/{method}", request, answer, seconds)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, f"the agent of node {owner}") from error

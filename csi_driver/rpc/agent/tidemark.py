"""tidemark.v1: rollback, and views of the pools."""

from typing import Any

import grpc

from csi_driver._pb import tidemark_pb2, tidemark_pb2_grpc
from csi_driver.domain.capacity import CapacityReport
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.rpc import convert
from csi_driver.rpc.convert import required
from csi_driver.service.deletion_estimates import DeletionEstimates
from csi_driver.service.fullness import Fullness, has_run_full
from csi_driver.service.labels import Labels
from csi_driver.service.lineage import Lineage, LineageNode
from csi_driver.service.pools import Pool
from csi_driver.service.rollbacks import RollbackRequest, Rollbacks

_Context = grpc.aio.ServicerContext[Any, Any]
_Node = tidemark_pb2.TreeNode
_KINDS = {"volume": _Node.VOLUME, "snapshot": _Node.SNAPSHOT, "group": _Node.GROUP}


class Tidemark(tidemark_pb2_grpc.TidemarkServicer):
    """Converts messages; the services decide."""

    def __init__(
        self,
        rollbacks: Rollbacks,
        lineage: Lineage,
        fullness: Fullness,
        labels: Labels,
        deletion_estimates: DeletionEstimates,
    ) -> None:
        self._rollbacks = rollbacks
        self._lineage = lineage
        self._labels = labels
        self._deletion_estimates = deletion_estimates
        self._fullness = fullness

    async def Hold(self, request: tidemark_pb2.HoldRequest, _context: _Context) -> tidemark_pb2.HoldResponse:
        """Keep a volume out of use, or renew the hold."""
        hold = await self._rollbacks.hold(required(request.volume_id, "volume_id"), required(request.holder, "holder"))
        return tidemark_pb2.HoldResponse(expires=convert.timestamp(hold.expires))

    async def Release(self, request: tidemark_pb2.ReleaseRequest, _context: _Context) -> tidemark_pb2.ReleaseResponse:
        """Give a hold back."""
        await self._rollbacks.release(required(request.volume_id, "volume_id"), required(request.holder, "holder"))
        return tidemark_pb2.ReleaseResponse()

    async def Rollback(
        self, request: tidemark_pb2.RollbackRequest, _context: _Context
    ) -> tidemark_pb2.RollbackResponse:
        """Roll a volume back to one of its own snapshots."""
        rollback = RollbackRequest(
            volume_id=required(request.volume_id, "volume_id"),
            snapshot_id=required(request.snapshot_id, "snapshot_id"),
            name=required(request.name, "the rollback's name"),
            holder=request.holder,
            skip_safety=request.skip_safety_snapshot,
            safety=request.safety_snapshot_id,
        )
        completed, already_done = await self._rollbacks.roll_back(rollback)
        return tidemark_pb2.RollbackResponse(
            rolled_back_at=convert.timestamp(completed.at),
            safety_snapshot_id=completed.safety,
            already_done=already_done,
        )

    async def GetTree(self, request: tidemark_pb2.GetTreeRequest, _context: _Context) -> tidemark_pb2.GetTreeResponse:
        """Return all objects of the pools, with what was made from what."""
        nodes = await self._lineage.tree(request.pool, request.volume_id, request.with_usage)
        return tidemark_pb2.GetTreeResponse(nodes=[self._node(node) for node in nodes])

    async def DescribeVolume(
        self, request: tidemark_pb2.DescribeVolumeRequest, _context: _Context
    ) -> tidemark_pb2.DescribeVolumeResponse:
        """Return one volume with its snapshots."""
        node, snapshots = await self._lineage.describe(required(request.volume_id, "volume_id"))
        response = tidemark_pb2.DescribeVolumeResponse(volume=self._node(node))
        for snapshot in snapshots:
            response.snapshots.add(id=str(snapshot.id), created=convert.timestamp(snapshot.created))
        return response

    async def ListPools(
        self, _request: tidemark_pb2.ListPoolsRequest, _context: _Context
    ) -> tidemark_pb2.ListPoolsResponse:
        """Return the pools and their capacity."""
        pools = sorted(await self._lineage.pools(), key=lambda entry: (entry[0].backend.identity.owner, entry[0].name))
        return tidemark_pb2.ListPoolsResponse(pools=[self._pool(pool, account) for pool, account in pools])

    async def SetLabel(
        self, request: tidemark_pb2.SetLabelRequest, _context: _Context
    ) -> tidemark_pb2.SetLabelResponse:
        """Give a volume another name for people to see."""
        await self._labels.set_label(required(request.volume_id, "volume_id"), request.label)
        return tidemark_pb2.SetLabelResponse()

    async def EstimateFreed(
        self, request: tidemark_pb2.EstimateFreedRequest, _context: _Context
    ) -> tidemark_pb2.EstimateFreedResponse:
        """Return what deleting these objects together would free."""
        freed = await self._deletion_estimates.freed_together(request.ids)
        return tidemark_pb2.EstimateFreedResponse(freed_bytes=freed)

    def _pool(self, pool: Pool, account: CapacityReport) -> tidemark_pb2.Pool:
        message = _pool(pool, account)
        if account.below_reserve or message.full:
            for freed in self._fullness.would_free(pool):
                kind = _KINDS[freed.kind]
                message.would_free.add(id=freed.id, name=freed.name, kind=kind, exclusive_bytes=freed.exclusive)
        return message

    def _node(self, node: LineageNode) -> tidemark_pb2.TreeNode:
        item = node.item
        message = _Node(
            id=str(item.id),
            name=item.name,
            uid=item.uid,
            pool=node.pool.name,
            parent_id=node.parent,
            parent_uid=node.parent_uid,
            created=convert.timestamp(item.created),
            used_by=node.use.paths,
            places=[_Node.Place(paths=place) for place in node.use.places],
            device=node.use.device,
            condition=node.condition,
        )
        if isinstance(item, GroupSnapshot):
            message.kind = _Node.GROUP
            message.size_bytes = sum(member.size for member in item.members)
            return message
        message.size_bytes, message.format, message.thick = item.size, item.format, item.thick
        if node.usage is not None:
            message.usage.exclusive_bytes = node.usage.exclusive
            message.usage.shared_bytes = node.usage.shared
            message.usage.extents = node.usage.extents or 0
        if isinstance(item, Snapshot):
            message.kind = _Node.SNAPSHOT
            message.group_snapshot_id = convert.group_id(item)
        else:
            message.kind = _Node.VOLUME
            message.label = item.label
            self._add_rollbacks(message, item)
        return message

    def _add_rollbacks(self, message: tidemark_pb2.TreeNode, volume: Volume) -> None:
        if volume.hold is not None and self._lineage.holder(volume):
            message.hold.holder = volume.hold.holder
            message.hold.expires.CopyFrom(convert.timestamp(volume.hold.expires))
            message.hold.since.CopyFrom(convert.timestamp(volume.hold.since))
        for rollback in volume.rollbacks:
            message.rollbacks.add(
                name=rollback.name,
                snapshot_id=rollback.snapshot,
                at=convert.timestamp(rollback.at),
                safety_snapshot_id=rollback.safety,
            )


def _pool(pool: Pool, account: CapacityReport) -> tidemark_pb2.Pool:
    identity = pool.backend.identity
    limits = [
        tidemark_pb2.Pool.Limit(
            name=limit.name,
            used_bytes=limit.used,
            total_bytes=limit.total,
            refuse_at_bytes=limit.refuse_at,
            remedy=limit.remedy,
        )
        for limit in account.space.limits
    ]
    return tidemark_pb2.Pool(
        name=pool.name,
        backend=identity.kind,
        path=identity.path,
        owner=identity.owner,
        uuid=identity.uuid,
        total_bytes=account.space.total,
        free_bytes=account.space.free,
        committed_bytes=account.committed,
        available_bytes=account.available,
        reserve_bytes=account.reserve,
        overcommit=pool.policy.overcommit,
        volumes=len(pool.volumes),
        snapshots=len(pool.snapshots),
        full=has_run_full(pool, account),
        limits=limits,
    )

"""A small synchronous client of an agent's socket, for the command line and the demo. No protobuf type leaves it."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.model import Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_channel import PATIENT, QUICK, CallRefused, Channel
from csi_driver.rpc.clients.cli_messages import (
    Agent,
    CreatedVolume,
    Deletable,
    GroupSnapshotResult,
    Kind,
    Node,
    PoolLimit,
    PoolSpace,
    RollbackResult,
    SnapshotResult,
    capacity_range,
    moment,
    pool_space,
    snapshot_result,
    tree_node,
    volume_capability,
)

__all__ = [
    "CallRefused",
    "Client",
    "CreatedVolume",
    "Deletable",
    "Kind",
    "Node",
    "PoolLimit",
    "PoolSpace",
    "RollbackResult",
]


class Client(Channel):
    """The calls of csi.v1 and tidemark.v1 over one socket. Every method raises CallRefused."""

    def create_volume(
        self,
        name: str,
        size: SizeRange,
        capabilities: Iterable[Capability],
        parameters: Mapping[str, str] | None = None,
        source: Source | None = None,
    ) -> CreatedVolume:
        """CreateVolume: empty, or with the content of a snapshot or of another volume."""
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=capacity_range(size),
            volume_capabilities=[volume_capability(c) for c in capabilities],
            parameters=dict(parameters or {}),
        )
        if source is not None and source.kind == "snapshot":
            request.volume_content_source.snapshot.snapshot_id = source.id
        elif source is not None:
            request.volume_content_source.volume.volume_id = source.id
        volume = self._csi("Controller/CreateVolume", request, csi_pb2.CreateVolumeResponse, PATIENT).volume
        return CreatedVolume(volume.volume_id, volume.capacity_bytes)

    def delete_volume(self, volume_id: str) -> None:
        """DeleteVolume; unknown is fine."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
        self._csi("Controller/DeleteVolume", request, csi_pb2.DeleteVolumeResponse, PATIENT)

    def expand_volume(self, volume_id: str, size: SizeRange) -> tuple[int, bool]:
        """ControllerExpandVolume: the new size, and whether the node must grow the file system as well."""
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=capacity_range(size))
        reply = self._csi("Controller/ControllerExpandVolume", request, csi_pb2.ControllerExpandVolumeResponse, PATIENT)
        return reply.capacity_bytes, reply.node_expansion_required

    def grow(self, volume_id: str, path: str) -> int:
        """NodeExpandVolume: grow the file system at `path` to the volume's size. Returns the size in bytes."""
        request = csi_pb2.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=path)
        return self._csi("Node/NodeExpandVolume", request, csi_pb2.NodeExpandVolumeResponse, PATIENT).capacity_bytes

    def create_snapshot(self, volume_id: str, name: str) -> SnapshotResult:
        """CreateSnapshot: one volume, in use or not."""
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume_id, name=name)
        return snapshot_result(
            self._csi("Controller/CreateSnapshot", request, csi_pb2.CreateSnapshotResponse, PATIENT).snapshot
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        """DeleteSnapshot; unknown is fine."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        self._csi("Controller/DeleteSnapshot", request, csi_pb2.DeleteSnapshotResponse, PATIENT)

    def create_group(self, name: str, volume_ids: Iterable[str]) -> GroupSnapshotResult:
        """CreateVolumeGroupSnapshot: several volumes at one moment."""
        request = csi_pb2.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volume_ids)
        reply = self._csi(
            "GroupController/CreateVolumeGroupSnapshot", request, csi_pb2.CreateVolumeGroupSnapshotResponse, PATIENT
        )
        group = reply.group_snapshot
        return GroupSnapshotResult(
            group.group_snapshot_id,
            moment(group.creation_time),
            tuple(snapshot_result(member) for member in group.snapshots),
        )

    def delete_group(self, group_id: str) -> None:
        """DeleteVolumeGroupSnapshot with all its members; unknown is fine."""
        request = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group_id)
        self._csi(
            "GroupController/DeleteVolumeGroupSnapshot", request, csi_pb2.DeleteVolumeGroupSnapshotResponse, PATIENT
        )

    def stage(self, volume_id: str, staging: str, capability: Capability) -> None:
        """NodeStageVolume: attach, format on the first use, mount. The directory `staging` must exist."""
        request = csi_pb2.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=staging, volume_capability=volume_capability(capability)
        )
        self._csi("Node/NodeStageVolume", request, csi_pb2.NodeStageVolumeResponse, PATIENT)

    def publish(
        self, volume_id: str, staging: str, target: str, capability: Capability, read_only: bool = False
    ) -> None:
        """NodePublishVolume: bind a staged volume to `target`, whose parent directory must exist."""
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=staging,
            target_path=target,
            volume_capability=volume_capability(capability),
            readonly=read_only,
        )
        self._csi("Node/NodePublishVolume", request, csi_pb2.NodePublishVolumeResponse, PATIENT)

    def unpublish(self, volume_id: str, target: str) -> None:
        """NodeUnpublishVolume; `target` is gone afterwards."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target)
        self._csi("Node/NodeUnpublishVolume", request, csi_pb2.NodeUnpublishVolumeResponse, PATIENT)

    def unstage(self, volume_id: str, staging: str) -> None:
        """NodeUnstageVolume; the volume has no device afterwards."""
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=staging)
        self._csi("Node/NodeUnstageVolume", request, csi_pb2.NodeUnstageVolumeResponse, PATIENT)

    def hold(self, volume_id: str, holder: str) -> datetime:
        """Hold a volume, which keeps it out of use. Returns when the hold expires unless it is renewed."""
        request = tidemark_pb2.HoldRequest(volume_id=volume_id, holder=holder)
        return moment(self._own("Hold", request, tidemark_pb2.HoldResponse, QUICK).expires)

    def release(self, volume_id: str, holder: str) -> None:
        """Release a hold."""
        request = tidemark_pb2.ReleaseRequest(volume_id=volume_id, holder=holder)
        self._own("Release", request, tidemark_pb2.ReleaseResponse, QUICK)

    def roll_back(
        self, volume_id: str, snapshot_id: str, name: str, *, holder: str = "", skip_safety: bool = False
    ) -> RollbackResult:
        """Roll a volume back to one of its own snapshots, in place. `name` makes it safe to repeat."""
        request = tidemark_pb2.RollbackRequest(
            volume_id=volume_id, snapshot_id=snapshot_id, name=name, holder=holder, skip_safety_snapshot=skip_safety
        )
        reply = self._own("Rollback", request, tidemark_pb2.RollbackResponse, PATIENT)
        return RollbackResult(
            name, snapshot_id, moment(reply.rolled_back_at), reply.safety_snapshot_id, reply.already_done
        )

    def tree(self, pool: str = "", volume_id: str = "", with_usage: bool = False) -> list[Node]:
        """Return all objects, or those of one pool or one volume; parents before their children."""
        request = tidemark_pb2.GetTreeRequest(pool=pool, volume_id=volume_id, with_usage=with_usage)
        reply = self._own("GetTree", request, tidemark_pb2.GetTreeResponse, PATIENT if with_usage else QUICK)
        return [tree_node(node) for node in reply.nodes]

    def pools(self) -> list[PoolSpace]:
        """Return the pools and their space."""
        reply = self._own("ListPools", tidemark_pb2.ListPoolsRequest(), tidemark_pb2.ListPoolsResponse, QUICK)
        return [pool_space(pool) for pool in reply.pools]

    def set_label(self, volume_id: str, label: str) -> None:
        """Give a volume another name for people to see; id and CSI name stay."""
        request = tidemark_pb2.SetLabelRequest(volume_id=volume_id, label=label)
        self._own("SetLabel", request, tidemark_pb2.SetLabelResponse, QUICK)

    def estimate_freed(self, ids: Iterable[str]) -> int:
        """What deleting these objects of one pool together would free, in bytes."""
        request = tidemark_pb2.EstimateFreedRequest(ids=ids)
        return self._own("EstimateFreed", request, tidemark_pb2.EstimateFreedResponse, PATIENT).freed_bytes

    def probe(self) -> bool:
        """Return whether the agent is ready: every pool is open."""
        reply = self._csi("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse, QUICK)
        return reply.ready.value if reply.HasField("ready") else True

    def agent(self) -> Agent:
        """Return which agent answers on this socket."""
        plugin = self._csi(
            "Identity/GetPluginInfo", csi_pb2.GetPluginInfoRequest(), csi_pb2.GetPluginInfoResponse, QUICK
        )
        node = self._csi("Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse, QUICK)
        segments = dict(node.accessible_topology.segments)
        return Agent(plugin.name, plugin.vendor_version, self.probe(), node.node_id, segments)

"""A small synchronous client of an agent's socket, for the command line and the demo. No protobuf type leaves it."""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver import __version__
from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.model import Capability, SizeRange, Source, Usage
from csi_driver.rpc.errors import is_unknown_call

Kind = Literal["volume", "snapshot", "group", "other"]
"""Other: a kind that a newer agent has and this command does not know."""
Reply = TypeVar("Reply", bound=Message)

QUICK = 15.0
"""Seconds for calls that only look."""

PATIENT = 180.0
"""Seconds for calls that format, mount, cut or copy: longer than any deadline of the agent itself."""

_KINDS: dict[int, Kind] = {
    tidemark_pb2.TreeNode.VOLUME: "volume",
    tidemark_pb2.TreeNode.SNAPSHOT: "snapshot",
    tidemark_pb2.TreeNode.GROUP: "group",
}


class CallRefused(Exception):
    """A call was refused: `code` is gRPC's word for it, such as NOT_FOUND; the message is the agent's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class CreatedVolume:
    """What a creation answered: id and size in bytes."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A snapshot as answered: its moment is when it was taken."""

    id: str
    size: int
    source_id: str
    created: datetime
    ready: bool


@dataclass(frozen=True, slots=True)
class GroupCut:
    """A group snapshot with its members."""

    id: str
    created: datetime
    members: tuple[Cut, ...]


@dataclass(frozen=True, slots=True)
class Rolled:
    """A rollback that was made. `safety_id`: the snapshot that holds what was there before; empty if declined."""

    name: str
    snapshot_id: str
    at: datetime
    safety_id: str
    already_done: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A volume, a snapshot or a group, with what it was made from. `places`: those of `used_by`, each with all its paths."""

    id: str
    name: str
    kind: Kind
    pool: str
    size: int
    created: datetime
    uid: str
    parent_id: str = ""
    parent_uid: str = ""
    format: str = ""
    thick: bool = False
    used_by: tuple[str, ...] = ()
    places: tuple[tuple[str, ...], ...] = ()
    device: str = ""
    group_id: str = ""
    usage: Usage | None = None
    holder: str = ""
    rollbacks: tuple[Rolled, ...] = ()
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Freed:
    """What deleting one object alone would free, in bytes, when that was last counted."""

    id: str
    name: str
    kind: Kind
    exclusive: int


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """A pool and its sums, in bytes. `full`: writes to its thin disks fail, or soon will."""

    name: str
    owner: str
    backend: str
    path: str
    uuid: str
    total: int
    free: int
    committed: int
    available: int
    reserve: int
    overcommit: float
    volumes: int
    snapshots: int
    full: bool = False
    would_free: tuple[Freed, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """Who answers: driver, version, node, and whether it is ready."""

    driver: str
    version: str
    ready: bool
    node: str
    topology: dict[str, str]


class Client:
    """The calls of csi.v1 and tidemark.v1 over one socket. Every method raises CallRefused."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(endpoint, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the connection go."""
        self._channel.close()

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
            capacity_range=_range(size),
            volume_capabilities=[_capability(c) for c in capabilities],
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
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=_range(size))
        reply = self._csi("Controller/ControllerExpandVolume", request, csi_pb2.ControllerExpandVolumeResponse, PATIENT)
        return reply.capacity_bytes, reply.node_expansion_required

    def grow(self, volume_id: str, path: str) -> int:
        """NodeExpandVolume: what is mounted at `path` grows to the volume's size."""
        request = csi_pb2.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=path)
        return self._csi("Node/NodeExpandVolume", request, csi_pb2.NodeExpandVolumeResponse, PATIENT).capacity_bytes

    def create_snapshot(self, volume_id: str, name: str) -> Cut:
        """CreateSnapshot: one volume, in use or not."""
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume_id, name=name)
        return _cut(self._csi("Controller/CreateSnapshot", request, csi_pb2.CreateSnapshotResponse, PATIENT).snapshot)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """DeleteSnapshot; unknown is fine."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id)
        self._csi("Controller/DeleteSnapshot", request, csi_pb2.DeleteSnapshotResponse, PATIENT)

    def create_group(self, name: str, volume_ids: Iterable[str]) -> GroupCut:
        """CreateVolumeGroupSnapshot: several volumes at one moment."""
        request = csi_pb2.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volume_ids)
        reply = self._csi(
            "GroupController/CreateVolumeGroupSnapshot", request, csi_pb2.CreateVolumeGroupSnapshotResponse, PATIENT
        )
        group = reply.group_snapshot
        return GroupCut(
            group.group_snapshot_id, _moment(group.creation_time), tuple(_cut(member) for member in group.snapshots)
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
            volume_id=volume_id, staging_target_path=staging, volume_capability=_capability(capability)
        )
        self._csi("Node/NodeStageVolume", request, csi_pb2.NodeStageVolumeResponse, PATIENT)

    def publish(
        self, volume_id: str, staging: str, target: str, capability: Capability, read_only: bool = False
    ) -> None:
        """NodePublishVolume: show a staged volume at `target`, whose directory must exist."""
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=staging,
            target_path=target,
            volume_capability=_capability(capability),
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
        """Keep a volume out of use; returns when that lapses unless it is renewed."""
        request = tidemark_pb2.HoldRequest(volume_id=volume_id, holder=holder)
        return _moment(self._own("Hold", request, tidemark_pb2.HoldResponse, QUICK).expires)

    def release(self, volume_id: str, holder: str) -> None:
        """Give a hold back."""
        request = tidemark_pb2.ReleaseRequest(volume_id=volume_id, holder=holder)
        self._own("Release", request, tidemark_pb2.ReleaseResponse, QUICK)

    def roll_back(
        self, volume_id: str, snapshot_id: str, name: str, *, holder: str = "", skip_safety: bool = False
    ) -> Rolled:
        """Take a volume back to one of its own snapshots, in place. `name` makes it safe to repeat."""
        request = tidemark_pb2.RollbackRequest(
            volume_id=volume_id, snapshot_id=snapshot_id, name=name, holder=holder, skip_safety_snapshot=skip_safety
        )
        reply = self._own("Rollback", request, tidemark_pb2.RollbackResponse, PATIENT)
        return Rolled(name, snapshot_id, _moment(reply.rolled_back_at), reply.safety_snapshot_id, reply.already_done)

    def tree(self, pool: str = "", volume_id: str = "", with_usage: bool = False) -> list[Node]:
        """All objects, or those of one pool or one volume; parents before their children."""
        request = tidemark_pb2.GetTreeRequest(pool=pool, volume_id=volume_id, with_usage=with_usage)
        reply = self._own("GetTree", request, tidemark_pb2.GetTreeResponse, PATIENT if with_usage else QUICK)
        return [_node(node) for node in reply.nodes]

    def pools(self) -> list[PoolSpace]:
        """The pools and their space."""
        reply = self._own("ListPools", tidemark_pb2.ListPoolsRequest(), tidemark_pb2.ListPoolsResponse, QUICK)
        return [
            PoolSpace(
                name=p.name,
                owner=p.owner,
                backend=p.backend,
                path=p.path,
                uuid=p.uuid,
                total=p.total_bytes,
                free=p.free_bytes,
                committed=p.committed_bytes,
                available=p.available_bytes,
                reserve=p.reserve_bytes,
                overcommit=p.overcommit,
                volumes=p.volumes,
                snapshots=p.snapshots,
                full=p.full,
                would_free=tuple(Freed(f.id, f.name, _KINDS[f.kind], f.exclusive_bytes) for f in p.would_free),
            )
            for p in reply.pools
        ]

    def probe(self) -> bool:
        """Whether the agent is ready: connected and every pool open."""
        reply = self._csi("Identity/Probe", csi_pb2.ProbeRequest(), csi_pb2.ProbeResponse, QUICK)
        return reply.ready.value if reply.HasField("ready") else True

    def agent(self) -> Agent:
        """Who answers on this socket."""
        plugin = self._csi(
            "Identity/GetPluginInfo", csi_pb2.GetPluginInfoRequest(), csi_pb2.GetPluginInfoResponse, QUICK
        )
        node = self._csi("Node/NodeGetInfo", csi_pb2.NodeGetInfoRequest(), csi_pb2.NodeGetInfoResponse, QUICK)
        segments = dict(node.accessible_topology.segments)
        return Agent(plugin.name, plugin.vendor_version, self.probe(), node.node_id, segments)

    def _csi(self, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        return self._call(f"/csi.v1.{method}", request, reply, seconds)

    def _own(self, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        return self._call(f"/tidemark.v1.Tidemark/{method}", request, reply, seconds)

    def _call(self, path: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            answer: Reply = call(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._refusal(path, error, seconds) from None
        return answer

    def _refusal(self, path: str, error: grpc.RpcError, seconds: float) -> CallRefused:
        if not isinstance(error, grpc.Call):
            return CallRefused("UNKNOWN", f"{path} failed: {error}; look at the agent's log")
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            why = _unreachable(self.endpoint)
            if why:
                return CallRefused(code.name, why)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallRefused(
                code.name, f"{path} has not answered within {seconds:.0f} s: it may still end; look at the agent's log"
            )
        if is_unknown_call(error):
            return CallRefused(
                code.name,
                f"who answers at {self.endpoint} does not have {path[1:]}, which this command, of version {__version__}, "
                "needs: use the command of its own version, or upgrade it",
            )
        return CallRefused(code.name, error.details() or f"{path} failed: look at the agent's log")


def _unreachable(endpoint: str) -> str:
    """Why nobody can be reached at a socket, and what to do; empty where somebody listens."""
    path = endpoint.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except PermissionError:
            return f"the socket {path} may not be opened by this user: run as root"
        except OSError:
            return f"no agent answers at {path}: start `tidemark agent`, or name its socket by --endpoint"
    return ""


def _range(size: SizeRange) -> csi_pb2.CapacityRange | None:
    if not size.required and not size.limit:
        return None
    return csi_pb2.CapacityRange(required_bytes=size.required, limit_bytes=size.limit)


def _capability(capability: Capability) -> csi_pb2.VolumeCapability:
    mode = csi_pb2.VolumeCapability.AccessMode.Mode.Value(capability.mode.value)
    made = csi_pb2.VolumeCapability(access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode))
    if capability.access == "block":
        made.block.SetInParent()
    else:
        made.mount.SetInParent()
        made.mount.fs_type = capability.fs_type
        made.mount.mount_flags.extend(capability.mount_flags)
    return made


def _moment(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _cut(snapshot: csi_pb2.Snapshot) -> Cut:
    return Cut(
        snapshot.snapshot_id,
        snapshot.size_bytes,
        snapshot.source_volume_id,
        _moment(snapshot.creation_time),
        snapshot.ready_to_use,
    )


def _node(node: tidemark_pb2.TreeNode) -> Node:
    usage = None
    if node.HasField("usage"):
        usage = Usage(node.usage.exclusive_bytes, node.usage.shared_bytes, node.usage.extents)
    return Node(
        id=node.id,
        name=node.name,
        kind=_KINDS.get(node.kind, "other"),
        pool=node.pool,
        size=node.size_bytes,
        created=_moment(node.created),
        uid=node.uid,
        parent_id=node.parent_id,
        parent_uid=node.parent_uid,
        format=node.format,
        thick=node.thick,
        used_by=tuple(node.used_by),
        places=tuple(tuple(place.paths) for place in node.places) or tuple((path,) for path in node.used_by),
        device=node.device,
        group_id=node.group_snapshot_id,
        usage=usage,
        holder=node.hold.holder if node.HasField("hold") else "",
        rollbacks=tuple(
            Rolled(r.name, r.snapshot_id, _moment(r.at), r.safety_snapshot_id, already_done=True)
            for r in node.rollbacks
        ),
        condition=node.condition,
    )

"""What the calls of the command line return, without a type of protobuf, and the conversions."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.model import Capability, SizeRange, Usage

Kind = Literal["volume", "snapshot", "group", "other"]
"""Other: a kind that a newer agent has and this command does not know."""

_KINDS: dict[int, Kind] = {
    tidemark_pb2.TreeNode.VOLUME: "volume",
    tidemark_pb2.TreeNode.SNAPSHOT: "snapshot",
    tidemark_pb2.TreeNode.GROUP: "group",
}


@dataclass(frozen=True, slots=True)
class CreatedVolume:
    """A volume as CreateVolume answered: id, and size in bytes."""

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A snapshot as CreateSnapshot answered; `created`: when it was taken."""

    id: str
    size: int
    source_id: str
    created: datetime
    ready: bool


@dataclass(frozen=True, slots=True)
class GroupSnapshotResult:
    """A group snapshot with its members."""

    id: str
    created: datetime
    members: tuple[SnapshotResult, ...]


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """A completed rollback. `safety_id`: the safety snapshot; empty if none was taken."""

    name: str
    snapshot_id: str
    at: datetime
    safety_id: str
    already_done: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A volume, a snapshot or a group, with its source. `places`: the mount points of `used_by`, each with all its paths."""

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
    rollbacks: tuple[RollbackResult, ...] = ()
    condition: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Deletable:
    """What deleting one object alone would free, in bytes, when that was last counted."""

    id: str
    name: str
    kind: Kind
    exclusive: int


@dataclass(frozen=True, slots=True)
class PoolLimit:
    """Something beside its data that a pool can run out of, in bytes. From `refuse_at` on nothing new is made."""

    name: str
    used: int
    total: int
    refuse_at: int
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing new is made."""
        return self.used >= self.refuse_at


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """A pool and its sums, in bytes. `full`: writes to its thin volumes fail, or soon will."""

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
    would_free: tuple[Deletable, ...] = ()
    limits: tuple[PoolLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent behind a socket: driver, version, node, and whether it is ready."""

    driver: str
    version: str
    ready: bool
    node: str
    topology: dict[str, str]


def capacity_range(size: SizeRange) -> csi_pb2.CapacityRange | None:
    """Return the message for a range of sizes; None if it says nothing."""
    if not size.required and not size.limit:
        return None
    return csi_pb2.CapacityRange(required_bytes=size.required, limit_bytes=size.limit)


def volume_capability(capability: Capability) -> csi_pb2.VolumeCapability:
    """Return the message for a way to use a volume."""
    mode = csi_pb2.VolumeCapability.AccessMode.Mode.Value(capability.mode.value)
    message = csi_pb2.VolumeCapability(access_mode=csi_pb2.VolumeCapability.AccessMode(mode=mode))
    if capability.access == "block":
        message.block.SetInParent()
    else:
        message.mount.SetInParent()
        message.mount.fs_type = capability.fs_type
        message.mount.mount_flags.extend(capability.mount_flags)
    return message


def moment(stamp: Timestamp) -> datetime:
    """Return a time in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def snapshot_result(snapshot: csi_pb2.Snapshot) -> SnapshotResult:
    """Return what CreateSnapshot answered."""
    return SnapshotResult(
        snapshot.snapshot_id,
        snapshot.size_bytes,
        snapshot.source_volume_id,
        moment(snapshot.creation_time),
        snapshot.ready_to_use,
    )


def tree_node(node: tidemark_pb2.TreeNode) -> Node:
    """Return one object of the tree."""
    usage = None
    if node.HasField("usage"):
        usage = Usage(node.usage.exclusive_bytes, node.usage.shared_bytes, node.usage.extents)
    return Node(
        id=node.id,
        name=node.name,
        kind=_KINDS.get(node.kind, "other"),
        pool=node.pool,
        size=node.size_bytes,
        created=moment(node.created),
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
            RollbackResult(r.name, r.snapshot_id, moment(r.at), r.safety_snapshot_id, already_done=True)
            for r in node.rollbacks
        ),
        condition=node.condition,
        label=node.label,
    )


def pool_space(pool: tidemark_pb2.Pool) -> PoolSpace:
    """Return one pool of ListPools."""
    return PoolSpace(
        name=pool.name,
        owner=pool.owner,
        backend=pool.backend,
        path=pool.path,
        uuid=pool.uuid,
        total=pool.total_bytes,
        free=pool.free_bytes,
        committed=pool.committed_bytes,
        available=pool.available_bytes,
        reserve=pool.reserve_bytes,
        overcommit=pool.overcommit,
        volumes=pool.volumes,
        snapshots=pool.snapshots,
        full=pool.full,
        would_free=tuple(
            Deletable(f.id, f.name, _KINDS.get(f.kind, "other"), f.exclusive_bytes) for f in pool.would_free
        ),
        limits=tuple(
            PoolLimit(limit.name, limit.used_bytes, limit.total_bytes, limit.refuse_at_bytes, limit.remedy)
            for limit in pool.limits
        ),
    )

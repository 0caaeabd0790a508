"""Converts between messages and the objects of the domain. Every function returns, or says what the caller must change."""

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import InvalidRequest
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.model import AccessMode, Capability, GroupSnapshot, SizeRange, Snapshot, Source, Volume
from csi_driver.domain.routing import TOPOLOGY_KEY
from csi_driver.domain.sizes import BLOCK, least_request

_Modes = csi_pb2.VolumeCapability.AccessMode
_MODES = {
    _Modes.SINGLE_NODE_WRITER: AccessMode.WRITER,
    _Modes.SINGLE_NODE_READER_ONLY: AccessMode.READER,
    _Modes.SINGLE_NODE_SINGLE_WRITER: AccessMode.SINGLE_WRITER,
    _Modes.SINGLE_NODE_MULTI_WRITER: AccessMode.MULTI_WRITER,
}
_MANY_NODES = frozenset({"MULTI_NODE_READER_ONLY", "MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_MULTI_WRITER"})


class UnsupportedCapability(InvalidRequest):
    """A well-formed capability that no volume here has: Validate answers "not confirmed", Create is refused."""


def required(value: str, field: str) -> str:
    """Return a field that must not be empty. Raises InvalidRequest."""
    if not value:
        raise InvalidRequest(f"{field} is missing: give it")
    return value


def capability(message: csi_pb2.VolumeCapability) -> Capability:
    """Convert a capability. Raises InvalidRequest if it is incomplete, UnsupportedCapability if no volume here can have it."""
    access = message.WhichOneof("access_type")
    if access is None:
        raise InvalidRequest("a volume capability has no access_type: say block or mount")
    if not message.HasField("access_mode") or message.access_mode.mode == _Modes.UNKNOWN:
        raise InvalidRequest("a volume capability has no access_mode: say one, such as SINGLE_NODE_WRITER")
    mode = _MODES.get(message.access_mode.mode)
    if mode is None:
        name = mode_name(message.access_mode.mode)
        if name in _MANY_NODES:
            raise UnsupportedCapability(
                f"access mode {name} is refused: a pool belongs to one node, so its volumes are used on one node; "
                "use ReadWriteOnce or ReadWriteOncePod"
            )
        raise InvalidRequest(
            f"access mode {name} is unknown to this driver: use SINGLE_NODE_WRITER or another mode of one node"
        )
    if access == "block":
        return Capability("block", mode)
    if message.mount.volume_mount_group:
        raise UnsupportedCapability(
            "volume_mount_group is refused: ext4 and xfs have no mount option for it; use fsGroup with fsGroupPolicy File"
        )
    return Capability("mount", mode, message.mount.fs_type, tuple(message.mount.mount_flags))


def one_capability(request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest) -> Capability:
    """The capability of a call that needs exactly one."""
    if not request.HasField("volume_capability"):
        raise InvalidRequest("volume_capability is missing: say how the volume is to be used (mount or block)")
    return capability(request.volume_capability)


def capabilities(messages: Iterable[csi_pb2.VolumeCapability]) -> tuple[Capability, ...]:
    """All capabilities of a request, in its order."""
    return tuple(capability(message) for message in messages)


def capacity_capabilities(messages: Iterable[csi_pb2.VolumeCapability]) -> tuple[Capability, ...]:
    """Those of a GetCapacity: csi-provisioner always sends one with mode UNKNOWN there, which then means not said."""
    capabilities = []
    for message in messages:
        if message.WhichOneof("access_type") is None:
            continue
        if message.access_mode.mode == _Modes.UNKNOWN:
            copy = csi_pb2.VolumeCapability()
            copy.CopyFrom(message)
            copy.access_mode.mode = _Modes.SINGLE_NODE_WRITER
            message = copy  # noqa: PLW2901
        capabilities.append(capability(message))
    return tuple(capabilities)


def mode_name(number: int) -> str:
    """The name of an access mode, or its number where this version of the protocol has none."""
    value = _Modes.Mode.DESCRIPTOR.values_by_number.get(number)
    return value.name if value else str(number)


def size_range(message: csi_pb2.CapacityRange) -> SizeRange:
    """A capacity range; an absent one is empty."""
    return SizeRange(message.required_bytes, message.limit_bytes)


def source(request: csi_pb2.CreateVolumeRequest) -> Source | None:
    """What a new volume starts from."""
    if not request.HasField("volume_content_source"):
        return None
    message = request.volume_content_source
    kind = message.WhichOneof("type")
    if kind == "snapshot":
        return Source("snapshot", message.snapshot.snapshot_id)
    if kind == "volume":
        return Source("volume", message.volume.volume_id)
    raise InvalidRequest("volume_content_source names no source: name a snapshot or a volume, or leave it out")


def owners(message: csi_pb2.TopologyRequirement) -> list[str]:
    """The owners that a requirement names, each once; empty where it names no place at all.

    A place without our key stands for itself as text: it is not empty, and no owner can be called so.
    """
    places = (owner(place) for place in (*message.requisite, *message.preferred) if place.segments)
    return list(dict.fromkeys(places))


def owner(message: csi_pb2.Topology) -> str:
    """The owner that a place names, or a text that no owner has."""
    if TOPOLOGY_KEY in message.segments:
        return message.segments[TOPOLOGY_KEY]
    return ", ".join(f"{key}={value}" for key, value in sorted(message.segments.items()))


def topology(owner_name: str) -> csi_pb2.Topology:
    """The place of an owner."""
    return csi_pb2.Topology(segments={TOPOLOGY_KEY: owner_name})


def timestamp(nanoseconds: int) -> Timestamp:
    """A moment in Unix nanoseconds, exactly."""
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


def volume(item: Volume) -> csi_pb2.Volume:
    """A volume from its record alone, so that every call about it says the same. The context stays empty for good."""
    return csi_pb2.Volume(
        volume_id=str(item.id),
        capacity_bytes=item.size,
        content_source=_content_source(item.request.source),
        accessible_topology=[] if item.id.owner == ANY_OWNER else [topology(item.id.owner)],
    )


def snapshot(item: Snapshot, granule: int = BLOCK) -> csi_pb2.Snapshot:
    """A snapshot: its moment is when it was taken, and it is ready since then.

    Its size here is the smallest request that may restore it, so that a claim as it was written can be: a claim of 10G has an
    image of 10000003072 bytes. `granule`: what sizes are multiples of in its pool.
    """
    return csi_pb2.Snapshot(
        snapshot_id=str(item.id),
        source_volume_id=item.source_id,
        size_bytes=least_request(item.requested, item.size, granule),
        creation_time=timestamp(item.created),
        ready_to_use=True,
        group_snapshot_id=group_id(item),
    )


def group(item: GroupSnapshot, granule: int = BLOCK) -> csi_pb2.VolumeGroupSnapshot:
    """A group with all its members; `granule` as of a snapshot."""
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=str(item.id),
        snapshots=[snapshot(member, granule) for member in item.members],
        creation_time=timestamp(item.created),
        ready_to_use=True,
    )


def group_id(item: Snapshot) -> str:
    """The full id of a member's group; empty for a snapshot of its own."""
    return str(item.id.pool_ref.object_id(item.group)) if item.group else ""


def _content_source(item: Source | None) -> csi_pb2.VolumeContentSource | None:
    if item is None:
        return None
    if item.kind == "snapshot":
        return csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=item.id))
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=item.id))

"""Records as they lie in a pool: JSON with a schema number. The size of an image is its file's, never the record's.

A new key is optional: `fields.text("key", absent=...)` below reads what an older driver wrote, and the key goes into the
contract (tests/upgrade/contract.yaml) and the format's page. Keys are never renamed, and what is not known is kept.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from csi_driver.domain.errors import Damaged
from csi_driver.domain.fields import Fields
from csi_driver.domain.ids import ObjectId, parse
from csi_driver.domain.model import (
    AccessMode,
    Capability,
    CompletedRollback,
    Condition,
    GroupSnapshot,
    Hold,
    SizeRange,
    Snapshot,
    Source,
    Volume,
    VolumeRequest,
)
from csi_driver.domain.schema import dump, load

_ACCESS: tuple[Literal["mount", "block"], ...] = ("mount", "block")
_STATES: tuple[Literal["mended", "damaged"], ...] = ("mended", "damaged")
_SOURCES: tuple[Literal["snapshot", "volume"], ...] = ("snapshot", "volume")


def dump_volume(volume: Volume) -> bytes:
    """The record of a volume, as bytes to be written."""
    request = volume.request
    return dump(
        {
            "kind": "volume",
            "id": str(volume.id),
            "name": volume.name,
            "uid": volume.uid,
            "created": volume.created,
            "format": volume.format,
            "thick": volume.thick,
            "source_uid": volume.source_uid,
            "made_from": volume.made_from,
            "request": {
                "required_bytes": request.range.required,
                "limit_bytes": request.range.limit,
                "capabilities": [
                    {"access": c.access, "mode": c.mode.value, "fs_type": c.fs_type, "mount_flags": list(c.mount_flags)}
                    | c.unknown
                    for c in request.capabilities
                ],
                "parameters": request.parameters,
                "labels": request.labels,
                "source": _source_fields(request.source) if request.source else None,
            }
            | request.unknown,
            "rollbacks": [
                {"name": r.name, "snapshot": r.snapshot, "at": r.at, "safety": r.safety} | r.unknown
                for r in volume.rollbacks
            ],
            "hold": _hold_fields(volume.hold) if volume.hold else None,
            **_requested_field(volume.requested),
        }
        | ({"condition": _condition_fields(volume.condition)} if volume.condition else {})
        | ({"label": volume.label} if volume.label else {})
        | volume.unknown
    )


def load_volume(data: bytes, size: int) -> Volume:
    """Read a volume's record; `size` is the image's, in bytes. Raises Damaged for anything else."""
    fields = load(data, "volume")
    name, hold = fields.text("name"), fields.part_or_none("hold")
    return Volume(
        id=_id(fields),
        name=name,
        uid=fields.text("uid"),
        created=fields.number("created"),
        size=size,
        format=fields.text("format"),
        thick=fields.flag("thick"),
        source_uid=fields.text("source_uid"),
        made_from=fields.text("made_from"),
        request=_request(fields.part("request"), name),
        rollbacks=tuple(map(_rolled, fields.parts("rollbacks"))),
        hold=Hold(hold.text("holder"), hold.number("expires"), hold.number("since"), hold.unknown) if hold else None,
        requested=_requested(fields),
        condition=_condition(fields.part_or_none("condition", may_lack=True)),
        label=fields.text("label", absent=""),
        unknown=fields.unknown,
    )


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """The record of a snapshot, as bytes to be written."""
    return dump({"kind": "snapshot"} | _snapshot_fields(snapshot))


def load_snapshot(data: bytes, size: int) -> Snapshot:
    """Read a snapshot's record; `size` is the image's, in bytes. Raises Damaged for anything else."""
    return _snapshot(load(data, "snapshot"), lambda _: size)


def dump_group(group: GroupSnapshot) -> bytes:
    """The record of a group with the records of its members, as bytes to be written."""
    return dump(
        {
            "kind": "group",
            "id": str(group.id),
            "name": group.name,
            "uid": group.uid,
            "created": group.created,
            "source_ids": list(group.source_ids),
            "parameters": group.parameters,
            "labels": group.labels,
            "members": [_snapshot_fields(member) for member in group.members],
        }
        | group.unknown
    )


def load_group(data: bytes, sizes: Mapping[str, int]) -> GroupSnapshot:
    """Read a group's record; `sizes` maps each member's hash to its image's bytes. Raises Damaged otherwise."""
    fields = load(data, "group")
    return GroupSnapshot(
        id=_id(fields),
        name=fields.text("name"),
        uid=fields.text("uid"),
        created=fields.number("created"),
        source_ids=fields.texts("source_ids"),
        parameters=fields.table("parameters"),
        labels=fields.table("labels"),
        members=tuple(_snapshot(member, partial(_size_of, sizes)) for member in fields.parts("members")),
        unknown=fields.unknown,
    )


def _source_fields(source: Source) -> dict[str, Any]:
    return {"kind": source.kind, "id": source.id} | source.unknown


def _hold_fields(hold: Hold) -> dict[str, Any]:
    return {"holder": hold.holder, "expires": hold.expires, "since": hold.since} | hold.unknown


def _condition_fields(condition: Condition) -> dict[str, Any]:
    return {
        "state": condition.state,
        "at": condition.at,
        "said": condition.said,
        "kept": condition.kept,
        "stamp": condition.stamp,
    } | condition.unknown


def _condition(fields: Fields | None) -> Condition | None:
    """Absent in a record of a volume that no check had anything to say about, and in all from before there were checks."""
    if fields is None:
        return None
    return Condition(
        fields.one_of("state", _STATES),
        fields.number("at"),
        fields.text("said"),
        fields.text("kept"),
        fields.text("stamp"),
        fields.unknown,
    )


def _snapshot_fields(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": str(snapshot.id),
        "name": snapshot.name,
        "uid": snapshot.uid,
        "created": snapshot.created,
        "source_id": snapshot.source_id,
        "source_uid": snapshot.source_uid,
        "format": snapshot.format,
        "thick": snapshot.thick,
        "parameters": snapshot.parameters,
        "labels": snapshot.labels,
        "group": snapshot.group,
        **_requested_field(snapshot.requested),
        **({"condition": snapshot.condition} if snapshot.condition else {}),
    } | snapshot.unknown


def _requested_field(requested: int) -> dict[str, int]:
    """Left out where the size says it, as in every record from before."""
    return {"requested_bytes": requested} if requested else {}


def _requested(fields: Fields) -> int:
    requested = fields.number("requested_bytes", absent=0)
    if requested < 0:
        raise Damaged(f"a record's requested_bytes is {requested}, below 0")
    return requested


def _request(fields: Fields, name: str) -> VolumeRequest:
    source = fields.part_or_none("source")
    return VolumeRequest(
        name=name,
        range=SizeRange(fields.number("required_bytes"), fields.number("limit_bytes")),
        capabilities=tuple(map(_capability, fields.parts("capabilities"))),
        parameters=fields.table("parameters"),
        labels=fields.table("labels"),
        source=Source(source.one_of("kind", _SOURCES), source.text("id"), source.unknown) if source else None,
        unknown=fields.unknown,
    )


def _capability(fields: Fields) -> Capability:
    return Capability(
        fields.one_of("access", _ACCESS),
        fields.one_of("mode", AccessMode),
        fields.text("fs_type"),
        fields.texts("mount_flags"),
        fields.unknown,
    )


def _rolled(fields: Fields) -> CompletedRollback:
    name, snapshot = fields.text("name"), fields.text("snapshot")
    return CompletedRollback(name, snapshot, fields.number("at"), fields.text("safety"), fields.unknown)


def _size_of(sizes: Mapping[str, int], member: ObjectId) -> int:
    if member.hash not in sizes:
        raise Damaged(f"a group's record names the member {member}, and there is no image of it")
    return sizes[member.hash]


def _snapshot(fields: Fields, size_of: Callable[[ObjectId], int]) -> Snapshot:
    identity = _id(fields)
    return Snapshot(
        id=identity,
        name=fields.text("name"),
        uid=fields.text("uid"),
        created=fields.number("created"),
        size=size_of(identity),
        source_id=fields.text("source_id"),
        source_uid=fields.text("source_uid"),
        format=fields.text("format"),
        thick=fields.flag("thick"),
        parameters=fields.table("parameters"),
        labels=fields.table("labels"),
        group=fields.text("group"),
        requested=_requested(fields),
        condition=fields.text("condition", absent=""),
        unknown=fields.unknown,
    )


def _id(fields: Fields) -> ObjectId:
    text = fields.text("id")
    parsed = parse(text)
    if parsed is None:
        raise Damaged(f"a record holds {text!r} where an id must stand")
    return parsed

"""Records as they lie in a pool: JSON with a schema number. The size of an image is its file's, never the record's."""

import json
from typing import Any

from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import ObjectId, parse
from csi_driver.domain.model import (
    Capability,
    Condition,
    Group,
    Hold,
    Mode,
    Rolled,
    SizeRange,
    Snapshot,
    Source,
    Volume,
    VolumeRequest,
)

SCHEMA = 1
"""Raised when a record changes in a way that an older driver must not read."""


def _id(text: str) -> ObjectId:
    parsed = parse(text)
    if parsed is None:
        raise Damaged(f"a record holds {text!r} where an id must stand")
    return parsed


def dump_volume(volume: Volume) -> bytes:
    """The record of a volume, as bytes to be written."""
    request = volume.request
    return _dump(
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
                    for c in request.capabilities
                ],
                "parameters": request.parameters,
                "labels": request.labels,
                "source": {"kind": request.source.kind, "id": request.source.id} if request.source else None,
            },
            "rollbacks": [
                {"name": r.name, "snapshot": r.snapshot, "at": r.at, "safety": r.safety} for r in volume.rollbacks
            ],
            "hold": _hold_fields(volume.hold) if volume.hold else None,
        }
        | ({"condition": _condition_fields(volume.condition)} if volume.condition else {})
    )


def load_volume(data: bytes, size: int) -> Volume:
    """Read a volume's record; `size` is the image's, in bytes. Raises Damaged for anything else."""
    raw = _load(data, "volume")
    try:
        request = raw["request"]
        source = request["source"]
        return Volume(
            id=_id(raw["id"]),
            name=raw["name"],
            uid=raw["uid"],
            created=raw["created"],
            size=size,
            format=raw["format"],
            thick=raw["thick"],
            source_uid=raw["source_uid"],
            made_from=raw["made_from"],
            request=VolumeRequest(
                name=raw["name"],
                range=SizeRange(request["required_bytes"], request["limit_bytes"]),
                capabilities=tuple(
                    Capability(c["access"], Mode(c["mode"]), c["fs_type"], tuple(c["mount_flags"]))
                    for c in request["capabilities"]
                ),
                parameters=request["parameters"],
                labels=request["labels"],
                source=Source(source["kind"], source["id"]) if source else None,
            ),
            rollbacks=tuple(Rolled(r["name"], r["snapshot"], r["at"], r["safety"]) for r in raw["rollbacks"]),
            hold=Hold(raw["hold"]["holder"], raw["hold"]["expires"], raw["hold"]["since"]) if raw["hold"] else None,
            condition=_condition(raw.get("condition")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"a volume's record cannot be read: {error!r}") from error


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """The record of a snapshot, as bytes to be written."""
    return _dump({"kind": "snapshot"} | _snapshot_fields(snapshot))


def load_snapshot(data: bytes, size: int) -> Snapshot:
    """Read a snapshot's record; `size` is the image's, in bytes. Raises Damaged for anything else."""
    return _snapshot(_load(data, "snapshot"), size)


def dump_group(group: Group) -> bytes:
    """The record of a group with the records of its members, as bytes to be written."""
    return _dump(
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
    )


def load_group(data: bytes, sizes: dict[str, int]) -> Group:
    """Read a group's record; `sizes` maps each member's hash to its image's bytes. Raises Damaged otherwise."""
    raw = _load(data, "group")
    try:
        return Group(
            id=_id(raw["id"]),
            name=raw["name"],
            uid=raw["uid"],
            created=raw["created"],
            source_ids=tuple(raw["source_ids"]),
            parameters=raw["parameters"],
            labels=raw["labels"],
            members=tuple(_snapshot(m, sizes[_id(m["id"]).hash]) for m in raw["members"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"a group's record cannot be read: {error!r}") from error


def _hold_fields(hold: Hold) -> dict[str, Any]:
    return {"holder": hold.holder, "expires": hold.expires, "since": hold.since}


def _condition_fields(condition: Condition) -> dict[str, Any]:
    return {
        "state": condition.state,
        "at": condition.at,
        "said": condition.said,
        "kept": condition.kept,
        "stamp": condition.stamp,
    }


def _condition(raw: dict[str, Any] | None) -> Condition | None:
    """Absent in a record of a volume that no check had anything to say about, and in all from before there were checks."""
    if raw is None:
        return None
    return Condition(raw["state"], raw["at"], raw["said"], raw["kept"], raw["stamp"])


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
    } | ({"condition": snapshot.condition} if snapshot.condition else {})


def _snapshot(raw: dict[str, Any], size: int) -> Snapshot:
    try:
        return Snapshot(
            id=_id(raw["id"]),
            name=raw["name"],
            uid=raw["uid"],
            created=raw["created"],
            size=size,
            source_id=raw["source_id"],
            source_uid=raw["source_uid"],
            format=raw["format"],
            thick=raw["thick"],
            parameters=raw["parameters"],
            labels=raw["labels"],
            group=raw["group"],
            condition=raw.get("condition", ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"a snapshot's record cannot be read: {error!r}") from error


def _dump(raw: dict[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA} | raw, separators=(",", ":"), ensure_ascii=False).encode()


def _load(data: bytes, kind: str) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise Damaged(f"a record is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise Damaged(f"a record of another kind lies where a {kind}'s must")
    if raw.get("schema") != SCHEMA:
        raise Damaged(f"a {kind}'s record has schema {raw.get('schema')!r}; this driver reads {SCHEMA}")
    return raw

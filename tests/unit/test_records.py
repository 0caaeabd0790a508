"""Records: what is written is what is read, and whatever else lies there is Damaged, never served and never a crash."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import ObjectId
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
from csi_driver.domain.records import (
    SCHEMA,
    dump_group,
    dump_snapshot,
    dump_volume,
    load_group,
    load_snapshot,
    load_volume,
)

TEXT = st.text(max_size=12)
HASH = st.text("0123456789abcdef", min_size=32, max_size=32)
ID = st.builds(ObjectId, st.sampled_from(["node-1", "*"]), st.sampled_from(["a", "pool-2"]), HASH)
NUMBER = st.integers(0, 2**63 - 1)
MAP = st.dictionaries(TEXT, TEXT, max_size=3)
FORMAT = st.sampled_from(["blank", "raw", "xfs", "formatting(ext4)"])
CAPABILITY = st.builds(
    Capability,
    st.sampled_from(["mount", "block"]),
    st.sampled_from(Mode),
    st.sampled_from(["", "ext4", "xfs"]),
    st.lists(TEXT, max_size=2).map(tuple),
)
ROLLED = st.builds(Rolled, TEXT, TEXT, NUMBER, TEXT)
HOLD = st.none() | st.builds(Hold, TEXT, NUMBER, NUMBER)
CONDITION = st.none() | st.builds(Condition, st.sampled_from(["mended", "damaged"]), NUMBER, TEXT, TEXT, TEXT)
SOURCE = st.none() | st.builds(Source, st.sampled_from(["snapshot", "volume"]), TEXT)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    name = draw(TEXT)
    return Volume(
        id=draw(ID),
        name=name,
        uid=draw(TEXT),
        created=draw(NUMBER),
        size=draw(NUMBER),
        request=VolumeRequest(
            name,
            SizeRange(draw(NUMBER), draw(NUMBER)),
            tuple(draw(st.lists(CAPABILITY, max_size=3))),
            draw(MAP),
            draw(MAP),
            draw(SOURCE),
        ),
        format=draw(FORMAT),
        thick=draw(st.booleans()),
        source_uid=draw(TEXT),
        rollbacks=tuple(draw(st.lists(ROLLED, max_size=3))),
        hold=draw(HOLD),
        condition=draw(CONDITION),
    )


SNAPSHOT = st.builds(
    Snapshot,
    id=ID,
    name=TEXT,
    uid=TEXT,
    created=NUMBER,
    size=NUMBER,
    source_id=TEXT,
    source_uid=TEXT,
    format=FORMAT,
    thick=st.booleans(),
    parameters=MAP,
    labels=MAP,
    group=st.just("") | HASH,
    condition=TEXT,
)
GROUP = st.builds(
    Group,
    id=ID,
    name=TEXT,
    uid=TEXT,
    created=NUMBER,
    source_ids=st.lists(TEXT, max_size=3).map(tuple),
    members=st.lists(SNAPSHOT, max_size=3, unique_by=lambda s: s.id.hash).map(tuple),
    parameters=MAP,
    labels=MAP,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(volumes())
def test_volumes_come_back(volume: Volume) -> None:
    record = dump_volume(volume)
    assert load_volume(record, volume.size) == volume
    assert dump_volume(load_volume(record, volume.size)) == record
    assert load_volume(record, 7).size == 7, "the size is the image's, not the record's"


@given(SNAPSHOT)
def test_snapshots_come_back(snapshot: Snapshot) -> None:
    record = dump_snapshot(snapshot)
    assert load_snapshot(record, snapshot.size) == snapshot
    assert dump_snapshot(load_snapshot(record, snapshot.size)) == record


@given(GROUP)
def test_groups_come_back(group: Group) -> None:
    record = dump_group(group)
    sizes = {m.id.hash: m.size for m in group.members}
    assert load_group(record, sizes) == group
    assert dump_group(load_group(record, sizes)) == record


@given(GROUP.filter(lambda group: group.members))
def test_a_group_without_an_image_is_damaged(group: Group) -> None:
    with pytest.raises(Damaged):
        load_group(dump_group(group), {})


@given(st.binary(max_size=64))
def test_bytes_that_are_no_record(data: bytes) -> None:
    for load in (load_volume, load_snapshot):
        with pytest.raises(Damaged):
            load(data, 0)
    with pytest.raises(Damaged):
        load_group(data, {})


def test_records_of_another_kind_or_schema() -> None:
    snapshot = Snapshot(ObjectId("n", "p", "0" * 32), "s", "u", 1, 0, "v", "u", "raw")
    with pytest.raises(Damaged, match="kind"):
        load_volume(dump_snapshot(snapshot), 0)
    raw = json.loads(dump_snapshot(snapshot))
    assert raw["schema"] == SCHEMA
    for other in (SCHEMA + 1, 0, None, "1"):
        with pytest.raises(Damaged, match="schema"):
            load_snapshot(json.dumps(raw | {"schema": other}).encode(), 0)


def _paths(raw: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in inner:
        found += _paths(value, (*path, key))
    return found


def _changed(raw: Any, path: tuple[Any, ...], change: Any) -> Any:
    copy = json.loads(json.dumps(raw))
    at = copy
    for key in path[:-1]:
        at = at[key]
    if change is None:
        del at[path[-1]]
    else:
        at[path[-1]] = change[0]
    return copy


@given(st.data())
def test_a_record_that_was_tampered_with_is_read_or_damaged(data: st.DataObject) -> None:
    """Whatever is replaced or taken out of a record: an object, or Damaged; no other error."""
    kind = data.draw(st.sampled_from(["volume", "snapshot", "group"]))
    if kind == "volume":
        record = dump_volume(data.draw(volumes()))
    elif kind == "snapshot":
        record = dump_snapshot(data.draw(SNAPSHOT))
    else:
        record = dump_group(data.draw(GROUP))
    raw = json.loads(record)
    path = data.draw(st.sampled_from(_paths(raw)))
    change = data.draw(st.none() | st.tuples(JSON))
    tampered = json.dumps(_changed(raw, path, change)).encode()
    sizes = {m["id"].rsplit(":", 1)[1]: 1 for m in raw.get("members", [])}
    try:
        {"volume": load_volume, "snapshot": load_snapshot}.get(kind, lambda b, _: load_group(b, sizes))(tampered, 1)
    except Damaged:
        return


def test_every_field_of_a_record_is_needed() -> None:
    volume = Volume(
        ObjectId("n", "p", "0" * 32),
        "v",
        "u",
        1,
        0,
        VolumeRequest("v", SizeRange(1, 2), (Capability("mount", Mode.READER, "xfs", ("ro",)),), {"pool": "p"}),
        rollbacks=(Rolled("r", "s", 1, "t"),),
        hold=Hold("h", 2, 1),
    )
    raw = json.loads(dump_volume(volume))
    for path in _paths(raw):
        if path[:2] != ("request", "parameters") and not isinstance(path[-1], int):
            with pytest.raises(Damaged):
                load_volume(json.dumps(_changed(raw, path, None)).encode(), 0)


def test_a_condition_is_no_part_of_a_record_without_one() -> None:
    """A driver from before there were conditions writes none, and reads what has none."""
    request = VolumeRequest("v", SizeRange(1, 2), (Capability("mount", Mode.WRITER, "ext4"),))
    volume = Volume(ObjectId("n", "p", "0" * 32), "v", "u", 1, 0, request)
    snapshot = Snapshot(ObjectId("n", "p", "0" * 32), "s", "u", 1, 0, "v", "u", "ext4")
    assert "condition" not in json.loads(dump_volume(volume))
    assert "condition" not in json.loads(dump_snapshot(snapshot))
    assert load_volume(dump_volume(volume), 0).condition is None
    assert load_snapshot(dump_snapshot(snapshot), 0).condition == ""

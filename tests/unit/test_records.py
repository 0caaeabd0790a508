"""Records: what is written is what is read, and whatever else lies there is Damaged, never served and never a crash."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.domain import schema
from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import ObjectId
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
from csi_driver.domain.records import (
    dump_group,
    dump_snapshot,
    dump_volume,
    load_group,
    load_snapshot,
    load_volume,
)
from csi_driver.domain.schema import SCHEMA

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "upgrade" / "contract.yaml").read_text())
LATER = {key for part in CONTRACT["records"].values() if isinstance(part, dict) for key in part.get("later", [])}

TEXT = st.text(max_size=12)
HASH = st.text("0123456789abcdef", min_size=32, max_size=32)
ID = st.builds(ObjectId, st.sampled_from(["node-1", "*"]), st.sampled_from(["a", "pool-2"]), HASH)
NUMBER = st.integers(0, 2**63 - 1)
MAP = st.dictionaries(TEXT, TEXT, max_size=3)
FORMAT = st.sampled_from(["blank", "raw", "xfs", "formatting(ext4)"])
CAPABILITY = st.builds(
    Capability,
    st.sampled_from(["mount", "block"]),
    st.sampled_from(AccessMode),
    st.sampled_from(["", "ext4", "xfs"]),
    st.lists(TEXT, max_size=2).map(tuple),
)
ROLLED = st.builds(CompletedRollback, TEXT, TEXT, NUMBER, TEXT)
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
        requested=draw(NUMBER),
        condition=draw(CONDITION),
        label=draw(TEXT),
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
    requested=NUMBER,
    condition=TEXT,
)
GROUP = st.builds(
    GroupSnapshot,
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
def test_groups_come_back(group: GroupSnapshot) -> None:
    record = dump_group(group)
    sizes = {m.id.hash: m.size for m in group.members}
    assert load_group(record, sizes) == group
    assert dump_group(load_group(record, sizes)) == record


@given(GROUP.filter(lambda group: group.members))
def test_a_group_without_an_image_is_damaged(group: GroupSnapshot) -> None:
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


def test_what_was_asked_for_is_recorded_where_the_size_does_not_say_it() -> None:
    """Records from before have no such key: the size is what was asked for. Nor has a record that needs none."""
    snapshot = Snapshot(ObjectId("n", "p", "0" * 32), "s", "u", 1, 500_002_816, "v", "u", "ext4")
    assert "requested_bytes" not in json.loads(dump_snapshot(snapshot))
    raw = json.loads(dump_snapshot(replace(snapshot, requested=500_000_000)))
    assert raw.pop("requested_bytes") == 500_000_000
    assert load_snapshot(json.dumps(raw).encode(), snapshot.size) == snapshot
    for wrong in (-1, "1", None, 1.5, True, [1]):
        with pytest.raises(Damaged, match="requested_bytes"):
            load_snapshot(json.dumps(raw | {"requested_bytes": wrong}).encode(), snapshot.size)


def _objects(raw: Any) -> list[dict[str, Any]]:
    """Every object of a record whose keys are ours; those of parameters and labels are the user's."""
    if isinstance(raw, list):
        return [found for inner in raw for found in _objects(inner)]
    if not isinstance(raw, dict):
        return []
    inner = [value for key, value in raw.items() if key not in {"parameters", "labels"}]
    return [raw, *_objects(inner)]


@given(st.data())
def test_what_another_version_noted_is_kept(data: st.DataObject) -> None:
    """Anywhere in a record, whatever it is: read and written again it stands there still."""
    volume, snapshot, group = data.draw(volumes()), data.draw(SNAPSHOT), data.draw(GROUP)
    later = data.draw(JSON)
    sizes = {m.id.hash: m.size for m in group.members}
    for record, again in (
        (dump_volume(volume), lambda written: dump_volume(load_volume(written, volume.size))),
        (dump_snapshot(snapshot), lambda written: dump_snapshot(load_snapshot(written, snapshot.size))),
        (dump_group(group), lambda written: dump_group(load_group(written, sizes))),
    ):
        raw = json.loads(record)
        for place in _objects(raw):
            place["noted later"] = later
        assert json.loads(again(json.dumps(raw).encode())) == raw


def test_what_another_version_noted_makes_no_other_request_of_it() -> None:
    """A creation that is repeated is compared with the one in the record, which a newer version may have written."""
    raw = json.loads(dump_volume(VOLUME))
    for place in _objects(raw):
        place["noted later"] = 1
    read = load_volume(json.dumps(raw).encode(), 0)
    assert read == VOLUME
    assert set(read.request.capabilities) == set(VOLUME.request.capabilities)


def test_half_a_character_in_a_later_note_can_be_written_again() -> None:
    record = dump_volume(VOLUME)[:-1] + rb',"later":"\ud800"}'
    assert json.loads(dump_volume(load_volume(record, 0)))["later"] == "\ud800"


def test_a_schema_is_reached_step_by_step_or_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(kind: str, raw: dict[str, Any]) -> dict[str, Any]:
        assert kind == "snapshot"
        return {key: value for key, value in raw.items() if key != "old"} | {"uid": raw["old"]}

    raw = json.loads(dump_snapshot(Snapshot(ObjectId("n", "p", "0" * 32), "s", "u", 1, 0, "v", "u", "raw")))
    raw["old"] = raw.pop("uid")
    record = json.dumps(raw).encode()
    monkeypatch.setattr(schema, "SCHEMA", 3)
    with pytest.raises(Damaged, match="has schema 1, this driver reads 3 and has no step from 1 to 2: use"):
        load_snapshot(record, 0)
    monkeypatch.setitem(schema.STEPS, 1, renamed)
    with pytest.raises(Damaged, match="has schema 1, this driver reads 3 and has no step from 2 to 3: use"):
        load_snapshot(record, 0)
    monkeypatch.setitem(schema.STEPS, 2, lambda _, raw: raw)
    read = load_snapshot(record, 0)
    assert (read.uid, read.unknown) == ("u", {})
    assert json.loads(dump_snapshot(read))["schema"] == 3


def test_a_newer_schema_names_both() -> None:
    newer = json.loads(dump_volume(VOLUME)) | {"schema": 2}
    with pytest.raises(Damaged, match=r"has schema 2, and this driver reads 1: a newer driver wrote it"):
        load_volume(json.dumps(newer).encode(), 0)


VOLUME = Volume(
    ObjectId("n", "p", "0" * 32),
    "v",
    "u",
    1,
    0,
    VolumeRequest("v", SizeRange(1, 2), (Capability("mount", AccessMode.READER, "xfs", ("ro",)),), {"pool": "p"}),
    rollbacks=(CompletedRollback("r", "s", 1, "t"),),
    hold=Hold("h", 2, 1),
)


def test_every_field_of_the_first_records_is_needed() -> None:
    """What came later may lack: tests/upgrade/test_contract.py."""
    raw = json.loads(dump_volume(VOLUME))
    for path in _paths(raw):
        if path[:2] != ("request", "parameters") and not isinstance(path[-1], int) and not LATER.intersection(path):
            with pytest.raises(Damaged):
                load_volume(json.dumps(_changed(raw, path, None)).encode(), 0)


def test_a_condition_is_no_part_of_a_record_without_one() -> None:
    """A driver from before there were conditions writes none, and reads what has none."""
    request = VolumeRequest("v", SizeRange(1, 2), (Capability("mount", AccessMode.WRITER, "ext4"),))
    volume = Volume(ObjectId("n", "p", "0" * 32), "v", "u", 1, 0, request)
    snapshot = Snapshot(ObjectId("n", "p", "0" * 32), "s", "u", 1, 0, "v", "u", "ext4")
    assert "condition" not in json.loads(dump_volume(volume))
    assert "condition" not in json.loads(dump_snapshot(snapshot))
    assert load_volume(dump_volume(volume), 0).condition is None
    assert load_snapshot(dump_snapshot(snapshot), 0).condition == ""

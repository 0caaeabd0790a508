"""What is fixed for good, contract.yaml, is what code and definitions have: nothing is renamed, or new unseen."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from support.gauge_values import EVERYTHING

from csi_driver import DRIVER_NAME
from csi_driver._pb import tidemark_pb2
from csi_driver.agent.metrics import AgentMetrics
from csi_driver.agent.settings import DEFAULT_POOL, DEFAULT_RUNTIME_DIRECTORY
from csi_driver.backends.base import SnapshotTimings
from csi_driver.backends.lvm import names as lvm_names
from csi_driver.backends.lvm import opening as lvm_opening
from csi_driver.backends.reflink import checks, pool_lock, pool_reader
from csi_driver.backends.reflink.layout import IMAGE, RECORD, Layout
from csi_driver.cli import objects, snapshot_mounts
from csi_driver.cli.transfer import hidden_names
from csi_driver.controller.metrics import ControllerMetrics
from csi_driver.domain import certificates, fields, ids, page_tokens, schema
from csi_driver.domain.errors import Damaged
from csi_driver.domain.model import (
    BLANK,
    RAW,
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
    formatting,
)
from csi_driver.domain.records import (
    dump_group,
    dump_snapshot,
    dump_volume,
    load_group,
    load_snapshot,
    load_volume,
)
from csi_driver.domain.requests import FILE_SYSTEMS
from csi_driver.domain.routing import TOPOLOGY_KEY
from csi_driver.host.freeze import journal
from csi_driver.host.fs import files, fsck
from csi_driver.host.lvm import tags as lvm_tags
from csi_driver.kube import resources
from csi_driver.operator.agents.discovery import AGENT_PORT
from csi_driver.operator.certificates import ca_secret
from csi_driver.operator.certificates.ca import new_ca
from csi_driver.operator.installation import Installation
from csi_driver.operator.rollback import resource as rollback_resource
from csi_driver.operator.rollback.safety_snapshots import safety_name
from csi_driver.operator.schedule import resource as schedule_spec
from csi_driver.operator.schedule import status as schedule_status
from csi_driver.operator.schedule.naming import snapshot_name
from csi_driver.rpc import tls
from csi_driver.service import rollbacks

TREE = Path(__file__).resolve().parent.parent.parent
CHART = TREE / "charts" / "tidemark"
CONTRACT: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("contract.yaml").read_text())
RECORDS: dict[str, Any] = CONTRACT["records"]
NEW = "a new name goes into tests/upgrade/contract.yaml, and is optional where it is read; an old one stays as it is"


# ---- pools

DIGEST = "0123456789abcdef" * 2
ID = ids.ObjectId("n", "p", DIGEST)
SNAPSHOT = Snapshot(
    ID, "s", "u1", 1, 4096, "n:p:x", "u", "xfs", True, {}, {"l": "1"}, DIGEST, requested=4000, condition="c"
)
GROUP = GroupSnapshot(ID, "g", "u2", 1, ("n:p:x",), (SNAPSHOT,), {}, {"l": "1"})
VOLUME = Volume(
    ID,
    "v",
    "u",
    1,
    4096,
    VolumeRequest(
        "v",
        SizeRange(1, 2),
        (Capability("mount", AccessMode.WRITER, "xfs", ("ro",)),),
        {},
        {},
        Source("snapshot", "n:p:y"),
    ),
    format="xfs",
    rollbacks=(CompletedRollback("r", "n:p:s", 1, "n:p:t"),),
    hold=Hold("h", 2, 1),
    requested=4000,
    condition=Condition("damaged", 1, "a", "b", "c"),
    label="l",
)
"""Objects that have every part of a record."""


def parts() -> dict[str, dict[str, Any]]:
    """Each object of a record, by its name in the contract."""
    volume = json.loads(dump_volume(VOLUME))
    group = json.loads(dump_group(GROUP))
    return {
        "volume": volume,
        "request": volume["request"],
        "capability": volume["request"]["capabilities"][0],
        "source": volume["request"]["source"],
        "rollback": volume["rollbacks"][0],
        "hold": volume["hold"],
        "condition": volume["condition"],
        "snapshot": json.loads(dump_snapshot(SNAPSHOT)),
        "group": group,
    }


def test_ids_are_made_as_they_were() -> None:
    form = CONTRACT["ids"]["form"].format(owner="n", pool="p", hash=DIGEST)
    assert str(ids.ObjectId("n", "p", DIGEST)) == form
    assert ids.parse(form) == ids.ObjectId("n", "p", DIGEST)
    for kind in CONTRACT["ids"]["kinds"]:
        made = hashlib.sha256(f"{kind}\0pvc-1".encode()).hexdigest()[:32]
        assert ids.name_hash(kind, "pvc-1") == made
    assert ids.member_name("g", "n:p:x") == "g\0n:p:x"
    assert page_tokens.token_after(form) == CONTRACT["ids"]["page_token"].format(id=form)


def test_a_pool_lies_where_it_lay(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "p")
    shown, hidden = (layout.volumes, layout.snapshots, layout.groups), (layout.new, layout.trash, layout.freezes)
    assert [path.name for path in (*shown, *hidden, layout.checks, layout.kept)] == CONTRACT["pool"]["directories"]
    member = pool_reader.member_image(tmp_path, "{member hash}").name
    announced = Path(journal._path("", "any")).name.replace("any", "{any}")
    files = [layout.identity.name, layout.lock.name, IMAGE, RECORD, member, announced]
    assert files == CONTRACT["pool"]["files"]
    pool_lock._make(layout, "n")
    assert list(json.loads(layout.identity.read_bytes())) == CONTRACT["pool"]["pool.json"]
    assert CONTRACT["pool"]["format"] == pool_lock.FORMAT


def test_a_pool_of_logical_volumes_has_the_names_and_tags_that_it_had() -> None:
    fixed = CONTRACT["lvm"]
    assert fixed["format"] == lvm_opening.FORMAT
    for kind, name in fixed["names"].items():
        assert lvm_names.parse(name.format(hash=DIGEST, generation=7)) == lvm_names.LvName(kind, DIGEST, 7)
        assert str(lvm_names.LvName(kind, DIGEST, 7)) == name.format(hash=DIGEST, generation=7)
    for kind, letter in fixed["letters"].items():
        (tag,) = lvm_tags.to_tags(b"{}", kind, DIGEST, 7)
        packed = base64.urlsafe_b64decode(tag.partition("=")[2] + "==")
        assert zlib.decompress(packed) == b"{}"
        checksum = zlib.crc32(packed, zlib.crc32(f"{kind}.{DIGEST}.7".encode()))
        assert tag.partition("=")[0] == f"tm.{letter}.{DIGEST}.7.0-1.{checksum:08x}"
        assert lvm_tags.from_tags([tag]) == (kind, DIGEST, 7, b"{}")
    tag = lvm_tags.pool_tag(dict.fromkeys(CONTRACT["pool"]["pool.json"], "x"))
    assert tag.startswith(fixed["pool_tag"])
    assert json.loads(base64.urlsafe_b64decode(tag.partition("=")[2] + "==")).keys() == set(
        CONTRACT["pool"]["pool.json"]
    )
    assert (fixed["draft"], fixed["check"]) == (lvm_tags.DRAFT, lvm_names.CHECK)
    assert lvm_names.member_tag(DIGEST, 7) == fixed["member"].replace("{hash of the group}", DIGEST).format(
        generation=7
    )
    assert fixed["kept"].partition("{")[0] == lvm_names.KEPT


@pytest.mark.parametrize("part", [name for name in RECORDS if name not in {"schema", "values"}])
def test_records_have_the_keys_that_they_had(part: str) -> None:
    written, first, later = set(parts()[part]), set(RECORDS[part]["first"]), set(RECORDS[part]["later"])
    assert first <= written, NEW
    assert written <= first | later, NEW
    assert not first & later


def test_a_group_has_the_records_of_its_members() -> None:
    (member,) = parts()["group"]["members"]
    assert set(member) == set(parts()["snapshot"]) - {"schema", "kind"}


def test_what_came_later_may_lack() -> None:
    """A record of the first version, made of the keys that the contract has for it, is read."""

    def first(part: str, raw: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in raw.items() if key in RECORDS[part]["first"]}

    found = parts()
    volume = first("volume", found["volume"])
    request = first("request", found["request"])
    request["capabilities"] = [first("capability", found["capability"])]
    request["source"] = first("source", found["source"])
    volume |= {"request": request, "hold": first("hold", found["hold"])}
    volume["rollbacks"] = [first("rollback", found["rollback"])]
    read = load_volume(json.dumps(volume).encode(), VOLUME.size)
    assert (read.id, read.uid, read.hold, read.rollbacks) == (VOLUME.id, VOLUME.uid, VOLUME.hold, VOLUME.rollbacks)
    assert load_snapshot(json.dumps(first("snapshot", found["snapshot"])).encode(), 4096).uid == SNAPSHOT.uid
    group = first("group", found["group"])
    group["members"] = [first("snapshot", member) for member in group["members"]]
    assert load_group(json.dumps(group).encode(), {DIGEST: 4096}).members[0].uid == SNAPSHOT.uid


def test_keys_with_a_fixed_set_of_values_hold_those() -> None:
    values = RECORDS["values"]
    assert [mode.value for mode in AccessMode] == values["mode"]
    formats = [BLANK, RAW, *FILE_SYSTEMS, *(formatting(name) for name in FILE_SYSTEMS)]
    assert formats == values["format"]
    for part, key, known in (
        (("request", "capabilities", 0), "access", values["access"]),
        (("request", "source"), "kind", values["source kind"]),
        (("condition",), "state", values["condition state"]),
    ):
        for value in (*known, "another"):
            raw = json.loads(dump_volume(VOLUME))
            at: Any = raw
            for step in part:
                at = at[step]
            at[key] = value
            if value in known:
                load_volume(json.dumps(raw).encode(), 4096)
            else:
                with pytest.raises(Damaged, match=value):
                    load_volume(json.dumps(raw).encode(), 4096)
    assert RECORDS["schema"] == schema.SCHEMA
    assert set(schema.STEPS) == set(range(1, schema.SCHEMA)), "every schema before this one has a step to the next"


def test_freezes_are_announced_as_they_were() -> None:
    facts = journal.entry_for("/p", 7, 1, (1, 2))
    known = CONTRACT["freeze"]["facts"]
    assert set(known["first"]) <= set(facts) <= {*known["first"], *known["later"]}, NEW
    first = {key: facts[key] for key in known["first"]}
    assert journal.of_boot([first], str(facts["boot"])) == [first]
    assert CONTRACT["freeze"]["schema"] == journal.SCHEMA
    assert set(journal.entry_for("/p", 7, 1, (1, 2), "loop1/3", "0" * 32, "LVM-x")) | {"in_pool"} == {
        *known["first"],
        *known["later"],
    }
    assert CONTRACT["freeze"]["node_local"].startswith(f"{DEFAULT_RUNTIME_DIRECTORY}/freezes/")


def test_a_suspended_device_is_recorded_so_that_the_version_before_reads_on() -> None:
    """That version knows mounts alone: a raw disk is one at no path, where it finds nothing to thaw."""
    raw = journal.entry_for("", 253, 6, identity="LVM-x", volume="0" * 32, dm_uuid="LVM-x")
    mounted = journal.entry_for("/p", 253, 7, identity="LVM-y", dm_uuid="LVM-y")
    assert journal.of_boot([raw, mounted], journal.boot_id()) == [raw, mounted]
    assert (type(raw["point"]), raw["point"]) == (str, "")
    assert journal.thaw_arguments([raw, mounted]) == {
        "mounts": [mounted],
        "devices": [{"uuid": "LVM-x", "major": 253, "minor": 6}, {"uuid": "LVM-y", "major": 253, "minor": 7}],
    }
    first = {key: value for key, value in mounted.items() if key != "dm_uuid"}
    assert journal.thaw_arguments([first]) == {"mounts": [first], "devices": []}
    with pytest.raises(ValueError, match="does not say of what it is"):
        journal.of_boot([raw | {"dm_uuid": 7}], journal.boot_id())


async def test_a_check_is_noted_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an empty image, with which e2fsck is done at once: how it ends is noted all the same."""
    known, image, layout = CONTRACT["check"], tmp_path / "image", Layout(tmp_path / "pool", "p")
    image.touch()
    layout.root.mkdir()
    layout.make_directories()
    monkeypatch.setattr(files, "reflink", lambda *_: None)  # which takes a pool on XFS

    async def at_once(call: Callable[..., Any], *arguments: object) -> Any:
        return call(*arguments)

    work = checks.ReflinkChecks(layout, lambda _: image, lambda *_: None, at_once, lambda: None)
    began = await work.begin(VOLUME, "why", 1781697600000000000)
    kept = known["kept"].format(hash=VOLUME.id.hash, nanoseconds=1781697600000000000)
    assert began.kept == f"{layout.kept.name}/{kept}"
    assert checks._KEPT.fullmatch(kept)
    (place,) = layout.checks.iterdir()
    while fsck.outcome(str(place)).result == "running":
        await asyncio.sleep(0.01)
    assert sorted(entry.name for entry in place.iterdir()) == sorted(known["files"])

    _has_the_keys(place / "job.json", known["job.json"], lambda: checks._read(place) is not None)
    _has_the_keys(place / "status.json", known["status.json"], lambda: fsck.outcome(str(place)).result != "interrupted")


def _has_the_keys(path: Path, known: dict[str, list[str]], is_read: Callable[[], bool]) -> None:
    """What was written has the keys of the contract, and is read with the first ones alone, and with more."""
    written = json.loads(path.read_text())
    assert set(known["first"]) <= set(written) <= {*known["first"], *known["later"]}, NEW
    first = {key: written[key] for key in known["first"]}
    for keys, enough in ((first, True), (first | {"of another version": 1}, True), ({}, False)):
        path.write_text(json.dumps(keys))
        assert is_read() is enough, keys


# ---- the wire


def test_our_own_messages_have_the_numbers_that_they_had() -> None:
    known = dict(CONTRACT["tidemark.v1"])
    service = tidemark_pb2.DESCRIPTOR.services_by_name["Tidemark"]
    assert [method.name for method in service.methods] == known.pop("Tidemark")
    assert dict(_messages()) == known, NEW


def _messages() -> Iterator[tuple[str, dict[str, Any]]]:
    for message in tidemark_pb2.DESCRIPTOR.message_types_by_name.values():
        yield from _message(message, message.name)


def _message(message: Descriptor, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield name, {field.name: _field(field) for field in message.fields}
    for nested in message.nested_types:
        yield from _message(nested, f"{name}.{nested.name}")
    for enum in message.enum_types:
        yield f"{name}.{enum.name}", {value.name: value.number for value in enum.values}


_SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_DOUBLE: "double",
}


def _field(field: FieldDescriptor) -> str:
    of = field.message_type or field.enum_type
    kind = of.full_name if of is not None else _SCALARS.get(field.type, str(field.type))
    return f"{field.number} {'repeated ' if field.is_repeated else ''}{kind}"


def test_peers_know_each_other_by_the_names_that_they_had() -> None:
    peers = CONTRACT["peers"]
    assert (peers["controller"], peers["agent"], peers["port"]["number"]) == (tls.CONTROLLER, tls.AGENT, AGENT_PORT)


# ---- the cluster


def test_labels_and_annotations_are_those_that_they_were() -> None:
    found = {key for path in _sources() for key in _KEY.findall(path.read_text())}
    assert found == set(CONTRACT["keys"]), NEW
    assert (CONTRACT["topology"], CONTRACT["driver"]) == (TOPOLOGY_KEY, DRIVER_NAME)


_KEY = re.compile(r"(?<![\w.-])((?:[a-z]+\.)*tidemark\.dev/[a-z0-9-]*)(?=[\"'`:\s])")


def _sources() -> Iterator[Path]:
    """Whatever may write a key: code and templates. Definitions speak of keys, and write none."""
    for path in (TREE / "csi_driver").rglob("*.py"):
        if "_pb" not in path.parts:
            yield path
    for path in (CHART / "templates").iterdir():
        yield path


def test_names_that_follow_from_others_follow_as_they_did() -> None:
    names = CONTRACT["names_of_snapshots"]
    assert snapshot_name(*names["snapshot"]["of"]) == names["snapshot"]["is"]
    assert safety_name(*names["safety"]["of"]) == names["safety"]["is"]
    clone = CONTRACT["names_of_volumes"]["snapshot_mount"]
    assert f"{snapshot_mounts.PREFIX}{clone['of']}" == clone["is"]
    hidden = CONTRACT["names_of_volumes"]["import"]
    assert hidden_names.hidden_name(hidden["of"]) == hidden["is"]
    pattern = CONTRACT["safety_snapshots_of_agents"]
    assert objects.SAFETY.pattern == pattern
    volume, request = SimpleNamespace(uid="uid"), SimpleNamespace(name="r")
    assert re.fullmatch(pattern, rollbacks._safety_name(volume, request))  # type: ignore[arg-type]


def test_objects_of_an_installation_are_looked_for_where_they_were() -> None:
    ours, objects = Installation("ns", "RELEASE", CONTRACT["driver"]), CONTRACT["objects"]
    assert [ours.ca_secret, ours.tls_secret("controller"), ours.tls_secret("agent")] == objects["Secret"]
    assert [ours.decommissioned_nodes] == objects["ConfigMap"]
    assert [ours.lease] == objects["Lease"]
    assert [ours.webhook_configuration] == objects["MutatingWebhookConfiguration"]
    for name in objects["DaemonSet"]:
        assert ours.owns_agent({"node": "n", "owners": [name]})
    assert ours.webhook_host.partition(".")[0] in objects["Service"]


def test_secrets_hold_what_they_held() -> None:
    first = new_ca()
    keeping = ca_secret.CaSecret(first, new_ca(), (new_ca().certificate,))
    assert list(keeping.data()) == CONTRACT["secrets"]["authority"]
    assert list(certificates.FILES) == CONTRACT["secrets"]["certificate"]


def test_the_first_pool_of_a_node_is_called_as_it_was() -> None:
    assert CONTRACT["node"]["pool_name"] == DEFAULT_POOL


# ---- definitions


@pytest.mark.parametrize("plural", list(CONTRACT["definitions"]))
def test_definitions_have_the_fields_that_they_had(plural: str) -> None:
    known = CONTRACT["definitions"][plural]
    definition = yaml.safe_load((CHART / "files" / "crds" / f"{plural}.yaml").read_text())
    spec = definition["spec"]
    assert definition["metadata"]["name"] == f"{plural}.{CONTRACT['group']}"
    assert (spec["group"], spec["names"]["kind"], spec["names"]["plural"]) == (CONTRACT["group"], known["kind"], plural)
    version = next(one for one in spec["versions"] if one["name"] == CONTRACT["version"])
    assert version["served"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    assert sorted(properties["spec"].get("required", [])) == known["required"], "a field that older objects lack"
    for part in ("spec", "status"):
        assert dict(_fields(properties[part])) == known[part], NEW


def _fields(schema_: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, field in schema_.get("properties", {}).items():
        yield f"{path}{name}", field["type"]
        yield from _fields(field, f"{path}{name}.")
        if field["type"] == "array":
            yield from _fields(field["items"], f"{path}{name}[].")


def test_the_controller_knows_the_fields_of_the_definitions_and_no_others() -> None:
    """What stands in an object besides was asked of another version, and is never overlooked."""
    schedules, rollbacks = (CONTRACT["definitions"][one] for one in ("snapshotschedules", "volumerollbacks"))
    assert {path for path in schedules["spec"] if "." not in path} == schedule_spec.FIELDS
    rules = {path.partition(".")[2] for path in schedules["spec"] if path.startswith("retention.")}
    assert rules == schedule_spec.RULES
    assert {path for path in schedules["status"] if "." not in path} == schedule_status.KEYS
    assert set(rollbacks["spec"]) == rollback_resource.FIELDS
    assert [str(phase) for phase in rollback_resource.Phase] == rollbacks["phases"]
    definition = yaml.safe_load((CHART / "files" / "crds" / "volumerollbacks.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert status["properties"]["phase"]["enum"] == rollbacks["phases"]
    for kind, plural in ((resources.ROLLBACKS, "volumerollbacks"), (resources.SCHEDULES, "snapshotschedules")):
        assert (kind.group, kind.version, kind.plural) == (CONTRACT["group"], CONTRACT["version"], plural)


@pytest.mark.parametrize(("before", "after"), CONTRACT["metrics"].items())
def test_a_renamed_metric_is_written_under_both_names(before: str, after: str) -> None:
    metrics = AgentMetrics("n1")
    metrics.after_cancel("csi.v1.Controller/CreateVolume", "OK", 1.0)
    metrics.snapshot_taken("fast", SnapshotTimings(cloned=0.01))
    families = {family.name: family for family in metrics.registry.collect()}
    values = [
        [(sample.labels, sample.value) for sample in families[name.removesuffix("_total")].samples]
        for name in (before, after)
    ]
    assert values[0] == values[1] != []


def agent_with_everything() -> AgentMetrics:
    metrics = AgentMetrics("n1")
    metrics.call("csi.v1.Controller/CreateVolume", "OK", 1.0)
    metrics.after_cancel("csi.v1.Controller/CreateVolume", "OK", 1.0)
    metrics.snapshot_taken("fast", SnapshotTimings(frozen=0.01, cloned=0.01))
    metrics.checked("fast", "mended")
    metrics.watch(EVERYTHING)
    return metrics


def controller_with_everything() -> ControllerMetrics:
    metrics = ControllerMetrics()
    metrics.call("csi.v1.Controller/CreateVolume", "OK", 1.0)
    metrics.reached({"n1": True})
    metrics.certificate_expiry.labels("agent").set(1)
    metrics.schedule_late.labels("shop", "hourly").set(1)
    metrics.schedule_snapshots.labels("shop", "hourly", "made").inc()
    metrics.rollbacks.labels("Pending").set(1)
    metrics.watch_ages(lambda: {"pods": 0.0})
    return metrics


@pytest.mark.parametrize("process", ["agent", "controller"])
def test_series_keep_their_names_and_labels(process: str) -> None:
    metrics = agent_with_everything() if process == "agent" else controller_with_everything()
    exported: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name.startswith("tidemark_"):
                name = family.name if family.type == "histogram" else sample.name
                exported.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert {name: sorted(labels) for name, labels in exported.items()} == CONTRACT["series"][process]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(Damaged, match="a volume's record, hold: since is missing"):
        fields.Fields({"holder": "h"}, "a volume's record, hold").number("since")

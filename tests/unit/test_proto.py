"""Holds our own csi.proto to the facts of the interface.

The kubelet and the sidecars know csi.v1 by its numbers. A wrong one is not an error on the wire: the field is merely
absent on the other side. So every number, label and mark of the compiled file is compared, both ways, with
``csi_v1_facts.txt``: one item a line, read from the descriptor that the published Go package of 1.13.0 embeds. The hex
digits in brackets are the serialised options: ``984201`` csi_secret, ``a04201`` alpha, ``3801`` map entry.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.message import Message

from csi_driver._pb import csi_pb2, tidemark_pb2

FACTS = Path(__file__).with_name("csi_v1_facts.txt")

# What the descriptor's own listing does not show: the numbers that 1.13 took out of use with the volume condition.
RESERVED = {
    "ListVolumesResponse.VolumeStatus": {2},
    "ControllerGetVolumeResponse.VolumeStatus": {2},
    "NodeGetVolumeStatsResponse": {2},
    "ControllerServiceCapability.RPC.Type": {11},
    "NodeServiceCapability.RPC.Type": {4},
}


def _compiled() -> FileDescriptorProto:
    """The compiled file as a message, in which nothing is resolved, defaulted or sorted."""
    return FileDescriptorProto.FromString(csi_pb2.DESCRIPTOR.serialized_pb)


def _mark(options: Message) -> str:
    """The options of an item as the listing shows them: nothing, or their serialised form in brackets.

    Each is serialised by itself, by rising numbers: protobuf promises no order of extensions within one message.
    """
    serialised = b""
    for field, value in options.ListFields():
        single = type(options)()
        if field.is_extension:
            single.Extensions[field] = value  # type: ignore[index]  # the stubs know only the generated constants
        else:
            setattr(single, field.name, value)
        serialised += single.SerializeToString()
    return f" [{serialised.hex()}]" if serialised else ""


def _field(field: FieldDescriptorProto, oneofs: list[str]) -> str:
    # Every label is written, `required` and proto3's `optional` (a oneof of its own) too: neither has a place here.
    label = {
        FieldDescriptorProto.LABEL_OPTIONAL: "",
        FieldDescriptorProto.LABEL_REPEATED: "repeated ",
        FieldDescriptorProto.LABEL_REQUIRED: "required ",
    }[field.label]
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    oneof = f" oneof:{oneofs[field.oneof_index]}" if field.HasField("oneof_index") else ""
    return f"{label}{kind} {field.name} = {field.number}{oneof}{_mark(field.options)}"


def _enum(enum: EnumDescriptorProto, scope: str) -> Iterator[str]:
    # An enum has no line of its own in the listing, so a mark on it would be a line too many: none has one.
    if mark := _mark(enum.options):
        yield f"enum {scope}.{enum.name}{mark}"
    for value in enum.value:
        yield f"enum {scope}.{enum.name}.{value.name} = {value.number}{_mark(value.options)}"


def _message(message: DescriptorProto, scope: str = "") -> Iterator[str]:
    name = f"{scope}{message.name}"
    yield f"message {name}{_mark(message.options)}"
    oneofs = [oneof.name for oneof in message.oneof_decl]
    for field in message.field:
        yield f"{name}: {_field(field, oneofs)}"
    for nested in message.nested_type:
        yield from _message(nested, f"{name}.")
    for enum in message.enum_type:
        yield from _enum(enum, name)


def _items(file: FileDescriptorProto) -> Iterator[str]:
    """The lines of ``csi_v1_facts.txt``, made from a compiled file; their order has no meaning."""
    for enum in file.enum_type:
        yield from _enum(enum, "")
    for message in file.message_type:
        yield from _message(message)
    for service in file.service:
        for method in service.method:
            request = f"{'stream ' if method.client_streaming else ''}{method.input_type}"
            response = f"{'stream ' if method.server_streaming else ''}{method.output_type}"
            yield f"rpc {service.name}.{method.name}({request}) returns ({response}){_mark(method.options)}"
    for extension in file.extension:
        # The listing gives no type; a bool is what the marks 984201 and a04201 prove.
        assert extension.type == FieldDescriptorProto.TYPE_BOOL, extension.name
        yield f"ext {extension.extendee} {extension.name}={extension.number}"


def _difference(facts: list[str], ours: list[str]) -> str:
    """Every line that is on one side only, or more often there; empty where the two agree."""
    lacking, surplus = Counter(facts) - Counter(ours), Counter(ours) - Counter(facts)
    lines = [f"csi.proto lacks: {item}" for item in lacking.elements()]
    lines += [f"csi.v1 does not have: {item}" for item in surplus.elements()]
    return "\n".join(lines)


def _reserved(file: FileDescriptorProto) -> dict[str, set[int]]:
    """Every reserved number by the full name of its message or enum."""

    def enums(scope: str, of: list[EnumDescriptorProto]) -> Iterator[tuple[str, set[int]]]:
        for enum in of:  # the end of an enum's range belongs to it, that of a message's does not
            yield f"{scope}{enum.name}", {n for r in enum.reserved_range for n in range(r.start, r.end + 1)}

    def messages(scope: str, of: list[DescriptorProto]) -> Iterator[tuple[str, set[int]]]:
        for message in of:
            name = f"{scope}{message.name}"
            yield name, {n for r in message.reserved_range for n in range(r.start, r.end)}
            yield from enums(f"{name}.", list(message.enum_type))
            yield from messages(f"{name}.", list(message.nested_type))

    every = itertools.chain(enums("", list(file.enum_type)), messages("", list(file.message_type)))
    return {name: numbers for name, numbers in every if numbers}


def test_csi_is_what_the_facts_say() -> None:
    """All items of csi.v1 at 1.13.0, and nothing else."""
    facts = FACTS.read_text(encoding="utf-8").splitlines()
    assert len(facts) > 500
    difference = _difference(facts, list(_items(_compiled())))
    assert not difference, f"\n{difference}"


def test_csi_reserves_what_was_taken_out() -> None:
    """A number that had a meaning up to 1.12 must not get another: old sidecars still send it."""
    assert _reserved(_compiled()) == RESERVED


def test_csi_has_the_names_on_the_wire() -> None:
    """A method's path is made of the package and the service; proto3 decides how absent fields look."""
    file = _compiled()
    assert (file.package, file.syntax) == ("csi.v1", "proto3")
    assert [service.name for service in file.service] == [
        "Identity",
        "Controller",
        "GroupController",
        "SnapshotMetadata",
        "Node",
    ]


@pytest.mark.parametrize(
    ("path", "number"),
    [("CreateVolumeRequest.name", 9), ("VolumeCapability.access_mode", 4), ("NodeExpandVolumeRequest.secrets", 7)],
)
def test_one_changed_number_is_found(path: str, number: int) -> None:
    """The comparison itself works: a single other number is named, on both sides."""
    file = _compiled()
    message_name, field_name = path.split(".")
    message = next(m for m in file.message_type if m.name == message_name)
    field = next(f for f in message.field if f.name == field_name)
    before, field.number = field.number, number
    lines = _difference(FACTS.read_text(encoding="utf-8").splitlines(), list(_items(file))).splitlines()
    assert len(lines) == 2
    assert f"{field_name} = {before}" in lines[0]
    assert f"{field_name} = {number}" in lines[1]


def test_a_lost_mark_is_found() -> None:
    """Logging relies on csi_secret: a field that lost it would be printed."""
    file = _compiled()
    message = next(m for m in file.message_type if m.name == "NodeStageVolumeRequest")
    next(f for f in message.field if f.name == "secrets").ClearField("options")
    difference = _difference(FACTS.read_text(encoding="utf-8").splitlines(), list(_items(file)))
    assert "csi.proto lacks" in difference
    assert "[984201]" in difference


def test_csi_secret_is_readable_from_a_descriptor() -> None:
    """The redaction of logs reads the mark this way."""
    field = csi_pb2.NodeStageVolumeRequest.DESCRIPTOR.fields_by_name["secrets"]
    options = field.GetOptions()
    assert isinstance(options, descriptor_pb2.FieldOptions)
    assert options.Extensions[csi_pb2.csi_secret]
    other = csi_pb2.NodeStageVolumeRequest.DESCRIPTOR.fields_by_name["volume_context"]
    assert not other.GetOptions().Extensions[csi_pb2.csi_secret]


def test_tidemark_serves_its_calls() -> None:
    """Agents and controllers of different versions meet: the paths of our own calls are an interface too."""
    service = tidemark_pb2.DESCRIPTOR.services_by_name["Tidemark"]
    assert service.full_name == "tidemark.v1.Tidemark"
    assert [method.name for method in service.methods] == [
        "Hold",
        "Release",
        "Rollback",
        "GetTree",
        "DescribeVolume",
        "ListPools",
        "SetLabel",
        "EstimateFreed",
    ]

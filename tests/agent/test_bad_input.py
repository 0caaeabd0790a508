"""Requests full of what no client should send, to a real agent: each gets an answer, and its pool stays as it was.

TIDEMARK_FUZZ_SEEDS=N takes N random seeds instead of the three that are the same every time.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from support.agent_process import AgentRig

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.slow]

BLOCK = Capability("block", AccessMode.MULTI_WRITER)
GONE = f"node1:default:{'0' * 32}"
TEXTS = [
    "", " ", ".", "..", "/", "../../etc/passwd", "/etc/passwd", "--help", "-rf", "a\0b", "a\nb", "\u202eevil", "name",
    "x" * 128, "x" * 129, "\u00e9" * 65, "x" * 70_000, "%s%n", "$(reboot)", "`reboot`", "node1:default:../../x", "node1::", GONE,
    f"node2:default:{'0' * 32}", f"node1:nowhere:{'0' * 32}", f"{GONE}0", GONE.upper(), "thick", "xfs", "btrfs", "pool",
]  # fmt: skip
NUMBERS = [0, 1, -1, 4096, 1 << 20, 1 << 31, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
REFUSALS = {
    "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNAVAILABLE", "UNIMPLEMENTED",
    "ABORTED", "RESOURCE_EXHAUSTED",
}  # fmt: skip
"""Every code that a bad request may get; INTERNAL and UNKNOWN are defects, whatever was sent."""
UNDONE = {
    "CreateVolume": (
        "Controller/DeleteVolume",
        lambda made: csi_pb2.DeleteVolumeRequest(volume_id=made.volume.volume_id),
    ),
    "CreateSnapshot": (
        "Controller/DeleteSnapshot",
        lambda made: csi_pb2.DeleteSnapshotRequest(snapshot_id=made.snapshot.snapshot_id),
    ),
    "CreateVolumeGroupSnapshot": (
        "GroupController/DeleteVolumeGroupSnapshot",
        lambda made: csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot.group_snapshot_id),
    ),
}
"""What by chance was a good request is undone again."""


SERVICES = [
    service
    for file in (csi_pb2.DESCRIPTOR, tidemark_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    if service.name != "SnapshotMetadata"  # not served yet
]


def fill(message: Message, random_: random.Random, texts: list[str], depth: int = 0) -> None:
    """Give about two of three fields some value."""
    for field in message.DESCRIPTOR.fields:
        if random_.random() < 0.35 or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update({random_.choice(texts): random_.choice(texts) for _ in range(2)})
        elif field.is_repeated:
            for _ in range(random_.choice([1, 2, 70])):
                items = getattr(message, field.name)
                if field.message_type is not None:
                    fill(items.add(), random_, texts, depth + 1)
                else:
                    items.append(value(field, random_, texts))
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), random_, texts, depth + 1)
        else:
            setattr(message, field.name, value(field, random_, texts))


def value(field: FieldDescriptor, random_: random.Random, texts: list[str]) -> Any:
    """One that the wire can carry."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return random_.choice(texts)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random_.choice(texts).encode()
    if field.type == FieldDescriptor.TYPE_BOOL:
        return random_.random() < 0.5
    if field.type in {FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32}:
        return random_.choice([0, 1, 2, 7, 99, -1])
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return 1.5
    numbers = NUMBERS if field.type == FieldDescriptor.TYPE_INT64 else [abs(number) % (1 << 31) for number in NUMBERS]
    return random_.choice(numbers)


def tree(pool: Path) -> list[tuple[object, ...]]:
    """Every file of the pool, with what would tell that it was touched."""
    return sorted(
        (str(path), status.st_ino, status.st_size, status.st_mode, status.st_mtime_ns, status.st_ctime_ns)
        for path in pool.rglob("*")
        if path.is_file() and ".trash" not in path.parts
        for status in [path.stat()]
    )


def requests(random_: random.Random, ids: list[str]) -> Iterator[tuple[MethodDescriptor, bytes]]:
    """One request for each call; a fifth of them broken bytes."""
    for service in SERVICES:
        for method in service.methods:
            # What exists is named only where it is looked at, or is the source of something new.
            known = ids * 4 if method.name.startswith(("Get", "List", "Validate", "Create", "ControllerGet")) else []
            request = GetMessageClass(method.input_type)()
            fill(request, random_, TEXTS + known)
            data = request.SerializeToString()
            if random_.random() < 0.2:
                data = data[: random_.randrange(len(data) + 1)] + random_.randbytes(random_.randrange(8))
            yield method, data


ASKED = int(os.environ.get("TIDEMARK_FUZZ_SEEDS", "0"))
SEEDS = [random.SystemRandom().randrange(1 << 32) for _ in range(ASKED)] or [0, 1, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_sent_the_pool_stays_as_it_was(
    rig: AgentRig, client: Client, seed: int, record_property: Callable[[str, object], None]
) -> None:
    random_ = random.Random(seed)
    volume = client.create_volume("kept", SizeRange(1 << 20), [BLOCK])
    snapshot = client.create_snapshot(volume.id, "kept")
    group = client.create_group("kept", [volume.id])
    before = tree(rig.pool)
    ids = [volume.id, snapshot.id, group.id]
    codes = Counter[str]()
    with grpc.insecure_channel(rig.endpoint) as channel:

        def call(path: str, request: bytes) -> tuple[str, str, bytes]:
            try:
                return "OK", "", channel.unary_unary(path)(request, timeout=60)
            except grpc.RpcError as error:
                return error.code().name, error.details(), b""

        for method, request in (each for _ in range(15) for each in requests(random_, ids)):
            path = f"/{method.containing_service.full_name}/{method.name}"
            code, words, answer = call(path, request)
            codes[code] += 1
            assert code == "OK" or code in REFUSALS, f"{path}: {code} {words} to {request!r}"
            assert code == "OK" or len(words) > 20, f"{path}: {words!r} tells nothing"
            if code == "OK" and method.name in UNDONE:
                undo, wanted = UNDONE[method.name]
                made = GetMessageClass(method.output_type).FromString(answer)
                assert call(f"/csi.v1.{undo}", wanted(made).SerializeToString())[0] == "OK"
    assert tree(rig.pool) == before
    assert client.probe()
    assert {node.id for node in client.tree()} >= set(ids)
    assert {"INVALID_ARGUMENT", "NOT_FOUND", "OK"} <= codes.keys()
    record_property("calls", codes.total())
    print(dict(codes))

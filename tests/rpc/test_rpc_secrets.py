"""A canary in every place where a request may hold a secret must be found nowhere outside."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from support.rpc_rig import Rig, block, create_volume, mount
from support.sizes import MIB

from csi_driver._pb import csi_pb2
from csi_driver.agent.metrics import AgentMetrics
from csi_driver.logging import configure_logging
from csi_driver.rpc.log_fields import describe, is_secret

CANARY = "canary-7f3a9"
C = csi_pb2


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def filled(kind: type[Message]) -> Any:
    """A request with the canary in each secret, map and mount flag, and harmless words elsewhere."""
    request: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(request, field.name)[f"{CANARY}-key"] = f"{CANARY}-{field.name}"
        elif field.message_type and field.message_type.full_name == "csi.v1.VolumeCapability":
            capability = mount(mount_flags=[f"context={CANARY}"])
            if field.is_repeated:
                getattr(request, field.name).append(capability)
            else:
                getattr(request, field.name).CopyFrom(capability)
        elif field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(request, field.name, "/path" if "path" in field.name else f"word-{field.name}")
    return request


REQUESTS = [
    getattr(csi_pb2, message.name)
    for message in csi_pb2.DESCRIPTOR.message_types_by_name.values()
    if message.name.endswith("Request")
]


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: str(kind.DESCRIPTOR.name))
def test_what_is_described_has_no_secret(kind: type[Message]) -> None:
    request = filled(kind)
    fields = describe(request)
    assert CANARY not in json.dumps(fields)
    for field in kind.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated:
            assert fields[field.name]


def test_secrets_are_told_by_their_mark() -> None:
    marked = {
        f"{message.name}.{field.name}"
        for message in csi_pb2.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if is_secret(field)
    }
    assert len(marked) >= 18
    assert all(name.endswith(".secrets") for name in marked)


def test_log_values_are_short_and_plain() -> None:
    fields = describe(C.DeleteVolumeRequest(volume_id="\x1b[31m\n" + "x" * 5000))
    assert len(str(fields["volume_id"])) <= 256
    assert "\n" not in str(fields["volume_id"])
    assert "\x1b" not in str(fields["volume_id"])
    many = describe(C.CreateVolumeGroupSnapshotRequest(source_volume_ids=["v"] * 100))
    assert many == {"source_volume_ids": ["v"] * 8, "source_volume_ids_count": 100}
    sized = describe(create_volume("n", MIB))
    assert sized == {"name": "n", "required_bytes": MIB}


CALLS: list[tuple[str, str]] = [
    ("controller", "CreateVolume"),
    ("controller", "DeleteVolume"),
    ("controller", "ControllerPublishVolume"),
    ("controller", "ControllerUnpublishVolume"),
    ("controller", "ValidateVolumeCapabilities"),
    ("controller", "CreateSnapshot"),
    ("controller", "DeleteSnapshot"),
    ("controller", "ListSnapshots"),
    ("controller", "GetSnapshot"),
    ("controller", "ControllerExpandVolume"),
    ("controller", "ControllerModifyVolume"),
    ("groups", "CreateVolumeGroupSnapshot"),
    ("groups", "DeleteVolumeGroupSnapshot"),
    ("groups", "GetVolumeGroupSnapshot"),
    ("node", "NodeStageVolume"),
    ("node", "NodePublishVolume"),
    ("node", "NodeExpandVolume"),
]


@pytest.mark.parametrize("form", ["json", "console"])
async def test_nothing_leaks(
    form: Literal["json", "console"], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging(form, "debug")
    telemetry = AgentMetrics("n")
    said = []
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with Rig(Path(directory), telemetry) as rig:
            made = await rig.volume("v", 20 * MIB, volume_capabilities=[block(), mount()])

            async def call(service: str, method: str, request: Any) -> None:
                try:
                    await getattr(getattr(rig, service), method)(request)
                except grpc.aio.AioRpcError as error:
                    said.append(f"{error.code()} {error.details()} {error.trailing_metadata()}")

            async def every() -> None:
                for service, method in CALLS:
                    request = filled(getattr(csi_pb2, f"{method}Request"))
                    await call(service, method, request)
                    for field in ("volume_id", "source_volume_id"):
                        if field in request.DESCRIPTOR.fields_by_name:
                            setattr(request, field, made.volume_id)
                    if "parameters" in request.DESCRIPTOR.fields_by_name:
                        request.parameters.clear()
                    if "mutable_parameters" in request.DESCRIPTOR.fields_by_name:
                        request.mutable_parameters.clear()
                    await call(service, method, request)
                    for field in ("volume_capability", "volume_capabilities"):
                        if field in request.DESCRIPTOR.fields_by_name:
                            request.ClearField(field)
                    await call(service, method, request)

            await every()
            left = await rig.volume("left", 20 * MIB, volume_capabilities=[mount()])
            for flag in (f"password={CANARY}", f"context=;{CANARY}"):
                capability = mount(mount_flags=[flag])
                await call("controller", "CreateVolume", create_volume("w", volume_capabilities=[capability]))
                question = C.ValidateVolumeCapabilitiesRequest(
                    volume_id=left.volume_id, volume_capabilities=[capability]
                )
                said.append(str(await rig.controller.ValidateVolumeCapabilities(question)))

            # And where everything breaks, with the request in the frames of the traceback.
            def broken(*_: Any, **__: Any) -> Any:
                raise RuntimeError("broken on purpose")

            for target in (rig.volumes, rig.snapshots, rig.nodes):
                for name in [n for n in dir(type(target)) if not n.startswith("_")]:
                    monkeypatch.setattr(target, name, broken)
            await every()
    from prometheus_client import generate_latest

    said.append(generate_latest(telemetry.registry).decode())
    captured = capsys.readouterr()
    # The key of a parameter is named, since people must find it; a value never is.
    log = (captured.out + captured.err).replace(f"{CANARY}-key", "")
    assert "broken on purpose" in log
    assert "Traceback" in log
    assert CANARY not in log
    log = "\n".join(said).replace(f"{CANARY}-key", "")
    assert "INVALID_ARGUMENT" in log
    assert CANARY not in log
    if form == "json":
        lines = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
        assert {"event", "level", "timestamp", "method", "code", "ms"} <= lines[0].keys()

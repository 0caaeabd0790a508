"""An agent as its node sees it: its lines and figures, its processes, and what it costs to be looked at.

Nothing here looks inside: there is the socket, the log, /metrics, signals, the exit status and the kernel.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from outside_rig import Stubs, Trace, fork_server, free, only_its_fork_server, parse_console, scrape, use
from support.agent_process import AgentRig
from support.ports import free_port

from csi_driver._pb import csi_pb2 as c
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import CallRefused

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(200)]

MIB = 1 << 20
XFS = Capability("mount", AccessMode.MULTI_WRITER, "xfs")
EXT4 = Capability("mount", AccessMode.MULTI_WRITER, "ext4")
BLOCK = Capability("block", AccessMode.MULTI_WRITER)
CANARY = "canary-5e8f1b"
NOBODY = f"node1:default:{'0' * 32}"


# ---- the log


def lines_of(rig: AgentRig, form: str) -> list[dict[str, Any]]:
    """Every line of the log; each must parse."""
    text = rig.log.read_text()
    assert text.endswith("\n")
    return [json.loads(line) if form == "json" else dict(parse_console(line)) for line in text.splitlines()]


@pytest.mark.parametrize("form", ["json", "console"])
def test_one_line_a_call_and_no_secret(rig: AgentRig, form: str) -> None:
    secrets = {"password": CANARY}
    context = {"given": CANARY}
    staging, target = f"{rig.root}/staging", f"{rig.root}/target"
    Path(staging).mkdir()
    secret_flag = c.VolumeCapability(
        mount=c.VolumeCapability.MountVolume(fs_type="xfs", mount_flags=[f"password={CANARY}"]),
        access_mode=c.VolumeCapability.AccessMode(mode=c.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER),
    )
    mount = c.VolumeCapability(mount=c.VolumeCapability.MountVolume(fs_type="xfs"), access_mode=secret_flag.access_mode)
    expected: list[tuple[str, str, dict[str, object]]] = []

    with rig.start("--log-format", form) as probe, Stubs(rig.endpoint) as to:

        def call(method: Any, request: Any, code: str = "OK", **fields: object) -> Any:
            name = method._method.decode().lstrip("/")
            expected.append((name, code, fields))
            if code == "OK":
                return method(request, timeout=60)
            with pytest.raises(grpc.RpcError) as caught:
                method(request, timeout=60)
            assert caught.value.code().name == code, caught.value
            assert CANARY not in str(caught.value.details())
            return None

        create = c.CreateVolumeRequest(
            name="told",
            capacity_range=c.CapacityRange(required_bytes=320 * MIB),
            volume_capabilities=[mount],
            secrets=secrets,
        )
        volume = call(to.controller.CreateVolume, create, name="told", required_bytes=320 * MIB).volume.volume_id
        call(to.controller.CreateVolume, c.CreateVolumeRequest(secrets=secrets), "INVALID_ARGUMENT")
        bad = c.CreateVolumeRequest(name="bad", volume_capabilities=[secret_flag], secrets=secrets)
        call(to.controller.CreateVolume, bad, "INVALID_ARGUMENT", name="bad")
        stage = c.NodeStageVolumeRequest(
            volume_id=volume,
            staging_target_path=staging,
            volume_capability=mount,
            secrets=secrets,
            publish_context=context,
            volume_context=context,
        )
        call(to.node.NodeStageVolume, stage, volume_id=volume, staging_target_path=staging)
        stage.volume_capability.CopyFrom(secret_flag)
        call(to.node.NodeStageVolume, stage, "INVALID_ARGUMENT", volume_id=volume)
        publish = c.NodePublishVolumeRequest(
            volume_id=volume,
            staging_target_path=staging,
            target_path=target,
            volume_capability=mount,
            secrets=secrets,
            publish_context=context,
            volume_context=context,
        )
        call(to.node.NodePublishVolume, publish, volume_id=volume, target_path=target)
        cut = c.CreateSnapshotRequest(name="cut", source_volume_id=volume, secrets=secrets)
        snapshot = call(to.controller.CreateSnapshot, cut, name="cut", source_volume_id=volume).snapshot.snapshot_id
        lost = c.CreateSnapshotRequest(name="lost", source_volume_id=NOBODY, secrets=secrets)
        call(to.controller.CreateSnapshot, lost, "NOT_FOUND", name="lost", source_volume_id=NOBODY)
        members = c.CreateVolumeGroupSnapshotRequest(name="group", source_volume_ids=[volume], secrets=secrets)
        made = call(to.groups.CreateVolumeGroupSnapshot, members, name="group").group_snapshot.group_snapshot_id
        call(to.controller.ListSnapshots, c.ListSnapshotsRequest(snapshot_id=snapshot, secrets=secrets))
        call(to.controller.ListVolumes, c.ListVolumesRequest())
        to.controller.GetCapacity(c.GetCapacityRequest())  # asked all the time: no line
        call(
            to.controller.DeleteVolume, c.DeleteVolumeRequest(volume_id=volume, secrets=secrets), "FAILED_PRECONDITION"
        )
        grow = c.ControllerExpandVolumeRequest(
            volume_id=volume, capacity_range=c.CapacityRange(required_bytes=400 * MIB), secrets=secrets
        )
        call(to.controller.ControllerExpandVolume, grow, volume_id=volume, required_bytes=400 * MIB)
        grown = c.NodeExpandVolumeRequest(volume_id=volume, volume_path=target, secrets=secrets)
        call(to.node.NodeExpandVolume, grown, volume_id=volume, volume_path=target)
        call(to.node.NodeUnpublishVolume, c.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target))
        away = c.NodeUnstageVolumeRequest(volume_id=volume, staging_target_path=staging)
        call(to.node.NodeUnstageVolume, away, volume_id=volume)
        group = c.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=made, secrets=secrets)
        call(to.groups.DeleteVolumeGroupSnapshot, group, group_snapshot_id=made)
        call(to.controller.DeleteSnapshot, c.DeleteSnapshotRequest(snapshot_id=snapshot, secrets=secrets))
        call(to.controller.DeleteVolume, c.DeleteVolumeRequest(volume_id=volume, secrets=secrets), volume_id=volume)
        assert probe.tree() == []
        expected.append(("tidemark.v1.Tidemark/GetTree", "OK", {}))
        records = [path.read_bytes() for path in rig.pool.rglob("*.json")]
        assert rig.stop() == 0

    assert CANARY not in rig.log.read_text()
    assert not any(CANARY.encode() in record for record in records)
    lines = lines_of(rig, form)
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["method"], line["code"]) for line in calls] == [(method, code) for method, code, _ in expected]
    for line, (method, _, fields) in zip(calls, expected, strict=True):
        assert {key: line[key] for key in fields} == {
            key: value if form == "json" else str(value) for key, value in fields.items()
        }, method
        assert 0 <= float(line["ms"]) < 60_000
        assert line["level"] == ("info" if line["code"] == "OK" else "warning")
        assert ("error" in line) == (line["code"] != "OK")
    # A machine with LVM may have been told of it.
    assert {line["event"] for line in lines if "LVM" not in line["event"]} == {"ready", "call", "stopped"}


# ---- figures


def test_figures_after_a_known_sequence(rig: AgentRig) -> None:
    port = free_port()
    address = ("--metrics-address", f"127.0.0.1:{port}")
    with rig.start(*address) as client:
        mounted = client.create_volume("mounted", SizeRange(320 * MIB), [XFS]).id
        raw = client.create_volume("raw", SizeRange(64 * MIB), [BLOCK]).id
        idle = client.create_volume("idle", SizeRange(48 * MIB), [EXT4]).id
        target = use(rig, client, mounted, "target", XFS)
        (target / "file").write_bytes(os.urandom(8 * MIB))
        client.create_snapshot(mounted, "s1")
        second = client.create_snapshot(mounted, "s2").id
        client.create_snapshot(raw, "s3")
        client.create_group("g", [mounted, idle])
        client.create_volume("copy", SizeRange(), [XFS], source=Source("volume", mounted))
        client.delete_snapshot(second)
        for code, refusal in (
            ("FAILED_PRECONDITION", lambda: client.delete_volume(mounted)),
            ("NOT_FOUND", lambda: client.create_snapshot(NOBODY, "lost")),
        ):
            with pytest.raises(CallRefused) as caught:
                refusal()
            assert caught.value.code == code
        figures = scrape(port)

        counted = {
            tuple(value for _, value in labels): int(value)
            for (name, labels), value in figures.items()
            if name == "tidemark_calls_total"
        }
        assert counted.pop(("OK", "csi.v1.Identity/Probe")) >= 1
        assert counted == {
            ("OK", "csi.v1.Controller/CreateVolume"): 4,
            ("OK", "csi.v1.Node/NodeStageVolume"): 1,
            ("OK", "csi.v1.Node/NodePublishVolume"): 1,
            ("OK", "csi.v1.Controller/CreateSnapshot"): 3,
            ("NOT_FOUND", "csi.v1.Controller/CreateSnapshot"): 1,
            ("OK", "csi.v1.GroupController/CreateVolumeGroupSnapshot"): 1,
            ("OK", "csi.v1.Controller/DeleteSnapshot"): 1,
            ("FAILED_PRECONDITION", "csi.v1.Controller/DeleteVolume"): 1,
        }
        for (code, method), count in counted.items():
            labels = (("code", code), ("method", method))
            assert figures["tidemark_call_seconds_count", labels] == count
            assert 0 < figures["tidemark_call_seconds_sum", labels] < 60
        pool = (("pool", "default"),)
        assert figures["tidemark_freeze_seconds_count", pool] == 4  # two snapshots, the group, the copy
        assert (
            figures["tidemark_snapshot_clone_duration_seconds_count", pool] == 5
        )  # and the one of what is not mounted
        assert 0 < figures["tidemark_freeze_seconds_sum", pool] < 4 * 5
        assert figures["tidemark_snapshot_clone_duration_seconds_sum", pool] > 0
        assert figures["tidemark_pool_volumes", pool] == 4
        assert figures["tidemark_pool_snapshots", pool] == 4
        assert figures["tidemark_pool_committed_bytes", pool] == (320 + 64 + 48 + 320) * MIB
        assert figures["tidemark_loop_devices", ()] == 1
        assert figures["tidemark_children_written_off", ()] == 0
        (said,) = client.pools()
        status = os.statvfs(rig.pool)
        assert figures["tidemark_pool_total_bytes", pool] == said.total == status.f_blocks * status.f_frsize
        assert abs(figures["tidemark_pool_used_bytes", pool] - (said.total - said.free)) < 4 * MIB
        assert figures["tidemark_pool_available_bytes", pool] == said.available
        assert said.available == said.total * 100 - said.committed

        free(rig, client, mounted, "target")
        assert scrape(port)["tidemark_loop_devices", ()] == 0
        assert rig.stop() == 0

    # The walk begins with the agent, so this one counts what is there.
    with rig.start(*address) as client:
        until = time.monotonic() + 30
        while ("tidemark_pool_extents", pool) not in (figures := scrape(port)):
            assert time.monotonic() < until
            time.sleep(0.1)
        usages = [node.usage for node in client.tree(with_usage=True) if node.usage is not None]
        assert len(usages) == 8
        assert figures["tidemark_pool_exclusive_bytes", pool] == sum(usage.exclusive for usage in usages)
        assert figures["tidemark_pool_extents", pool] == sum(usage.extents for usage in usages) > 0
        assert 0 <= figures["tidemark_pool_walk_age_seconds", pool] < 30
        assert figures["tidemark_pool_volumes", pool] == 4


def test_scrapes_and_capacity_start_no_process(rig: AgentRig, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace: install Debian's strace")
    port = free_port()
    with rig.start("--metrics-address", f"127.0.0.1:{port}") as client, Stubs(rig.endpoint) as to:
        volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
        client.create_volume("thick", SizeRange(64 * MIB), [BLOCK], {"provisioning": "thick"})
        use(rig, client, volume, "target", XFS)
        client.create_snapshot(volume, "s")
        assert rig.process is not None
        agent = rig.process.pid
        try:
            trace = Trace(tmp_path / "trace", agent, fork_server(agent))
        except OSError as error:
            pytest.skip(f"strace may not look here: {error}")
        try:
            for _ in range(20):
                scrape(port)
                to.controller.GetCapacity(c.GetCapacityRequest(), timeout=10)
                to.controller.GetCapacity(c.GetCapacityRequest(parameters={"provisioning": "thick"}), timeout=10)
                client.pools()
                client.probe()
            time.sleep(0.3)
            assert trace.started() == []
            only_its_fork_server(agent)
            free(rig, client, volume, "target")  # and this does, so that it would have been seen
            time.sleep(0.3)
            assert trace.started() != []
        finally:
            trace.end()

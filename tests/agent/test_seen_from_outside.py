"""An agent as its node sees it: its lines and figures, its processes, its refusals at start, and its end.

Nothing here looks inside: there is the socket, the log, /metrics, signals, the exit status and the kernel.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agent_rig import AgentRig
from outside_rig import (
    Stubs,
    Trace,
    fork_server,
    free,
    free_port,
    only_its_fork_server,
    parse_console,
    probing,
    scrape,
    stopped,
    told,
    use,
    why_no_pool,
)

from csi_driver._pb import csi_pb2 as c
from csi_driver.domain.model import Capability, Mode, SizeRange, Source
from csi_driver.host import mountinfo
from csi_driver.rpc.client import CallRefused, Client

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(200)]

MIB = 1 << 20
XFS = Capability("mount", Mode.MULTI_WRITER, "xfs")
EXT4 = Capability("mount", Mode.MULTI_WRITER, "ext4")
BLOCK = Capability("block", Mode.MULTI_WRITER)
CANARY = "canary-5e8f1b"
NOBODY = f"node1:default:{'0' * 32}"
EXTENTS = 200_000


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
        call(to.controller.GetCapacity, c.GetCapacityRequest())
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
    assert {line["event"] for line in lines} == {"ready", "call", "stopped"}


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
        assert figures["tidemark_snapshot_seconds_count", pool] == 5  # and the one of what is not mounted
        assert 0 < figures["tidemark_freeze_seconds_sum", pool] < 4 * 5
        assert figures["tidemark_snapshot_seconds_sum", pool] > 0
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


# ---- long calls, clients that go away, the end


@contextmanager
def serving(rig: AgentRig, *options: str) -> Iterator[Client]:
    """An agent for a block of its own: several tests share the rig."""
    try:
        with rig.start(*options) as client:
            yield client
    finally:
        if rig.process is not None and rig.process.poll() is None:
            rig.kill()


class Big:
    """A pool with a raw block volume whose image has 200,000 extents; each test starts an agent of its own on it."""

    def __init__(self, rig: AgentRig) -> None:
        self.rig = rig
        with serving(rig) as client:
            self.volume = client.create_volume("big", SizeRange(EXTENTS * 8192), [BLOCK]).id
            device = use(rig, client, self.volume, "device", BLOCK)
            page = os.urandom(4096)
            fd = os.open(device, os.O_WRONLY)
            for number in range(EXTENTS):
                os.pwrite(fd, page, number * 8192)
            os.fsync(fd)
            os.close(fd)
            assert rig.stop() == 0


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Big]:
    if reason := why_no_pool():
        pytest.skip(reason)
    rig = AgentRig(tmp_path_factory.mktemp("big"))
    try:
        yield Big(rig)
    finally:
        rig.clean()


def milliseconds(seconds: list[float]) -> str:
    return f"{max(seconds) * 1000:.0f} ms of {len(seconds)}"


def test_the_event_loop_goes_on_during_large_ioctls(big: Big, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    with serving(big.rig) as client:
        with probing(big.rig.endpoint) as idle:
            time.sleep(1)
        said.append(f"idle: {milliseconds(idle.took)}")
        with probing(big.rig.endpoint) as during:
            began = time.monotonic()
            for _ in range(10):
                (node,) = [node for node in client.tree(volume_id=big.volume, with_usage=True) if node.kind == "volume"]
            took = time.monotonic() - began
        assert node.usage is not None
        assert node.usage.extents == EXTENTS
        assert len(during.took) > 10
        said.append(f"FIEMAP of {EXTENTS} extents ({took / 10:.2f} s each): {milliseconds(during.took)}")
        with probing(big.rig.endpoint) as during:
            began = time.monotonic()
            snapshot = client.create_snapshot(big.volume, "large")
            took = time.monotonic() - began
        assert len(during.took) > 20
        said.append(f"CreateSnapshot ({took:.2f} s): {milliseconds(during.took)}")
        with probing(big.rig.endpoint) as during:
            began = time.monotonic()
            copy = client.create_volume("large copy", SizeRange(), [BLOCK], source=Source("snapshot", snapshot.id))
            took = time.monotonic() - began
        assert len(during.took) > 20
        said.append(f"CreateVolume from it ({took:.2f} s): {milliseconds(during.took)}")
        client.delete_volume(copy.id)
        client.delete_snapshot(snapshot.id)
        assert big.rig.stop() == 0
    with capsys.disabled():
        print("\nlongest answer to Probe: " + "; ".join(said))


def at_work(rig: AgentRig) -> None:
    """Wait until something is being made in the pool, unseen as yet."""
    until = time.monotonic() + 10
    while not list((rig.pool / ".new").glob("*/*.img")):
        assert time.monotonic() < until
        time.sleep(0.005)


def until_done(action: Any) -> Any:
    """Repeat a call as a sidecar does, while its object is still at work; nothing else may be answered."""
    until = time.monotonic() + 60
    while True:
        try:
            return action()
        except CallRefused as error:
            if error.code != "ABORTED" or time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("going", ["deadline", "cancel", "disconnect"])
def test_a_client_that_goes_away_leaves_whole_objects(big: Big, going: str) -> None:
    def leave(method: Any, request: Any, stubs: Stubs) -> None:
        call = method.future(request, timeout=1.0 if going == "deadline" else 60)
        at_work(big.rig)
        if going != "deadline":
            call.cancel() if going == "cancel" else stubs.channel.close()
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            call.result()

    rig = big.rig
    with serving(rig, "--log-format", "json") as client:
        assert rig.process is not None
        agent = rig.process.pid
        with Stubs(rig.endpoint) as to:
            request = c.CreateSnapshotRequest(name=f"{going} cut", source_volume_id=big.volume)
            leave(to.controller.CreateSnapshot, request, to)
        snapshot = until_done(lambda: client.create_snapshot(big.volume, f"{going} cut"))
        with Stubs(rig.endpoint) as to:
            source = c.VolumeContentSource(snapshot=c.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.id))
            block = c.VolumeCapability(block=c.VolumeCapability.BlockVolume())
            block.access_mode.mode = c.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER
            wish = c.CreateVolumeRequest(
                name=f"{going} copy", volume_capabilities=[block], volume_content_source=source
            )
            leave(to.controller.CreateVolume, wish, to)
        copy = until_done(
            lambda: client.create_volume(f"{going} copy", SizeRange(), [BLOCK], source=Source("snapshot", snapshot.id))
        )
        assert copy.size == EXTENTS * 8192
        assert sorted(node.id for node in client.tree()) == sorted([big.volume, snapshot.id, copy.id])
        assert list((rig.pool / ".new").iterdir()) == []
        assert len(list((rig.pool / "volumes").iterdir())) == 2
        assert len(list((rig.pool / "snapshots").iterdir())) == 1
        only_its_fork_server(agent)
        client.delete_volume(copy.id)
        client.delete_snapshot(snapshot.id)
        assert rig.stop() == 0
    lines = [json.loads(line) for line in rig.log.read_text().splitlines() if line.startswith("{")]
    for method in ("CreateSnapshot", "CreateVolume"):
        mine = [line for line in lines if line.get("method", "").endswith(method) and going in line.get("name", "")]
        told = [(line["event"], line["code"]) for line in mine if line["code"] != "ABORTED"]
        assert told == [("call", "CANCELLED"), ("late", "OK"), ("call", "OK")]


def test_a_client_that_goes_away_inside_a_cut(rig: AgentRig, client: Client) -> None:
    """The same for a file system in use, whose clone is made by a child: that stands still while the client goes."""
    volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
    target = use(rig, client, volume, "target", XFS)
    assert rig.process is not None
    server = fork_server(rig.process.pid)
    os.kill(server, signal.SIGSTOP)
    try:
        with Stubs(rig.endpoint) as to:
            call = to.controller.CreateSnapshot.future(c.CreateSnapshotRequest(name="s", source_volume_id=volume))
            time.sleep(0.3)
            call.cancel()
        with pytest.raises(CallRefused) as caught:
            client.create_snapshot(volume, "s")
        assert caught.value.code == "ABORTED"
    finally:
        os.kill(server, signal.SIGCONT)
    snapshot = until_done(lambda: client.create_snapshot(volume, "s"))
    assert [node.id for node in client.tree() if node.kind == "snapshot"] == [snapshot.id]
    assert list((rig.pool / ".new").iterdir()) == []
    only_its_fork_server(rig.process.pid)
    (target / "file").write_text("it is not frozen")


def test_sigterm_drains_a_running_call(big: Big) -> None:
    rig = big.rig
    with serving(rig) as client, Stubs(rig.endpoint) as to:
        assert client.probe()
        running = to.controller.CreateSnapshot.future(
            c.CreateSnapshotRequest(name="at the end", source_volume_id=big.volume), timeout=60
        )
        at_work(rig)
        assert not running.done()
        began = time.monotonic()
        assert rig.process is not None
        rig.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert not running.done(), "the call was too short to be seen running"
        with Client(rig.endpoint) as late, pytest.raises(CallRefused) as caught:
            late.probe()
        assert caught.value.code == "UNAVAILABLE"
        made = running.result().snapshot
        assert made.ready_to_use
        assert rig.process.wait(30) == 0
        assert time.monotonic() - began < 20
    with serving(rig) as client:
        assert made.snapshot_id in [node.id for node in client.tree()]
        client.delete_snapshot(made.snapshot_id)
        assert rig.stop() == 0


def test_sigterm_drains_a_call_in_a_child(rig: AgentRig, client: Client) -> None:
    volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
    (rig.root / "staging").mkdir()
    assert rig.process is not None
    server = fork_server(rig.process.pid)
    os.kill(server, signal.SIGSTOP)
    ended: list[BaseException | None] = []

    def stage() -> None:
        try:
            client.stage(volume, f"{rig.root}/staging", XFS)
        except CallRefused as error:
            ended.append(error)
        else:
            ended.append(None)

    staging = threading.Thread(target=stage)
    staging.start()
    try:
        time.sleep(0.3)
        rig.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        assert rig.process.poll() is None
        assert not ended
        assert stopped(server)
    finally:
        os.kill(server, signal.SIGCONT)
    staging.join(60)
    assert ended == [None]
    assert rig.process.wait(30) == 0
    assert [m.fs_type for m in mountinfo.read() if m.point == f"{rig.root}/staging"] == ["xfs"]


# ---- a file system that somebody else froze


def in_background(action: Any) -> tuple[threading.Thread, list[CallRefused | None]]:
    """Do something in a thread; the list holds how it ended."""
    ended: list[CallRefused | None] = []

    def work() -> None:
        try:
            action()
        except CallRefused as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, ended


def whole_life(rig: AgentRig, client: Client, name: str) -> None:
    """Everything that a volume can be asked for, from its making to its end."""
    volume = client.create_volume(name, SizeRange(320 * MIB), [XFS]).id
    target = use(rig, client, volume, name, XFS)
    (target / "file").write_text("served")
    snapshot = client.create_snapshot(volume, f"{name} cut")
    client.expand_volume(volume, SizeRange(400 * MIB))
    client.grow(volume, str(target))
    copy = client.create_volume(f"{name} copy", SizeRange(), [XFS], source=Source("snapshot", snapshot.id))
    free(rig, client, volume, name)
    for made in (volume, copy.id):
        client.delete_volume(made)
    client.delete_snapshot(snapshot.id)


def test_a_volume_frozen_from_outside_is_alone_with_it(rig: AgentRig, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with rig.start("--metrics-address", f"127.0.0.1:{port}") as client:
        volume = client.create_volume("frozen", SizeRange(320 * MIB), [XFS]).id
        target = use(rig, client, volume, "frozen", XFS)
        client.expand_volume(volume, SizeRange(400 * MIB))
        told(["fsfreeze", "-f", str(target)])
        with pytest.raises(CallRefused) as caught:
            client.create_snapshot(volume, "of the frozen")
        assert caught.value.code == "FAILED_PRECONDITION"
        assert "fsfreeze -u" in caught.value.message

        # Growing it hangs in the kernel, where nothing can be killed.
        began = time.monotonic()
        growing, ended = in_background(lambda: client.grow(volume, str(target)))
        time.sleep(0.5)
        whole_life(rig, client, "beside")
        looked = time.monotonic()
        assert client.probe()
        assert [node.name for node in client.tree()] == ["frozen"]
        with Stubs(rig.endpoint) as to:
            assert len(to.controller.ListVolumes(c.ListVolumesRequest(), timeout=10).entries) == 1
            assert len(to.controller.ListSnapshots(c.ListSnapshotsRequest(), timeout=10).entries) == 0
            to.controller.GetCapacity(c.GetCapacityRequest(), timeout=10)
        scrape(port)
        assert time.monotonic() - looked < 15
        assert not ended
        growing.join(100)
        given_up = time.monotonic() - began
        (refusal,) = ended
        assert refusal is not None
        assert refusal.code == "ABORTED", f"{refusal.code}: {refusal.message}"
        assert scrape(port)["tidemark_children_written_off", ()] == 1

        # From now on it answers at once, and everybody else as ever.
        began = time.monotonic()
        with pytest.raises(CallRefused) as caught:
            client.grow(volume, str(target))
        assert caught.value.code == "ABORTED"
        assert client.probe()
        assert sorted(node.name for node in client.tree()) == ["frozen"]
        assert time.monotonic() - began < 15
        whole_life(rig, client, "after")
        began = time.monotonic()
        assert rig.stop(30) == 0
        stopping = time.monotonic() - began

    began = time.monotonic()
    with rig.start("--metrics-address", f"127.0.0.1:{port}") as client:
        starting = time.monotonic() - began
        whole_life(rig, client, "again")
        assert [node.name for node in client.tree()] == ["frozen"]
        with pytest.raises(CallRefused) as caught:
            client.create_snapshot(volume, "of the frozen")
        assert "fsfreeze -u" in caught.value.message
        told(["fsfreeze", "-u", str(target)])
        snapshot = until_done(lambda: client.create_snapshot(volume, "of the thawed"))
        assert snapshot.ready
        until_done(lambda: client.grow(volume, str(target)))
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 330 * MIB
        free(rig, client, volume, "frozen")
        assert rig.stop() == 0
    with capsys.disabled():
        print(
            f"\nfrozen from outside: grow given up after {given_up:.1f} s; SIGTERM {stopping:.1f} s; start {starting:.1f} s"
        )


def test_sigterm_ends_an_agent_with_a_call_that_hangs(rig: AgentRig, capsys: pytest.CaptureFixture[str]) -> None:
    with rig.start() as client:
        volume = client.create_volume("frozen", SizeRange(320 * MIB), [XFS]).id
        target = use(rig, client, volume, "frozen", XFS)
        client.expand_volume(volume, SizeRange(400 * MIB))
        told(["fsfreeze", "-f", str(target)])
        growing, ended = in_background(lambda: client.grow(volume, str(target)))
        time.sleep(0.5)
        began = time.monotonic()
        assert rig.stop(30) == 0  # what a kubelet waits before it kills
        stopping = time.monotonic() - began
        growing.join(10)
        (refusal,) = ended
        assert refusal is not None
    with rig.start() as client:
        whole_life(rig, client, "again")
        told(["fsfreeze", "-u", str(target)])
        until_done(lambda: client.grow(volume, str(target)))
    with capsys.disabled():
        print(f"\nSIGTERM with a call that hangs in the kernel: {stopping:.1f} s; it was answered {refusal.code}")

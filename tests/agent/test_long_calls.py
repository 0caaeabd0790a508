"""Long calls, clients that go away meanwhile, and the end of an agent that is at work."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from agent_rig import AgentRig
from outside_rig import (
    Stubs,
    fork_server,
    only_its_fork_server,
    probing,
    stopped,
    until_done,
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
BLOCK = Capability("block", Mode.MULTI_WRITER)
EXTENTS = 200_000


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
    until = time.monotonic() + 30
    while not list((rig.pool / ".new").glob("*/*.img")):
        assert time.monotonic() < until
        time.sleep(0.005)


def quiet(rig: AgentRig) -> None:
    """Wait until the blocks of what was deleted are back: XFS returns hundreds of thousands of them long after the unlink, and a
    clone waits for it several times as long as it takes.
    """
    until = time.monotonic() + 120
    free = -1
    while os.listdir(rig.pool / ".trash") or free != (free := os.statvfs(rig.pool).f_bfree):
        assert time.monotonic() < until
        time.sleep(1)


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
        quiet(rig)
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

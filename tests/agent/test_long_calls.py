"""Long calls, clients that go away meanwhile, and the end of an agent that is at work."""

import fcntl
import json
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from outside_rig import Prober, Stubs, Trace, fork_server, only_its_fork_server, probing, stopped, until_done, use
from support.agent_process import AgentRig
from support.machine import why_no_pool
from support.waiting import wait_until

from csi_driver._pb import csi_pb2 as c
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.host.fs import mountinfo
from csi_driver.rpc.clients.cli_client import CallRefused, Client

# Alone: what is long here is long for a quiet machine, and the drain has a limit in the product.
pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=40), pytest.mark.timeout(400), pytest.mark.alone]

MIB = 1 << 20
XFS = Capability("mount", AccessMode.MULTI_WRITER, "xfs")
BLOCK = Capability("block", AccessMode.MULTI_WRITER)
EXTENTS = 100_000
ATTEMPTS = 6
"""At meeting a call while it works: how long that takes is the machine's affair."""
FICLONE, FIEMAP = 0x40049409, 0xC020660B


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
    """A pool with a raw block volume whose image has 100,000 extents; each test starts an agent of its own on it."""

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


def in_progress(rig: AgentRig, volume: str) -> bool:
    """Whether a call holds the volume's lock: a growth that would be refused in any case is refused for that first."""
    with Client(rig.endpoint) as other, pytest.raises(CallRefused) as caught:
        other.expand_volume(volume, SizeRange(1 << 50))
    assert caught.value.code in {"ABORTED", "OUT_OF_RANGE"}
    return caught.value.code == "ABORTED"


def takes_no_more(rig: AgentRig) -> bool:
    """Whether an agent that is ending says so to whoever calls now."""
    with Client(rig.endpoint) as late:
        try:
            late.probe()
        except CallRefused as error:
            return error.code == "UNAVAILABLE"
    return False


def longest(prober: Prober) -> str:
    took = [ended - began for began, ended in prober.asked]
    return f"{max(took) * 1000:.0f} ms of {len(took)}"


def inside(trace: Trace, rig: AgentRig, make: Callable[[str], str], delete: Callable[[str], None]) -> str:
    """Make something until three probes in all were asked and answered inside its one FICLONE; returns how long they took.

    How many one of them meets is the machine's affair. A loop that waits for the ioctl answers none in any.
    """
    met = 0
    for attempt in range(5 * ATTEMPTS):
        before = len(trace.ioctls(FICLONE))
        with probing(rig.endpoint) as prober:
            made = make(f"large {attempt}")
        (span,) = trace.ioctls(FICLONE)[before:]
        met += prober.within(*span)
        delete(made)
        if met >= 3:
            return longest(prober)
        quiet(rig)
    raise AssertionError(f"{met} probes were answered within an ioctl in {5 * ATTEMPTS} attempts")


def test_the_event_loop_goes_on_during_large_ioctls(
    big: Big, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probes are asked and answered between the beginning and the end of an ioctl, as strace saw them.

    A loop that waits for the ioctl has none there, on any machine: what was asked meanwhile is answered after it.
    """
    if shutil.which("strace") is None:
        pytest.skip("needs strace: install Debian's strace")
    with serving(big.rig) as client:
        assert big.rig.process is not None
        try:
            trace = Trace(tmp_path / "trace", big.rig.process.pid, of="ioctl")
        except OSError as error:
            pytest.skip(f"strace may not look here: {error}")
        try:
            with probing(big.rig.endpoint) as idle:
                time.sleep(1)
            walks = []
            with probing(big.rig.endpoint) as walking:
                for _ in range(3):
                    began = time.time()
                    (node,) = [
                        one for one in client.tree(volume_id=big.volume, with_usage=True) if one.kind == "volume"
                    ]
                    walks.append((began, time.time()))
                    assert node.usage is not None
                    assert node.usage.extents == EXTENTS
            cut = inside(
                trace,
                big.rig,
                lambda name: client.create_snapshot(big.volume, name).id,
                client.delete_snapshot,
            )
            snapshot = client.create_snapshot(big.volume, "large").id
            source = Source("snapshot", snapshot)
            copied = inside(
                trace,
                big.rig,
                lambda name: client.create_volume(name, SizeRange(), [BLOCK], source=source).id,
                client.delete_volume,
            )
        finally:
            trace.end()
        client.delete_snapshot(snapshot)
        assert big.rig.stop() == 0
    slices, met = trace.ioctls(FIEMAP), 0
    for began, ended in walks:
        # A walk is many calls, of 4,096 extents each: what counts is the time from the first to the last.
        mine = [(first, last) for first, last in slices if began < first and last < ended]
        assert len(mine) >= EXTENTS // 4096
        met += walking.within(mine[0][0], mine[-1][1])
    assert met >= 3
    with capsys.disabled():
        print(
            f"\nlongest answer to Probe, under strace: idle: {longest(idle)}; "
            f"three walks over {EXTENTS} extents: {longest(walking)}; "
            f"CreateSnapshot (FICLONE): {cut}; CreateVolume from it: {copied}"
        )


def at_work(rig: AgentRig, call: Any) -> None:
    """Wait until something is being made in the pool, unseen as yet, or its call has ended before that was seen."""
    wait_until(lambda: call.done() or list((rig.pool / ".new").glob("*/*.img")))


def quiet(rig: AgentRig) -> None:
    """Wait until the blocks of what was deleted are back.

    XFS returns them in the background, long after the unlink (inodegc, since Linux 5.14), and a clone waits for it several
    times as long as it takes. statfs only starts that work, and tells a number that stands still in between. But
    XFS_IOC_FREE_EOFBLOCKS ends with xfs_inodegc_flush, which waits for all of it; measured: 100,000 shared extents, free
    blocks as before right after it, where statfs went on rising for 4 s. FIFREEZE waits as well, and would hold the agent.
    """
    wait_until(lambda: not os.listdir(rig.pool / ".trash"))  # the agent's own part: it unlinks in the background too
    directory = os.open(rig.pool, os.O_RDONLY)
    try:
        version, sync = 1, 1
        fcntl.ioctl(directory, 0x8080583A, struct.pack("=6I13Q", version, sync, *[0] * 17))
    finally:
        os.close(directory)


class Left:
    """What the log says about a call under a name, and whether that was what a test wants to see."""

    def __init__(self, rig: AgentRig, method: str, name: str) -> None:
        lines = [json.loads(line) for line in rig.log.read_text().splitlines() if line.startswith("{")]
        mine = [line for line in lines if line.get("method", "").endswith(method) and line.get("name") == name]
        self.events = [(line["event"], line["code"]) for line in mine if line["code"] != "ABORTED"]
        self.at_work = self.events == [("call", "CANCELLED"), ("call finished after cancel", "OK"), ("call", "OK")]
        self.too_late = self.events[:1] == [("call", "OK")]


@pytest.mark.parametrize("going", ["deadline", "cancel", "disconnect"])
def test_a_client_that_goes_away_leaves_whole_objects(big: Big, going: str) -> None:
    rig = big.rig
    seconds = 1.0
    """The deadline. It is to pass while the clone is made; where it did not, another is tried."""

    def leave(method: Any, request: Any, stubs: Stubs) -> None:
        call = method.future(request, timeout=seconds if going == "deadline" else 60)
        at_work(rig, call)
        if going != "deadline":
            call.cancel() if going == "cancel" else stubs.channel.close()
        with suppress(grpc.RpcError, grpc.FutureCancelledError):
            call.result()

    def left(method: str, request: Any, again: Callable[[str], Any]) -> Any:
        """Go away while it works, and ask again; returns what is made then. A call that was not met at work is of no use."""
        nonlocal seconds
        for attempt in range(ATTEMPTS):
            request.name = f"{going} {method} {attempt}"
            with Stubs(rig.endpoint) as to:
                leave(getattr(to.controller, method), request, to)
            made = until_done(lambda: again(request.name))
            found = Left(rig, method, request.name)
            if found.at_work:
                return made
            delete = client.delete_snapshot if method == "CreateSnapshot" else client.delete_volume
            delete(made.id)
            quiet(rig)
            seconds *= 0.5 if found.too_late else 1.7
        raise AssertionError(f"{method} was never left while it worked; at last: {found.events}")

    with serving(rig, "--log-format", "json") as client:
        quiet(rig)
        assert rig.process is not None
        agent = rig.process.pid
        snapshot = left(
            "CreateSnapshot",
            c.CreateSnapshotRequest(source_volume_id=big.volume),
            lambda name: client.create_snapshot(big.volume, name),
        )
        source = c.VolumeContentSource(snapshot=c.VolumeContentSource.SnapshotSource(snapshot_id=snapshot.id))
        block = c.VolumeCapability(block=c.VolumeCapability.BlockVolume())
        block.access_mode.mode = c.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER
        copy = left(
            "CreateVolume",
            c.CreateVolumeRequest(volume_capabilities=[block], volume_content_source=source),
            lambda name: client.create_volume(name, SizeRange(), [BLOCK], source=Source("snapshot", snapshot.id)),
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


def test_a_client_that_goes_away_inside_a_snapshot(rig: AgentRig, client: Client) -> None:
    """The same for a file system in use, whose clone is made by a child: that stands still while the client goes."""
    volume = client.create_volume("v", SizeRange(320 * MIB), [XFS]).id
    target = use(rig, client, volume, "target", XFS)
    assert rig.process is not None
    server = fork_server(rig.process.pid)
    os.kill(server, signal.SIGSTOP)
    try:
        with Stubs(rig.endpoint) as to:
            call = to.controller.CreateSnapshot.future(c.CreateSnapshotRequest(name="s", source_volume_id=volume))
            wait_until(lambda: in_progress(rig, volume))
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
    for attempt in range(ATTEMPTS):
        with serving(rig) as client, Stubs(rig.endpoint) as to:
            quiet(rig)
            running = to.controller.CreateSnapshot.future(
                c.CreateSnapshotRequest(name=f"at the end {attempt}", source_volume_id=big.volume), timeout=60
            )
            at_work(rig, running)
            assert rig.process is not None
            rig.process.send_signal(signal.SIGTERM)
            wait_until(lambda: takes_no_more(rig))
            in_between = not running.done()
            made = running.result().snapshot
            assert made.ready_to_use
            assert rig.process.wait(60) == 0
        with serving(rig) as client:
            assert made.snapshot_id in [node.id for node in client.tree()]
            client.delete_snapshot(made.snapshot_id)
            assert rig.stop() == 0
        if in_between:
            return
    raise AssertionError("no call was still running when the agent took no more")


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
        wait_until(lambda: in_progress(rig, volume))
        rig.process.send_signal(signal.SIGTERM)
        wait_until(lambda: takes_no_more(rig))
        time.sleep(0.5)  # for what must not happen: it does not end
        assert rig.process.poll() is None
        assert not ended
        assert stopped(server)
    finally:
        os.kill(server, signal.SIGCONT)
    staging.join(60)
    assert ended == [None]
    assert rig.process.wait(30) == 0
    assert [m.fs_type for m in mountinfo.read() if m.point == f"{rig.root}/staging"] == ["xfs"]

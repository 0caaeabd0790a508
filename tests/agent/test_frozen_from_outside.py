"""A volume whose file system somebody else froze: it is alone with that, and the agent can end."""

import os
import threading
import time
from typing import Any

import pytest
from outside_rig import Stubs, free, scrape, told, until_done, use
from support.agent_process import AgentRig
from support.ports import free_port

from csi_driver._pb import csi_pb2 as c
from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import CallRefused, Client

pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=60), pytest.mark.timeout(200)]

MIB = 1 << 20
XFS = Capability("mount", AccessMode.MULTI_WRITER, "xfs")


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
        assert client.probe()
        assert [node.name for node in client.tree()] == ["frozen"]
        with Stubs(rig.endpoint) as to:
            assert len(to.controller.ListVolumes(c.ListVolumesRequest(), timeout=10).entries) == 1
            assert len(to.controller.ListSnapshots(c.ListSnapshotsRequest(), timeout=10).entries) == 0
            to.controller.GetCapacity(c.GetCapacityRequest(), timeout=10)
        scrape(port)
        assert not ended, "all that was answered while it hung"
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
        assert time.monotonic() - began < given_up, "it waited once more"
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

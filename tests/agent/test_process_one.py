"""An agent that is process 1 of its container, killed inside a freeze: nothing stays frozen."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.agent_process import AgentRig
from support.files import fragment
from support.waiting import wait_until

from csi_driver.domain.model import AccessMode, Capability, SizeRange
from csi_driver.rpc.clients.cli_client import CallRefused, Client

MOUNT = Capability("mount", AccessMode.MULTI_WRITER, "xfs")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_a_killed_container_leaves_nothing_frozen(rig: AgentRig, tmp_path: Path) -> None:
    # A pid and a mount namespace of its own, as a container has; what dies with them is unmounted, frozen or not.
    rig.prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with rig.start("--freeze-deadline", "30") as client:
        assert rig.process is not None
        (init,) = children_of(rig.process.pid)
        agent = next(pid for pid in children_of(init) if "csi_driver" in command_of(pid))
        inside = Path(f"/proc/{init}/root")
        volume = client.create_volume("v", SizeRange(1 << 30), [MOUNT])
        staging = tmp_path / "staging"
        staging.mkdir()
        client.stage(volume.id, str(staging), MOUNT)
        device = client.tree()[0].device.removeprefix("/dev/")
        fragment(f"{inside}{staging}/file", 40_000)

        def cut() -> None:
            with suppress(CallRefused), Client(rig.endpoint) as other:
                other.create_snapshot(volume.id, "s")

        caller = threading.Thread(target=cut)
        caller.start()
        announced = Path(f"{inside}{rig.pool}/.freeze")
        wait_until(lambda: any(announced.glob("*.json")), "a freeze is in the journal")
        alive = Path(f"/sys/fs/xfs/{device}")
        assert alive.exists()
        time.sleep(0.15)
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: rig.process.poll() is not None, "the container ends")  # type: ignore[union-attr]
        caller.join(30)
    assert rig.process.returncode == 128 + signal.SIGKILL
    # A file system that was unmounted frozen would stay alive without a mount.
    wait_until(lambda: not alive.exists(), "the file system is gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_one_ends_in_order(rig: AgentRig, number: signal.Signals) -> None:
    rig.prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with rig.start():
        assert rig.process is not None
        (init,) = children_of(rig.process.pid)
        os.kill(init, number)
        assert rig.process.wait(60) == 0

"""A real agent in a process of its own, on a real pool: started, killed, started again, and cleaned up after."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from csi_driver.host.block import loop
from csi_driver.host.fs import mountinfo
from csi_driver.rpc.clients.cli_client import CallRefused, Client
from support.machine import KIND

START_SECONDS = 30.0 if KIND == "reflink" else 300.0
"""Only to end what hangs; a command of lvm takes half a second in the machine of tests/lvm, and ten times that on a busy one."""


def ready(endpoint: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float = START_SECONDS) -> Client:
    """Wait until Probe says that the agent is ready."""
    until = time.monotonic() + seconds
    while True:
        client = Client(endpoint)
        try:
            if client.probe():
                return client
        except CallRefused:
            pass
        client.close()
        assert process.poll() is None, f"the agent ended:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < until, f"the agent is not ready:\n{log.read_text()[-4000:]}"
        time.sleep(0.05)


class AgentRig:
    """One agent on a pool image below `root`. `kill` is a crash; `stop` is a SIGTERM."""

    def __init__(self, root: Path, size: str = "8Gi", *options: str, tree: Path | None = None) -> None:
        """`tree` is another checkout of Tidemark with a `.venv`, whose agent is started instead of this one's."""
        self.root = root
        self.tree = tree
        self.image = root / "pool.img"
        self.pool = root / "pool"
        self.endpoint = f"unix://{root}/csi.sock"
        self.log = root / "agent.log"
        self._size = size
        self._options = options
        self.prefix: list[str] = []
        """What the agent is started by, such as `unshare` with its options."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> Client:
        """Start the agent and wait until Probe says that it is ready."""
        python = str(self.tree / ".venv/bin/python") if self.tree else sys.executable
        argv = [*self.prefix, python, "-m", "csi_driver.cli.main", "agent", "--endpoint", self.endpoint]
        argv += self.pool_options()
        if self.tree is None or "--runtime-dir" in (self.tree / "csi_driver/cli/agent.py").read_text():
            argv += ["--runtime-dir", str(self.root / "run")]
        argv += ["--reserve", "64Mi", "--overcommit", "100", "--node-name", "node1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*argv, *self._options, *options], stdout=log, stderr=log, cwd=self.tree)
        return ready(self.endpoint, self.process, self.log)

    def pool_options(self) -> list[str]:
        """What tells the agent its pool."""
        image = ["--pool-image", str(self.image), "--pool-size", self._size, "--pool-image-sparse"]
        return [*image, "--pool-mount", str(self.pool)]

    def left(self) -> list[str]:
        """What is left of objects in the pool and of their devices, where nothing may be."""
        names = ("volumes", "snapshots", "groups", ".new", ".trash")
        found = [f"{name}/{path.name}" for name in names for path in (self.pool / name).iterdir()]
        for device in loop.scan("disk.img"):
            if (backing := _backing(device.number)).startswith(f"{self.root}/"):
                found.append(f"{device.path}: {backing}")
        return found

    def kill(self) -> None:
        """SIGKILL to the agent alone, as the kernel's out-of-memory killer would: its children are told by EOF."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def clean(self) -> None:
        """End the agent and take away every mount and loop device below `root`."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        prefix = f"{self.root}/"
        for _ in range(600):
            ours = [m for m in mountinfo.read() if m.point.startswith(prefix)]
            pool = [d for d in loop.scan(self.image.name) if _backing(d.number).startswith(prefix)]
            # By the file system that holds the image: its path means nothing once its mount namespace is gone.
            pools = {os.makedev(d.major, d.minor) for d in pool}
            devices = [d for d in loop.scan("disk.img") if d.backing[0] in pools]
            if not ours and not devices and not pool:
                self.image.unlink(missing_ok=True)  # gigabytes, in a directory that pytest keeps
                return
            inner = [m for m in reversed(ours) if m.point != str(self.pool)]
            for mount in inner or (ours if not devices else []):
                subprocess.run(["fsfreeze", "-u", mount.point], check=False, capture_output=True)
                subprocess.run(["umount", mount.point], check=False, capture_output=True)
            for device in devices or (pool if not ours else []):
                subprocess.run(["losetup", "-d", device.path], check=False, capture_output=True)
            time.sleep(0.05)
        raise AssertionError(f"left behind: {[m.point for m in ours]} {[d.path for d in (*devices, *pool)]}")


def _backing(number: int) -> str:
    try:
        return Path(f"/sys/block/loop{number}/loop/backing_file").read_text().strip()
    except OSError:
        return ""

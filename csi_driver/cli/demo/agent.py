"""The demo's own agent: a subprocess with a pool in a temporary directory. Nothing remains of it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.cli.common import Failure
from csi_driver.cli.demo.lvm_pool import LvmPool
from csi_driver.cli.demo.pools import NODE, TIDEMARK, DemoPool, ImagePool, Kind, MemoryPool, clean_environment, run

START = 60.0
"""Seconds until the agent must answer, including mkfs and the first mount."""
STOP = 30.0
"""Seconds from SIGTERM to SIGKILL."""

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CAP_SYS_ADMIN = 21
_LONGEST_SOCKET = 100
"""A socket's path has at most 107 bytes."""


def why_not_reflink() -> str:
    """Return why this process cannot have a pool on XFS; empty if it can."""
    if os.geteuid() != 0:
        return "loop devices and mounts need root"
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    if not effective >> _CAP_SYS_ADMIN & 1:
        return "this container must not mount: no CAP_SYS_ADMIN"
    if not Path("/dev/loop-control").exists():
        return "/dev/loop-control does not exist"
    missing = [tool for tool in ("mkfs.xfs", "mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"not found: {', '.join(missing)} of xfsprogs, e2fsprogs, util-linux"
    return ""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals that end the demo until the end of the block. Children start with their own handlers."""
    pending: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: pending.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for ending in pending[:1]:
            signal.raise_signal(ending)


class DemoAgent:
    """Start it, use `endpoint`, stop it, and check what is `remaining`. `reason`: why the pool is in memory."""

    def __init__(self, kind: Kind, reason: str = "") -> None:
        self.root = Path(tempfile.mkdtemp(prefix="tidemark-demo-"))
        if len(str(self.root)) > _LONGEST_SOCKET - len("/csi.sock"):
            self.root.rmdir()
            self.root = Path(tempfile.mkdtemp(prefix="tidemark-demo-", dir="/tmp"))
        # Without links, as the kernel shows it in mountinfo.
        self.root = self.root.resolve()
        self._socket = self.root / "csi.sock"
        self._log = self.root / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.pool = _pool(kind, self.root, reason)

    @property
    def endpoint(self) -> str:
        """Its CSI socket."""
        return f"unix://{self._socket}"

    @property
    def running(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    def has_ended(self, seconds: float = 1.0) -> bool:
        """Return whether it has ended, or does so within `seconds`: a killed process closes its socket before it can be reaped."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        return not self.running

    def start(self) -> None:
        """Start it and wait until it answers. Raises Failure with the end of its log."""
        self.pool.make()
        # An interruption between the fork and the assignment would leave an unknown agent.
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(
                [
                    *(*TIDEMARK, "agent", *self.pool.options()),
                    *("--endpoint", self.endpoint, "--node-name", NODE),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                # Ctrl-C is for the demo, which stops the agent after its clean-up.
                start_new_session=True,
            )
        end = time.monotonic() + START
        while not self._answers():
            if self._process.poll() is not None:
                raise Failure(self.describe_failure())
            if time.monotonic() > end:
                raise Failure(self.describe_failure(f"has not answered within {START:.0f} s"))
            time.sleep(0.02)

    def stop(self) -> int:
        """End it by SIGTERM and return its exit code. Does nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -signal.SIGKILL

    def remove(self) -> None:
        """Unmount the pool and remove the directory, once nothing is mounted in it."""
        end = time.monotonic() + 10.0
        while True:
            # Retried: the pool can go only after the devices of the disks in it, and those after their mounts.
            for point in sorted(self._mounts(), reverse=True):
                run("umount", point)
            self.pool.remove()
            if not (self._mounts() or self.pool.remaining()) or time.monotonic() > end:
                break
            time.sleep(0.05)
        if not self._mounts():
            shutil.rmtree(self.root, ignore_errors=True)

    def remaining(self) -> list[str]:
        """Return what still exists: mounts, loop devices, processes, files. Read from the kernel."""
        remaining = [f"mount {point}" for point in self._mounts()] + self.pool.remaining()
        if self.root.exists():
            remaining.append(f"directory {self.root}")
        return remaining + [f"process {pid}" for pid in self._processes()]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
        from csi_driver.rpc.clients.cli_client import CallRefused, Client

        with Client(self.endpoint) as client:
            try:
                return client.probe()
            except CallRefused:
                return False

    def describe_failure(self, event: str = "") -> str:
        """Return what happened to the agent, with the end of its log."""
        if not event and self._process is not None:
            event = f"ended with exit code {self._process.poll()}"
        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        hint = "; `tidemark demo --memory` needs neither root nor XFS" if self.pool.mounting else ""
        return "\n".join([f"the demo's agent {event}{hint}. Its log:", *lines])

    def _mounts(self) -> list[str]:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            points = [line.split()[4] for line in mounts]
        return [point for point in points if Path(point).is_relative_to(self.root)]

    def _processes(self) -> list[str]:
        """Return processes with this directory in their command line: the agent and its children."""
        pids = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self.root) in entry.read_text(errors="replace") and entry.parts[2] != str(os.getpid()):
                    pids.append(entry.parts[2])
        return pids


def _pool(kind: Kind, root: Path, reason: str) -> DemoPool:
    if kind == "memory":
        return MemoryPool(reason)
    return ImagePool(root) if kind == "reflink" else LvmPool(root)

"""The demo's own agent: a subprocess with a pool in a temporary directory. Nothing remains of it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_driver.cli.common import Failure

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
    """Start it, use `endpoint`, stop it, and check what is `remaining`."""

    def __init__(self, in_memory: bool) -> None:
        self.in_memory = in_memory
        self.root = Path(tempfile.mkdtemp(prefix="tidemark-demo-"))
        if len(str(self.root)) > _LONGEST_SOCKET - len("/csi.sock"):
            self.root.rmdir()
            self.root = Path(tempfile.mkdtemp(prefix="tidemark-demo-", dir="/tmp"))
        # Without links, as the kernel shows it in mountinfo.
        self.root = self.root.resolve()
        self._socket = self.root / "csi.sock"
        self._log = self.root / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None

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
        pool = ["--pool", "demo=memory:"]
        if not self.in_memory:
            pool = [
                *("--pool-image", f"{self.root}/pool.img", "--pool-size", "1Gi", "--pool-image-sparse"),
                *("--pool-mount", f"{self.root}/pool", "--reserve", "64Mi"),
            ]
        # The settings of another agent must not reach this one.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))}
        # Nor code in the current directory: this may run as root.
        environment["PYTHONSAFEPATH"] = "1"
        # An interruption between the fork and the assignment would leave an unknown agent.
        with self._log.open("wb") as log, uninterrupted():
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "csi_driver.cli.main", "agent", *pool),
                    *("--endpoint", self.endpoint, "--node-name", "demo"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
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
                self._run("umount", point)
            for device in self._loops():
                self._run("losetup", "--detach", device)
            if not (self._mounts() or self._loops()) or time.monotonic() > end:
                break
            time.sleep(0.05)
        if not self._mounts():
            shutil.rmtree(self.root, ignore_errors=True)

    def remaining(self) -> list[str]:
        """Return what still exists: mounts, loop devices, processes, files. Read from the kernel."""
        remaining = [f"mount {point}" for point in self._mounts()] + [f"loop device {d}" for d in self._loops()]
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
        hint = "" if self.in_memory else "; `tidemark demo --memory` needs neither root nor XFS"
        return "\n".join([f"the demo's agent {event}{hint}. Its log:", *lines])

    def _mounts(self) -> list[str]:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            points = [line.split()[4] for line in mounts]
        return [point for point in points if Path(point).is_relative_to(self.root)]

    def _loops(self) -> list[str]:
        devices = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if backing.read_text().startswith(f"{self.root}/"):
                    devices.append(f"/dev/{backing.parts[3]}")
        return devices

    def _processes(self) -> list[str]:
        """Return processes with this directory in their command line: the agent and its children."""
        pids = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self.root) in entry.read_text(errors="replace") and entry.parts[2] != str(os.getpid()):
                    pids.append(entry.parts[2])
        return pids

    def _run(self, *command: str) -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=STOP, check=False)

"""What stands around an agent when it is looked at from outside: disks to give it, its processes, its figures, its log."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families
from support.agent_process import AgentRig

from csi_driver._pb import csi_pb2_grpc
from csi_driver.domain.model import Capability
from csi_driver.host.fs import mountinfo
from csi_driver.rpc.clients.cli_client import CallRefused, Client

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
if "PYTHONPATH" in os.environ:  # a tree that is tested without being installed
    ENVIRONMENT["PYTHONPATH"] = os.environ["PYTHONPATH"]
TIDEMARK = (sys.executable, "-m", "csi_driver.cli.main")

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def use(rig: AgentRig, client: Client, volume: str, name: str, how: Capability) -> Path:
    """Stage and publish as a kubelet does; returns where."""
    staging, target = rig.root / f"{name}.staging", rig.root / name
    staging.mkdir(exist_ok=True)
    client.stage(volume, str(staging), how)
    client.publish(volume, str(staging), str(target), how)
    return target


def free(rig: AgentRig, client: Client, volume: str, name: str) -> None:
    client.unpublish(volume, str(rig.root / name))
    client.unstage(volume, str(rig.root / f"{name}.staging"))


class Disk:
    """A disk with a file system, mounted below `root`: what an administrator gives to --pool."""

    def __init__(self, root: Path, name: str, *mkfs: str) -> None:
        self.image, self.path = root / f"{name}.disk", root / name
        with self.image.open("wb") as file:
            file.truncate(512 << 20)
        self.path.mkdir()
        told([*mkfs, str(self.image)])
        self.device = told(["losetup", "--find", "--show", str(self.image)]).strip()
        told(["mount", self.device, str(self.path)])

    def clean(self) -> None:
        """Unmount it with all that is mounted below, and give the device back."""
        for mount in reversed(mountinfo.read()):
            if mount.point == str(self.path) or mount.point.startswith(f"{self.path}/"):
                told(["umount", mount.point])
        told(["losetup", "-d", self.device])
        self.image.unlink()


def told(argv: list[str]) -> str:
    """What a command says; it must succeed."""
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, f"{argv} ended with {run.returncode}: {run.stderr}"
    return run.stdout


def agent_of(arguments: list[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """Start an agent with these arguments and variables, and nothing else."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [*TIDEMARK, "agent", *arguments], env={**ENVIRONMENT, **environment}, stdout=file, stderr=file
        )


def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run an agent that is not to start; returns its status and what it says."""
    run = subprocess.run(
        [*TIDEMARK, "agent", *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def scrape(port: int) -> Figures:
    """All samples of /metrics by name and labels; each has the node's name, which is left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("node"), sample
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


class Stubs:
    """The protocol itself, for what the client of the command line does not send."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(endpoint)
        channel: Any = self.channel  # the stubs are typed for grpc.aio's
        self.controller: Any = csi_pb2_grpc.ControllerStub(channel)
        self.groups: Any = csi_pb2_grpc.GroupControllerStub(channel)
        self.node: Any = csi_pb2_grpc.NodeStub(channel)
        self.identity: Any = csi_pb2_grpc.IdentityStub(channel)

    def __enter__(self) -> "Stubs":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def descendants(pid: int) -> dict[int, tuple[int, str]]:
    """All living processes below one, each with its parent and what it runs; zombies are not living."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(entry)] = (int(parent), command)
    found: dict[int, tuple[int, str]] = {}
    left = [pid]
    while left:
        above = left.pop()
        below = {child: known for child, known in parents.items() if known[0] == above}
        found |= below
        left += below
    return found


def fork_server(pid: int) -> int:
    """The agent's one lasting child; what it forks looks like it at first."""
    (found,) = [
        child
        for child, (parent, command) in descendants(pid).items()
        if parent == pid and "host.helper.server" in command
    ]
    return found


def only_its_fork_server(pid: int, seconds: float = 30.0) -> None:
    """No process is left below the agent but the one that always is."""
    server, until = fork_server(pid), time.monotonic() + seconds
    while others := {child: command for child, (_, command) in descendants(pid).items() if child != server}:
        assert time.monotonic() < until, f"processes left behind: {others}"
        time.sleep(0.05)


def stopped(pid: int) -> bool:
    """Whether a process stands still after SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z) \[(?P<level>\w+) *\] (?P<rest>.*)")
_FIELD = re.compile(r"(?P<key>[a-z_]+)=(?P<value>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)(?: |$)")


def parse_console(line: str) -> dict[str, str]:
    """The fields of a line for people; an assertion where it is no such line."""
    match = _LINE.fullmatch(line)
    assert match, f"not a line of the log: {line!r}"
    rest = match["rest"]
    first = _FIELD.search(rest)
    event, fields = (rest[: first.start()], rest[first.start() :]) if first else (rest, "")
    left = _FIELD.sub("", fields).strip()
    assert not left, f"{left!r} is no field, in {line!r}"
    found = {m["key"]: m["value"] for m in _FIELD.finditer(fields)}
    unquoted = {key: shlex.split(value)[0] if value[:1] in "'\"" else value for key, value in found.items()}
    return {"event": event.strip(), "level": match["level"], "timestamp": match["time"], **unquoted}


class Prober:
    """Asks Probe every five milliseconds and remembers from when to when (of the clock on the wall) each answer took."""

    def __init__(self, endpoint: str) -> None:
        self.asked: list[tuple[float, float]] = []
        self.error: BaseException | None = None
        self._client = Client(endpoint)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                began = time.time()
                assert self._client.probe()
                self.asked.append((began, time.time()))
                self._over.wait(0.005)
        except BaseException as error:
            self.error = error

    def within(self, began: float, ended: float) -> int:
        """How many were asked and answered between two moments."""
        return sum(began < first and last < ended for first, last in self.asked)

    def end(self) -> None:
        self._over.set()
        self._thread.join(30)
        self._client.close()
        assert self.error is None, self.error


@contextmanager
def probing(endpoint: str) -> Iterator[Prober]:
    """Probe while the block runs."""
    prober = Prober(endpoint)
    try:
        until = time.monotonic() + 30
        while not prober.asked and time.monotonic() < until:
            time.sleep(0.001)
        prober.asked.clear()  # the first one connects
        yield prober
    finally:
        prober.end()


class Trace:
    """strace of everything that a set of processes does about processes, or of other calls."""

    def __init__(self, out: Path, *pids: int, of: str = "process") -> None:
        self._out = out
        which = [word for pid in pids for word in ("-p", str(pid))]
        argv = ["strace", "-f", "-qq", "-ttt", "-T", "-e", f"trace={of}", "-e", "raw=ioctl", "-e", "signal=none"]
        argv += ["-o", str(out), *which]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + 30
        while not all(self._traces(pid) for pid in pids):
            if self._process.poll() is not None or time.monotonic() > until:
                assert self._process.stderr is not None
                self._process.kill()
                raise OSError(self._process.stderr.read().decode())
            time.sleep(0.02)

    def _traces(self, pid: int) -> bool:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return all(f"TracerPid:\t{self._process.pid}\n" in (task / "status").read_text() for task in tasks)

    def started(self) -> list[str]:
        """The calls since the beginning that made a process or became another program; threads are none."""
        lines = self._out.read_text().splitlines()
        calls = [line for line in lines if re.search(r" (v?fork|clone3?|execveat|execve)\(", line)]
        return [line for line in calls if "CLONE_THREAD" not in line]

    def ioctls(self, number: int) -> list[tuple[float, float]]:
        """From when to when each ioctl of this number took, by the clock on the wall; complete once the trace has ended."""
        spans, entered = [], set()
        for line in self._out.read_text().splitlines():
            thread, at, rest = line.split(maxsplit=2)
            if f", {number:#x}, " in rest and rest.endswith("<unfinished ...>"):
                entered.add(thread)
            elif match := re.search(r"<([\d.]+)>$", rest):
                if f", {number:#x}, " in rest:
                    spans.append((float(at), float(at) + float(match[1])))
                elif rest.startswith("<... ioctl resumed>") and thread in entered:
                    entered.remove(thread)
                    spans.append((float(at) - float(match[1]), float(at)))
        return spans

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(10)
        assert self._process.stderr is not None
        self._process.stderr.close()


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

"""A set of services under one process 1: the control plane, or a node. It outlives whoever started it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervisor.py")


class RigError(Exception):
    """The cluster is not what it should be; the message says what, and where to look."""


def command(*argv: object, timeout: float = 60.0, check: bool = True) -> str:
    """Run a command of the machine. Raises RigError with what it said, unless not to be checked."""
    run = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if check and run.returncode:
        raise RigError(f"{' '.join(map(str, argv))}: status {run.returncode}: {run.stderr.strip()[-2000:]}")
    return run.stdout


def until(what: str, holds: Callable[[], object], seconds: float, pause: float = 0.1) -> None:
    """Wait until `holds` says so. Raises RigError, naming `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RigError(f"waited for {seconds:.0f} s, in vain: {what}")
        time.sleep(pause)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def born(pid: int) -> str:
    """When the process began, in the kernel's ticks: with its number, that tells it from any other. Empty: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Machine:
    """`directory` holds its specification, its logs, and who its process 1 is. The process names what it runs by
    `services`; commands that make its world, such as mounts, come first (`prepare`)."""

    def __init__(self, directory: Path, hostname: str = "") -> None:
        self.directory = directory
        self.hostname = hostname
        self.logs = directory / "logs"
        self.held = directory / "held"
        self._process = directory / "process.json"

    def start(
        self, enter: Sequence[object], prepare: Sequence[Sequence[object]], services: dict[str, list[str]]
    ) -> None:
        """Switch it on: `enter` is the command that makes its namespaces and runs what follows in them, as process 1."""
        assert not self.running(), f"{self.directory.name} is on already"
        for directory in (self.logs, self.held):
            directory.mkdir(parents=True, exist_ok=True)
        for note in self.held.iterdir():
            note.unlink()
        spec = self.directory / "spec.json"
        prepared = [[str(word) for word in argv] for argv in prepare]
        where = {"logs": str(self.logs), "held": str(self.held)}
        spec.write_text(json.dumps({"hostname": self.hostname, "prepare": prepared, "services": services, **where}))
        with (self.logs / "supervisor.log").open("ab") as log:
            outer = subprocess.Popen(
                [*map(str, enter), sys.executable, "-I", str(SUPERVISOR), str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        until(f"process 1 of {self.directory.name}", lambda: children(outer.pid) or outer.poll() is not None, 10, 0.01)
        if outer.poll() is not None:
            raise RigError(f"{self.directory.name} did not start: see {self.logs}/supervisor.log")
        first = children(outer.pid)[0]
        self._process.write_text(json.dumps({"pid": first, "born": born(first)}))

    @property
    def pid(self) -> int:
        """The number of its process 1, as seen from outside. Raises RigError where it is off."""
        try:
            noted = json.loads(self._process.read_text())
        except FileNotFoundError:
            noted = {"pid": 0, "born": ""}
        if not noted["born"] or born(noted["pid"]) != noted["born"]:
            raise RigError(f"{self.directory.name} is off")
        return int(noted["pid"])

    def running(self) -> bool:
        try:
            return self.pid > 0
        except RigError:
            return False

    def cut(self) -> None:
        """Kill process 1, and so everything in its PID namespace; wait until the kernel has cleaned up after it."""
        if not self.running():
            return
        pid = self.pid
        namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
        os.kill(pid, signal.SIGKILL)
        until(f"the end of {self.directory.name}", lambda: not born(pid) and not _any_in(namespace), 30, 0.05)

    def service(self, name: str) -> int:
        """The number of the process that is service `name` now, as seen from outside; 0: it is not running."""
        spec = json.loads((self.directory / "spec.json").read_text())
        program = Path(spec["services"][name][0]).name
        for pid in children(self.pid):
            try:
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if Path(os.fsdecode(argv[0])).name == program and born(pid):
                return pid
        return 0

    def kill(self, name: str) -> None:
        """Kill a service as the kernel's out-of-memory killer would; process 1 starts it again after a moment."""
        pid = self.service(name)
        assert pid, f"{name} of {self.directory.name} is not running"
        os.kill(pid, signal.SIGKILL)
        until(f"the end of {name}", lambda: not born(pid), 10, 0.02)

    def hold(self, name: str) -> None:
        """Kill a service and keep it from being started again, until `resume`."""
        (self.held / name).touch()
        self.kill(name)

    def resume(self, name: str) -> None:
        (self.held / name).unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGHUP)


def _any_in(pid_namespace: int) -> bool:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == pid_namespace and born(int(entry)):
                    return True
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return False

"""Process 1 of a node, and of the control plane: makes the mounts, starts the services, starts again what ends, reaps.

    python3 supervisor.py SPEC.json

The specification: `hostname`, `prepare` (commands, once at the start), `services` (name -> command), `logs` and `held`
(directories). A service is not started while a file of its name lies in `held`; SIGHUP makes it read that again. When
this process is killed, all of its PID namespace is: that is a node's power switch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

AGAIN_SECONDS = 0.5
"""As systemd would, a service that ended is started again after a moment."""


def drop_foreign_mounts() -> None:
    """Let go of the file systems on loop devices that this mount namespace has got a copy of.

    They are those of others on this machine, which could not be given back before the node is gone.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for line in reversed(lines):
        fields, _, source = line.partition(" - ")
        if source.split()[1].startswith("/dev/loop"):
            point = fields.split()[4].encode().decode("unicode_escape")
            if point != "/":
                subprocess.run(["umount", "--lazy", point], check=False)


class Supervisor:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.running: dict[int, str] = {}

    def start_missing(self) -> None:
        for name, argv in self.spec["services"].items():
            if name in self.running.values() or (Path(self.spec["held"]) / name).exists():
                continue
            with (Path(self.spec["logs"]) / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            self.running[process.pid] = name

    def reap(self) -> bool:
        """Reap all that has ended. Says whether a service was among it."""
        ended = False
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            ended |= self.running.pop(pid, None) is not None

    def run(self) -> None:
        awaited = {signal.SIGCHLD, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        while True:
            if self.reap():
                time.sleep(AGAIN_SECONDS)
            self.start_missing()
            signal.sigwait(awaited)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["hostname"]:
        socket.sethostname(spec["hostname"])
        drop_foreign_mounts()
    for argv in spec["prepare"]:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    Supervisor(spec).run()


if __name__ == "__main__":
    main()

"""The parent's side of what is killed: the server that forks it, one order at a time."""

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATHS = [str(path) for path in (HERE, HERE.parent, HERE.parents[1])]
"""Where a process of this suite imports from."""
HANGS = 120.0
"""Seconds after which a run is given up."""


@dataclass
class Killed:
    """What became of one run."""

    points: list[str]
    acknowledged: bool
    status: int


class Killer:
    """The server that forks what is to be killed."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "crash_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)},
        )

    def run(
        self,
        scenario: str,
        pool: Path,
        place: Path,
        stop: int = 0,
        *,
        how: str = "kill",
        deep: bool = True,
        children: bool = False,
        jobs: bool = False,
        kind: str = "reflink",
    ) -> Killed:
        order = {"kind": kind, "scenario": scenario, "pool": str(pool), "place": str(place), "stop": stop}
        order |= {"how": how, "deep": deep, "children": children, "jobs": jobs}
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], HANGS)[0]:
            self._process.kill()
            self.stop()
            self._start()  # for the next test
            raise AssertionError(f"{scenario}, point {stop}: something hangs")
        answer = json.loads(self._process.stdout.readline())
        assert not answer["failed"], answer["failed"]
        assert answer["status"] == (-9 if stop else 0), answer
        return Killed(answer["points"], answer["acknowledged"], answer["status"])

    def stop(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

"""Types `tidemark` commands for the demo: in a child in which Python runs already, so that a command's own time is measured.

The child calls what the installed command calls, with the same arguments, and answers with what that printed. It knows the
demo's agent by the variables that a person would set: CSI_ENDPOINT and TIDEMARK_STAGING.
"""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from csi_driver.cli.common import Failure

CLOSE_SECONDS = 10.0
"""For a command that is running when the demo is interrupted."""


@dataclass(frozen=True, slots=True)
class Typed:
    """What one command did: its exit code, what it printed, and how long it took without the start of Python."""

    code: int
    output: str
    milliseconds: float


class Typist:
    """A child that runs one command after the other, in `directory`."""

    def __init__(self, endpoint: str, staging: Path, directory: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))}
        environment |= {"CSI_ENDPOINT": endpoint, "TIDEMARK_STAGING": str(staging), "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "csi_driver.cli.demo.typist"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=directory,
            # Ctrl-C is for the demo, which ends this child.
            start_new_session=True,
        )

    def __enter__(self) -> "Typist":
        try:
            self.type("status")  # loads what all commands load
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def type(self, *words: str) -> Typed:
        """Run `tidemark` with these words. Raises Failure if it is refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        command = " ".join(("tidemark", *words))
        if not answer:
            raise Failure(f"demo: the process that ran `{command}` has ended")
        typed = Typed(**json.loads(answer))
        if typed.code:
            raise Failure(f"demo: `{command}` ended with exit code {typed.code}: {typed.output}")
        return typed

    def close(self) -> None:
        """End the child, and a command in it that does not end by itself."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_commands(lines: TextIO, answers: TextIO) -> None:
    """Run the command of each line, a JSON list of words, and write its Typed as a line of JSON."""
    for line in lines:
        answers.write(json.dumps(asdict(_run(json.loads(line)))) + "\n")
        answers.flush()


def _run(words: list[str]) -> Typed:
    from csi_driver.cli.main import main

    printed, code = io.StringIO(), 0
    sys.argv = ["tidemark", *words]
    started = time.perf_counter()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Typed(code, printed.getvalue().strip(), (time.perf_counter() - started) * 1000)


if __name__ == "__main__":
    run_commands(sys.stdin, sys.stdout)

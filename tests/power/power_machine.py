"""A machine whose power can be cut: user-mode Linux on an image file, started, heard, killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.machine import KIND
from support.uml_boot import BASELINE, BOOT

from csi_driver.host.fs import filesystems

HERE = Path(__file__).parent
POOL_SIZE = 4 << 30


class PowerMachine:
    """One disk, and one boot after the other on it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._disk = place / "disk.img"
        self.console: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        with self._disk.open("wb") as file:
            file.truncate(POOL_SIZE)
        if KIND == "reflink":
            subprocess.run(filesystems.pool_mkfs_argv(self._disk), check=True)

    def boot(self, step: str, seed: int) -> Iterator[dict[str, Any]]:
        """Switch the machine on; what its program says, until it is off."""
        environment = {
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}",
            "TIDEMARK_TEST_BACKEND": KIND,
            "GUEST": str(HERE / "power_guest.py"),
            "STEP": step,
            "SEED": str(seed),
            **BASELINE,
        }
        argv = [sys.executable, str(BOOT), "linux.uml", "mem=768M", f"ubda={self._disk}"]
        argv += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'power_init.sh'}"]
        argv += [
            f"uml_dir={self._place}/",
            "con=null",
            "con0=null,fd:1",
            "quiet",
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        with self._process as process:
            assert process.stdout
            for line in process.stdout:
                self.console.append(line.rstrip())
                if line.startswith("@ ") and line.endswith("\n"):
                    yield json.loads(line[2:])
            self.cut()

    def cut(self) -> None:
        """Cut the power: whatever was not on the disk is gone. What the machine had said can still be heard."""
        if self._process is not None:
            # Every process inside is one of the host's too, of the same group.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

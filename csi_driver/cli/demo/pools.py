"""The demo's pool, of one of three kinds: how an agent is told of it, what must be made before, and what must be gone after."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["memory", "reflink", "lvm"]

TIDEMARK = (sys.executable, "-m", "csi_driver.cli.main")
"""The command of this installation."""
NODE = "demo"
"""The name of the demo's node."""

_STOP = 30.0
_SIZE = "1Gi"


class DemoPool(Protocol):
    """A pool of the demo, in the demo's own directory."""

    where: str
    """The end of `An agent of its own, ...`."""
    summary: str
    """The end of `All checks passed on ...`."""
    mounting: bool
    """Its volumes can be mounted."""

    def options(self) -> list[str]:
        """Return the options of the agent."""

    def make(self) -> None:
        """Make what the agent does not make itself. Raises Failure."""

    def remove(self) -> None:
        """Remove it, as far as it is not in use; again is fine."""

    def remaining(self) -> list[str]:
        """Return what still exists besides mounts and files, by the kernel."""


class MemoryPool:
    """A pool in the agent's memory. `reason`: why it is that."""

    mounting = False

    def __init__(self, reason: str) -> None:
        self.where, self.summary = f"in memory ({reason})", f"the in-memory backend ({reason})"

    def options(self) -> list[str]:
        """See DemoPool."""
        return ["--pool", "demo=memory:"]

    def make(self) -> None:
        """See DemoPool."""

    def remove(self) -> None:
        """See DemoPool."""

    def remaining(self) -> list[str]:
        """See DemoPool."""
        return []


class ImagePool:
    """A pool on XFS in a file, which the agent makes itself."""

    mounting = True
    summary = "XFS reflink (pool image of 1 GiB on a loop device, removed)"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = f"on XFS in {root}/pool.img"

    def options(self) -> list[str]:
        """See DemoPool."""
        return [
            *("--pool-image", f"{self._root}/pool.img", "--pool-size", _SIZE, "--pool-image-sparse"),
            *("--pool-mount", f"{self._root}/pool", "--reserve", "64Mi"),
        ]

    def make(self) -> None:
        """See DemoPool."""

    def remove(self) -> None:
        """See DemoPool."""
        for device in loops_below(self._root):
            run("losetup", "--detach", device)

    def remaining(self) -> list[str]:
        """See DemoPool."""
        return [f"loop device {device}" for device in loops_below(self._root)]


def clean_environment() -> dict[str, str]:
    """Return the environment of a command of the demo: the settings of another agent must not reach it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "CSI_"))}
    # Nor code in the current directory: this may run as root.
    environment["PYTHONSAFEPATH"] = "1"
    return environment


def loops_below(root: Path) -> list[str]:
    """Return the loop devices that are backed by files below a directory."""
    devices = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().startswith(f"{root}/"):
                devices.append(f"/dev/{backing.parts[3]}")
    return devices


def run(*command: str) -> None:
    """Run a command of the clean-up, whatever comes of it."""
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STOP, check=False)

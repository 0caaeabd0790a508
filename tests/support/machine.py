"""What the machine lets a test do, and processes beside it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.host.commands import missing_tools

KIND = os.environ.get("TIDEMARK_TEST_BACKEND", "reflink")
"""Of the pools that agents and crash tests run on: `lvm` inside the machine of tests/lvm."""

CAP_SYS_RESOURCE = 24
"""Without it the kernel does not let a mounted ext4 grow."""


def why_no_pool() -> str:
    """Return why no pool on a disk can be had here; empty if one can."""
    if os.geteuid():
        return "needs root: attaches loop devices and mounts file systems"
    if not os.access("/dev/loop-control", os.W_OK):
        return "needs loop devices: /dev/loop-control is missing, or not to be written"
    if missing := missing_tools():
        return f"needs {', '.join(missing)}: install Debian's xfsprogs and e2fsprogs"
    return ""


def skip_unless_root() -> None:
    if reason := why_no_pool():
        pytest.skip(reason)


def has_capability(number: int) -> bool:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> number & 1)


@contextmanager
def process(*argv: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that says `ready`; killed at the end."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().strip() == "ready"
            yield started
        finally:
            started.kill()


HOLD_OPEN = "import os, sys, time; os.open(sys.argv[1], os.O_RDONLY); print('ready', flush=True); time.sleep(600)"


@contextmanager
def held_open(path: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Somebody else has `path` open."""
    with process(sys.executable, "-c", HOLD_OPEN, str(path)) as holder:
        yield holder

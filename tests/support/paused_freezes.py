"""Freezes that pause inside, and the processes that work on them."""

import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import pytest

from csi_driver.host.helper.client import HelperPool, JobFailed
from support.waiting import until


async def ended(children: HelperPool) -> None:
    """Once it returns, all that was run before is over, and both sides have closed what was open for it."""
    await until(lambda: not children._jobs)
    await children.run("ping", 30)  # the server closes its part after it has told the end, and before it takes a job
    await until(lambda: not children._jobs)


async def fails(job: Awaitable[object]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job
    return caught.value


def offspring(pid: int) -> list[int]:
    """Name the children of a process; the snapshot's child is the fork server's, the cloner is its."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # user-mode Linux has no such file
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and _parent(path) == pid]


def _parent(process: Path) -> int:
    with suppress(OSError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def in_pause(server: int) -> bool:
    """Whether a cloner has got its word, which it gets once all is frozen. (To ask by freezing would disturb the snapshot.)"""
    with suppress(OSError):
        cloners = [cloner for child in offspring(server) for cloner in offspring(child)]
        return any(_ignores_usr1(cloner) for cloner in cloners)
    return False


def _ignores_usr1(pid: int) -> bool:
    """Whether it waits for the signal that ends its pause: it blocks that, and ignores it to show it."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def end_pause(server: int) -> None:
    """Let the cloner that waits go on."""
    (cloner,) = [cloner for child in offspring(server) for cloner in offspring(child)]
    os.kill(cloner, signal.SIGUSR1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

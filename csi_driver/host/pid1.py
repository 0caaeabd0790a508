"""Process 1 of a container: when it ends, the kernel kills all others at once, also the watchdog of freezes.

So an agent that is process 1 continues as a child, and process 1 only waits: for the agent, and then for the fork server,
which thaws what a killed agent left frozen. Otherwise a container that is killed for its memory in the middle of a snapshot
would leave a file system frozen until the next container starts. Process 1 also reaps what helpers leave behind.
"""

import os
import signal
import time
from types import FrameType

_SERVER_WAIT = 30.0
"""Seconds for the fork server after the agent's death: it thaws in milliseconds, or hangs in the kernel."""


def run_as_child_of_pid1() -> None:
    """Fork the agent if this is process 1. Returns in the agent; never returns in process 1."""
    if os.getpid() != 1:
        return
    agent = os.fork()
    if agent == 0:
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(agent, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, forward)
    os._exit(_reap_until_exit(agent))


def _reap_until_exit(agent: int) -> int:
    """Reap all processes that end. Returns the agent's exit status when no process is left, or the last wait is over."""
    status = 0
    deadline = float("inf")
    while time.monotonic() < deadline:
        try:
            pid, wait_status = os.waitpid(-1, 0 if deadline == float("inf") else os.WNOHANG)
        except ChildProcessError:
            break
        if pid == agent:
            code = os.waitstatus_to_exitcode(wait_status)
            status = code if code >= 0 else 128 - code
            deadline = time.monotonic() + _SERVER_WAIT
        elif pid == 0:
            time.sleep(0.02)
    return status

"""Process 1 of a container: when it ends, the kernel kills all the others at once, the watchdog of freezes among them.

So an agent that finds itself to be process 1 goes on as a child, and process 1 only waits: for the agent, and then for the
fork server, which thaws what a killed agent left frozen. Otherwise a container that is killed for its memory in the middle
of a snapshot would leave a file system frozen until the next one starts.
"""

import os
import signal
import time
from types import FrameType

_LAST_WAIT = 30.0
"""Seconds for the fork server after the agent's death: it thaws in milliseconds, or hangs in the kernel."""


def run_as_child_of_pid1() -> None:
    """Return at once in the process that is to be the agent; never return in process 1."""
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
    """Reap whatever ends; returns the agent's exit status, once nobody else is left or the last wait is over."""
    status = 0
    until = float("inf")
    while time.monotonic() < until:
        try:
            pid, ended = os.waitpid(-1, 0 if until == float("inf") else os.WNOHANG)
        except ChildProcessError:
            break
        if pid == agent:
            code = os.waitstatus_to_exitcode(ended)
            status = code if code >= 0 else 128 - code
            until = time.monotonic() + _LAST_WAIT
        elif pid == 0:
            time.sleep(0.02)
    return status

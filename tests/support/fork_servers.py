"""Fork servers for the tests of pools and nodes: forked from a process that has loaded what they need, not executed.

Python and the imports of a fork server take 0.08 s of a processor, and the tests start some 1,500 of them: one for each test, and
one for each point at which an agent is killed. tests/host and tests/agent have them as the product starts them.
"""

import atexit
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

from csi_driver.host.helper.client import HelperPool

_LOADED = """
import _socket, os, signal, struct, sys
sys.path.append(sys.argv[1])
from csi_driver.host.helper import server
orders = _socket.socket(fileno=int(sys.argv[2]))
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    data, control, _, _ = orders.recvmsg(16, _socket.CMSG_SPACE(4))
    if not data:
        sys.exit()
    fd = struct.unpack("i", control[0][2][:4])[0]
    pid = os.fork()
    if not pid:
        os.setsid()
        orders.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            server.main(fd)
        finally:
            os._exit(0)
    os.close(fd)
    orders.send(b"%d" % pid)
"""


class Forked:
    """A process that somebody has forked, with what is asked of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Reap it, where it is this process's child and has ended."""
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if pid else None
        return 0


def begin(control: socket.socket) -> Forked:
    """For `HelperPool(begin=...)`: a fork server that is forked from one process for all tests of this one."""
    orders = _loaded()
    orders.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", control.fileno()))])
    return Forked(int(orders.recv(16)))


@cache
def _loaded() -> socket.socket:
    """The socket of that process, which ends when it is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        fd = theirs.fileno()
        root = Path(__file__).parents[2]
        argv = [sys.executable, "-I", "-S", "-c", _LOADED, str(root), str(fd)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[fd])

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def begin_as_child(control: socket.socket) -> Forked:
    """For `HelperPool(begin=...)` in a process of one thread that has loaded it all, and waits for whatever it leaves behind."""
    pid = os.fork()
    if not pid:
        try:
            from csi_driver.host.helper import server

            os.setsid()
            os.dup2(control.fileno(), 3)
            # The other end above all: its closing says that the agent is gone.
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            server.main(3)
        finally:
            os._exit(0)
    return Forked(pid)


@asynccontextmanager
async def helper_pool() -> AsyncIterator[HelperPool]:
    """Helper processes of such a fork server."""
    helpers = HelperPool(begin=begin)
    await helpers.start()
    try:
        yield helpers
    finally:
        await helpers.stop()

"""One life of the fork server, as the agent sees it: its process and the socket to it."""

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol

import csi_driver
from csi_driver.host.helper.messages import MAX_MESSAGE, Message, decode, encode

_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv[1]); from csi_driver.host.helper.server import main; main(int(sys.argv[2]))"
)


class Process(Protocol):
    """The fork server's process, as `subprocess.Popen` has it."""

    pid: int

    def kill(self) -> None:
        """Kill it if it lives."""

    def poll(self) -> int | None:
        """Reap it if it has ended. Returns its status, None while it lives."""


Begin = Callable[[socket.socket], Process]


def begin(control: socket.socket) -> Process:
    """Start a fork server that serves the other end of `control`. Raises OSError."""
    # Where this package lies, installed or checked out; -I -S: nothing of the environment or of site is loaded.
    root = os.path.dirname(os.path.dirname(os.path.abspath(csi_driver.__file__)))
    return subprocess.Popen(  # returns at exec, and must not inherit what comes later
        [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, str(control.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(control.fileno(),),
        start_new_session=True,  # a terminal's or a supervisor's signals are for the agent
    )


class ServerProcess:
    """One life of the fork server. `ready`: done when it takes jobs, fails when it dies before. `exited`: set when it is reaped."""

    def __init__(self, begin: Begin, on_message: Callable[["ServerProcess", Message], None]) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.exited = asyncio.Event()
        self._closed = False
        self._writable = asyncio.Event()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._control.setblocking(False)
            try:
                self.process = begin(theirs)
            except BaseException:
                self._control.close()
                raise
        self._pidfd = os.pidfd_open(self.process.pid)
        self._loop.add_reader(self._control.fileno(), self._receive)
        self._loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        self.process.poll()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set()
        self._receive()  # what it said before its end counts
        self.close()

    def close(self) -> None:
        """Close the control socket, which orders the server to end."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self._writable.set()
        if not self.ready.done():
            self.ready.set_exception(OSError(errno.ECHILD, "the fork server died at its start"))

    def _receive(self) -> None:
        """Take all messages that have come."""
        while not self._closed:
            try:
                packet = self._control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                if not self.exited.is_set():
                    self.process.kill()  # it is dying, or of no use; `_on_exit` notices its end
                    self._loop.remove_reader(self._control.fileno())
                return
            self._on_message(self, decode(packet))

    async def send(self, message: Message, channel: socket.socket | None = None) -> None:
        """Send a message, with a descriptor; waits for a server that does not read. Raises OSError: EMSGSIZE, or it is dying.

        A call that is cancelled has sent nothing.
        """
        packet = encode(message)
        if len(packet) > MAX_MESSAGE:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", channel.fileno()))] if channel else []
        while True:
            try:
                self._control.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                self._writable.clear()
                self._loop.add_writer(self._control.fileno(), self._on_writable)
            await self._writable.wait()

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._control.fileno())
        self._writable.set()

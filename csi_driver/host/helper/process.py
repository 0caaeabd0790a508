"""One life of the fork server, as the agent sees it: its process and the socket to it."""

import asyncio
import errno
import os
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

import csi_driver
from csi_driver.host.helper.messages import Message, decode

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


def begin(control: socket.socket) -> Process:
    """Start a fork server that serves the other end of `control`. Raises OSError."""
    # Where this package lies, installed or checked out; -I -S: nothing of the environment or of site is loaded.
    root = os.path.dirname(os.path.dirname(os.path.abspath(csi_driver.__file__)))
    return subprocess.Popen(  # returns at exec, and must not inherit what comes later
        [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, root, str(control.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        close_fds=True,
        pass_fds=(control.fileno(),),
        start_new_session=True,  # a terminal's or a supervisor's signals are for the agent
    )


class ServerProcess:
    """One life of the fork server. The callbacks: a message has come, it has exited, a job's request is too large to send."""

    def __init__(
        self,
        begin: Callable[[socket.socket], Process],
        on_message: Callable[["ServerProcess", Message], None],
        on_exit: Callable[["ServerProcess"], None],
        on_too_large: Callable[[int], None],
    ) -> None:
        self._on_message, self._on_exit, self._on_too_large = on_message, on_exit, on_too_large
        self._outbox: deque[tuple[bytes, int, socket.socket | None]] = deque()
        self.ready = asyncio.Event()
        self.exited = asyncio.Event()
        self.up = self.closed = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._control.setblocking(False)
            try:
                self.process = begin(theirs)
            except BaseException:
                self._control.close()
                raise
        self._pidfd = os.pidfd_open(self.process.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control.fileno(), self.receive)
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self.process.poll()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set()
        self._on_exit(self)

    def close(self) -> None:
        """Close the control socket, which orders the server to end."""
        self.closed = True
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self.ready.set()
        for _, _, channel in self._outbox:
            if channel:
                channel.close()
        self._outbox.clear()

    def receive(self) -> None:
        """Take all messages that have come."""
        while not self.closed:
            try:
                packet = self._control.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                if not self.exited.is_set():
                    self.process.kill()  # it is dying, or of no use; `_reap` notices its exit
                    self._loop.remove_reader(self._control.fileno())
                return
            self._on_message(self, decode(packet))

    def send(self, packet: bytes, number: int, channel: socket.socket | None = None) -> None:
        """Send, or keep for later, the packet of a job with a descriptor, which is closed here in any case."""
        self._outbox.append((packet, number, channel))
        self._flush()

    def take_back(self, number: int) -> bool:
        """Take back the request of a job that the server has not received yet. False: it may have received it."""
        for index, (_, job, channel) in enumerate(self._outbox):
            if channel and job == number:
                channel.close()
                del self._outbox[index]
                return True
        return False

    def _flush(self) -> None:
        while self._outbox:
            packet, number, channel = self._outbox[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", channel.fileno()))] if channel else []
            try:
                self._control.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    return  # it is dying; `close` clears the rest
                self._on_too_large(number)
            self._outbox.popleft()
            if channel:
                channel.close()
        self._loop.remove_writer(self._control.fileno())

"""Keeps a fork server running: starts it, and starts another one when it dies."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from csi_driver.host.helper.messages import Message
from csi_driver.host.helper.process import Process, ServerProcess

_LOG = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0
_RESTART_PAUSES = (0.0, 0.1, 0.5, 2.0, 5.0)


class Supervisor:
    """Keeps one fork server running. The callbacks: a message has come; the server has died; a request cannot be sent."""

    def __init__(
        self,
        begin: Callable[[socket.socket], Process],
        on_message: Callable[[ServerProcess, Message], None],
        on_death: Callable[[], None],
        on_too_large: Callable[[int], None],
    ) -> None:
        self._begin, self._on_message, self._on_death, self._on_too_large = begin, on_message, on_death, on_too_large
        self._server: ServerProcess | None = None
        self._ready = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self._failures = 0
        self.stopping = False

    @property
    def server(self) -> ServerProcess | None:
        """The server, if there is one that takes messages."""
        return self._server if self._server and not self._server.closed else None

    @property
    def running(self) -> bool:
        """Whether there is a server, or will be one."""
        return not self.stopping and (self._server is not None or self._restart is not None)

    async def wait_ready(self) -> None:
        """Wait until a server takes jobs."""
        await self._ready.wait()

    def note_success(self) -> None:
        """Note that the server works: the next restart is immediate."""
        self._failures = 0

    async def start(self) -> None:
        """Start the server. Raises OSError, or TimeoutError if it does not come up within 10 seconds."""
        self.stopping = False
        server = self._server = ServerProcess(self._begin, self._on_message, self._on_exit, self._on_too_large)
        try:
            await asyncio.wait_for(server.ready.wait(), _START_TIMEOUT)
            if server.closed:
                raise OSError(errno.ECHILD, "the fork server died at its start")
        except BaseException:
            server.process.kill()
            self._disconnect(server)
            raise
        server.up = True
        self._ready.set()

    async def stop(self) -> bool:
        """Stop the server, and wait up to 10 seconds until it is gone. False: it stays, or there was none."""
        self.stopping = True
        if self._restart:
            self._restart.cancel()
            await asyncio.wait({self._restart})
            self._restart = None
        server, self._server = self._server, None
        if server is None:
            return False
        self._disconnect(server)  # its end of the socket reads EOF, which orders it to end
        with suppress(TimeoutError):
            await asyncio.wait_for(server.exited.wait(), _STOP_TIMEOUT)
        if not server.exited.is_set():
            _LOG.error("the fork server (pid %d) stays, for a thaw that hangs", server.process.pid)
        return server.exited.is_set()

    def _disconnect(self, server: ServerProcess) -> None:
        if not server.closed:
            server.close()
            self._ready.clear()

    def _on_exit(self, server: ServerProcess) -> None:
        restart = server.up and not self.stopping and not server.closed
        if restart:
            server.receive()  # what it said before its end counts
        self._disconnect(server)
        if restart:
            _LOG.error("the fork server (pid %d) died; starting another one", server.process.pid)
            self._restart = asyncio.create_task(self._start_again(), name="fork server restart")
            self._on_death()

    async def _start_again(self) -> None:
        while not self.stopping:
            await asyncio.sleep(_RESTART_PAUSES[min(self._failures, len(_RESTART_PAUSES) - 1)])
            self._failures += 1
            try:
                await self.start()
            except (OSError, TimeoutError) as error:
                _LOG.error("the fork server does not start: %s", error)
            else:
                return

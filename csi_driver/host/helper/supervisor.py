"""Keeps a fork server running: starts it, and starts another one when it dies."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from csi_driver.host.helper.messages import Message
from csi_driver.host.helper.process import Begin, ServerProcess

_LOG = logging.getLogger(__name__)

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0
_RESTART_PAUSES = (0.0, 0.1, 0.5, 2.0, 5.0)


class Supervisor:
    """Keeps one fork server running. The callbacks: a message has come; the server has died.

    `server`: the one that takes jobs, if there is one. `failures`: restarts since a server last ran a job; they make the next one wait.
    """

    def __init__(
        self, begin: Begin, on_message: Callable[[ServerProcess, Message], None], on_death: Callable[[], None]
    ) -> None:
        self._begin, self._on_message, self._on_death = begin, on_message, on_death
        self.server: ServerProcess | None = None
        self.failures = 0
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a server, or will be one."""
        return self._task is not None

    async def wait_server(self) -> ServerProcess:
        """Wait until a server takes jobs."""
        while self.server is None:
            await self._up.wait()
        return self.server

    async def start(self) -> None:
        """Start the server. Raises OSError, or TimeoutError if it does not come up within 10 seconds."""
        await self._launch()
        self._task = asyncio.create_task(self._restart_when_dead(), name="fork server restart")

    async def stop(self) -> bool:
        """Stop the server, and wait up to 10 seconds until it is gone. False: it stays, or there was none."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.wait({task})
        server = self._take_down()
        if server is None:
            return False
        server.close()  # its end of the socket reads EOF, which orders it to end
        with suppress(TimeoutError):
            await asyncio.wait_for(server.exited.wait(), _STOP_TIMEOUT)
        if not server.exited.is_set():
            _LOG.error("the fork server (pid %d) stays, for a thaw that hangs", server.process.pid)
        return server.exited.is_set()

    async def _launch(self) -> None:
        server = ServerProcess(self._begin, self._on_message)
        try:
            await asyncio.wait_for(server.ready, _START_TIMEOUT)
        except BaseException:
            server.process.kill()
            server.close()
            raise
        self.server = server
        self._up.set()

    def _take_down(self) -> ServerProcess | None:
        server, self.server = self.server, None
        self._up.clear()
        return server

    async def _restart_when_dead(self) -> None:
        while self.server:
            await self.server.exited.wait()
            _LOG.error("the fork server (pid %d) died; starting another one", self.server.process.pid)
            self._take_down()
            self._on_death()
            while self.server is None:
                await asyncio.sleep(_RESTART_PAUSES[min(self.failures, len(_RESTART_PAUSES) - 1)])
                self.failures += 1
                try:
                    await self._launch()
                except (OSError, TimeoutError) as error:
                    _LOG.error("the fork server does not start: %s", error)

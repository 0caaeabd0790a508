"""Registration with the kubelet: a socket in its plugins_registry directory, which it watches, and calls.

The kubelet keeps a driver for as long as the socket's name is there, whoever listens. So the name stays when the agent
stops: a driver that leaves the node's CSINode for the length of an upgrade has every new pod, and every pod that ends,
refused by the kubelet meanwhile, while calls to a socket of a driver that is coming back are merely repeated. What an
agent that never comes back leaves is a dead socket: the kubelet's next start finds nobody there, and says so in its log.
"""

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import structlog

from csi_driver._pb import pluginregistration_pb2 as pb
from csi_driver._pb import pluginregistration_pb2_grpc as pb_grpc
from csi_driver.domain.errors import Precondition
from csi_driver.rpc.server import Server

_Context = grpc.aio.ServicerContext[Any, Any]

BACK_OFF = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before a socket is made again after a refusal; the last one from then on."""

SILENCE_SECONDS = 60.0
"""Without a call of the kubelet: it looks at a new socket within a second or two."""

Report = Callable[[str], None]

log = structlog.get_logger()


class Registration(pb_grpc.RegistrationServicer):
    """Says who this is, and hears how it went. `endpoint`: the CSI socket's path as the kubelet sees it."""

    def __init__(self, name: str, endpoint: str) -> None:
        self._info = pb.PluginInfo(type="CSIPlugin", name=name, endpoint=endpoint, supported_versions=["1.0.0"])
        self.verdicts: asyncio.Queue[str] = asyncio.Queue()
        """What the kubelet said of each attempt: its error, or nothing where it took the driver on."""

    async def GetInfo(self, _request: pb.InfoRequest, _context: _Context) -> pb.PluginInfo:
        """Type, name, socket and versions."""
        return self._info

    async def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, _context: _Context
    ) -> pb.RegistrationStatusResponse:
        """Note whether the kubelet has registered the driver, or why not."""
        self.verdicts.put_nowait("" if request.plugin_registered else request.error or "no reason was given")
        return pb.RegistrationStatusResponse()


class Registrar:
    """Keeps a driver registered. `directory`: the kubelet's plugins_registry as this process sees it.

    `report` is called with the state in words whenever it changes.
    """

    def __init__(self, directory: str, name: str, endpoint: str, report: Report = lambda _: None) -> None:
        self._directory = Path(directory)
        self._name, self._endpoint = name, endpoint
        self._report = report
        self._server: Server | None = None
        self.path = self._directory / f"{name}-reg.sock"

    def check(self) -> None:
        """Raise Precondition if there is no such directory: no kubelet would ever look there."""
        if not self._directory.is_dir():
            raise Precondition(
                f"--register {self._directory} is not a directory: mount the kubelet's plugins_registry there"
            )

    async def run(self) -> None:
        """Register, and again after each refusal, until cancelled. Start it once the driver answers calls."""
        failures = 0
        while True:
            try:
                failures = await self._serve(failures)
            except (Precondition, OSError) as error:
                self._report_failure(f"the socket {self.path} cannot be made: {error}")
            await asyncio.sleep(BACK_OFF[min(failures, len(BACK_OFF) - 1)])
            failures += 1

    async def stop(self) -> None:
        """Stop serving, and leave the name where it is."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    async def _serve(self, failures: int) -> int:
        """Serve a new socket until the kubelet refuses; returns the number of refusals in a row."""
        servicer = Registration(self._name, self._endpoint)
        await self._publish_socket(servicer)
        why = await self._first_verdict(servicer)
        while not why:
            failures = 0
            log.info("registered with the kubelet", driver=self._name, endpoint=self._endpoint)
            self._report("yes")
            why = await servicer.verdicts.get()  # of a kubelet that was started again
        self._report_failure(f"the kubelet refuses this driver: {why}")
        return failures

    async def _first_verdict(self, servicer: Registration) -> str:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                return await servicer.verdicts.get()
        except TimeoutError:
            self._report_failure(
                f"the kubelet has not looked at {self.path} for {SILENCE_SECONDS:.0f} s: is {self._directory} its "
                "plugins_registry?"
            )
            return await servicer.verdicts.get()

    async def _publish_socket(self, servicer: Registration) -> None:
        """Replace whatever has the name by a socket that is served already: the name is never absent.

        The kubelet ignores names that begin with a dot. gRPC removes the path that it made, so the name, which came by
        renaming, outlives the server.
        """
        await self.stop()
        for leftover in self._directory.glob(f".{self._name}-reg.*.sock"):
            leftover.unlink(missing_ok=True)
        hidden = self._directory / f".{self._name}-reg.{secrets.token_hex(4)}.sock"
        server = Server(f"unix://{hidden}", [servicer])
        await server.start()
        self._server = server
        try:
            os.rename(hidden, self.path)
        except OSError:
            await self.stop()
            with suppress(FileNotFoundError):
                hidden.unlink()
            raise

    def _report_failure(self, what: str) -> None:
        log.error("not registered with the kubelet", driver=self._name, why=what)
        self._report(what)

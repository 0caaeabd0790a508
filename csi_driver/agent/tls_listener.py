"""The agent's listener for controllers, with mutual TLS. It starts as soon as there are certificates."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from csi_driver.domain.errors import Precondition
from csi_driver.probes import AgentHealth

if TYPE_CHECKING:
    from csi_driver.rpc.interceptors import CallTracker
    from csi_driver.rpc.tls_server import SecureServer

_RETRY_SECONDS = 1.0
"""Between two attempts to read the certificates: a kubelet writes a Secret into a pod up to two minutes late."""

log = structlog.get_logger()


class TlsListener:
    """A listener on `address` with the certificates in a directory. `health` is not ready until it serves."""

    def __init__(
        self,
        address: tuple[str, int],
        certificates: str,
        servicers: "Sequence[object]",
        interceptors: "Sequence[CallTracker]",
        health: AgentHealth,
    ) -> None:
        self._address = address
        self._certificates = Path(certificates)
        self._servicers = servicers
        self._interceptors = interceptors
        self._health = health
        self._server: SecureServer | None = None
        health.set_not_ready("tls", f"the certificates in {certificates} have not been read yet")

    async def run(self) -> None:
        """Start as soon as possible; until then, log why it cannot start, once for each reason."""
        logged = ""
        while (why := await self._try_start()) is not None:
            if why != logged:
                log.warning("cannot serve controllers yet, retrying", why=why)
                self._health.set_not_ready("tls", why)
                logged = why
            await asyncio.sleep(_RETRY_SECONDS)
        self._health.set_ready("tls")

    async def stop(self, grace: float) -> None:
        """Stop serving; running calls have `grace` seconds."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace)

    async def _try_start(self) -> str | None:
        """Start to listen. Returns why that failed, or None."""
        from csi_driver.rpc import tls
        from csi_driver.rpc.agent.servicers import for_controllers
        from csi_driver.rpc.tls_server import SecureServer

        identity = tls.TlsDirectory(self._certificates)
        servicers = for_controllers(self._servicers)
        server = SecureServer(self._address, identity, tls.CONTROLLER, servicers, self._interceptors)
        try:
            await server.start()
        except Precondition as error:
            return str(error)
        self._server = server
        log.info("serving controllers", port=server.port)
        return None

"""The agent's listener for controllers: mutual TLS or nothing, begun as soon as there are certificates.

Served there is what a controller forwards: Identity, Controller, GroupController and Tidemark. Node is not among them. Its
calls name paths of this node, on which the agent acts as root, and only the kubelet has a use for them: it has the socket,
and whoever takes a controller's certificate must not get to mount what he likes where he likes on every node.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from csi_driver.agent.probes import Health
from csi_driver.domain.errors import Precondition

if TYPE_CHECKING:
    from csi_driver.rpc.interceptors import CallTracker
    from csi_driver.rpc.tls_server import SecureServer

_RETRY_SECONDS = 1.0
"""Between two looks for certificates: a kubelet writes a Secret into a pod up to two minutes after it was made."""

log = structlog.get_logger()


class TlsListener:
    """A listener on `address` with the certificates in a directory. Until it is served, `health` lacks `tls`."""

    def __init__(
        self,
        address: tuple[str, int],
        certificates: str,
        servicers: "Sequence[object]",
        interceptors: "Sequence[CallTracker]",
        health: Health,
    ) -> None:
        self._address = address
        self._certificates = Path(certificates)
        self._servicers = servicers
        self._interceptors = interceptors
        self._health = health
        self._server: SecureServer | None = None
        health.lack("tls", f"the certificates in {certificates} have not been looked at yet")

    async def run(self) -> None:
        """Begin as soon as it is possible; until then, say in the log why it is not, once for each reason."""
        told = ""
        while (why := await self._begin()) is not None:
            if why != told:
                log.warning("controllers are not served yet", why=why)
                self._health.lack("tls", why)
                told = why
            await asyncio.sleep(_RETRY_SECONDS)
        self._health.have("tls")

    async def stop(self, grace: float) -> None:
        """Take no more calls, give the running ones `grace` seconds."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace)

    async def _begin(self) -> str | None:
        """Start to listen; returns why not."""
        from csi_driver.rpc import tls
        from csi_driver.rpc.agent.node import Node
        from csi_driver.rpc.tls_server import SecureServer

        served = [servicer for servicer in self._servicers if not isinstance(servicer, Node)]
        identity = tls.TlsDirectory(self._certificates)
        server = SecureServer(self._address, identity, tls.CONTROLLER, served, self._interceptors)
        try:
            await server.start()
        except Precondition as error:
            return str(error)
        self._server = server
        log.info("controllers are served", port=server.port)
        return None

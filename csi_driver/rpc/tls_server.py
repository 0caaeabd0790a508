"""The gRPC server that other machines reach: mutual TLS only, for callers of one role."""

from collections.abc import Sequence

import grpc

from csi_driver.domain.errors import Precondition
from csi_driver.rpc import tls
from csi_driver.rpc.server import OPTIONS, adder

CONNECTION_SECONDS = 600.0
"""After which a caller is asked to connect again, give or take a tenth: a connection must not outlive the CA that its
certificate is from. Calls that run end first.
"""

_LONGEST_CALL_MS = 180_000


class SecureServer:
    """Serves on `host:port`; port 0 takes any, and `port` tells which. There is no way to have it without TLS."""

    def __init__(
        self,
        address: tuple[str, int],
        identity: tls.TlsDirectory,
        caller: str,
        servicers: Sequence[object],
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._host, self.port = address
        self._identity = identity
        self._interceptors = [tls.RequireRole(caller), *interceptors]
        self._servicers = servicers
        self._options = [*OPTIONS, *_KEEPALIVE, ("grpc.max_connection_age_ms", round(connection_seconds * 1000))]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Bind and serve. Raises Precondition where the address or the certificates cannot be had."""
        credentials = tls.server_credentials(self._identity)
        server = grpc.aio.server(interceptors=self._interceptors, options=self._options)
        for servicer in self._servicers:
            adder(servicer)(servicer, server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self.port = server.add_secure_port(f"{host}:{self.port}", credentials)
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise Precondition(f"{host}:{self.port} cannot be listened on: {error}; choose another address") from error
        self._server = server

    async def stop(self, grace: float) -> None:
        """Take no more calls, give the running ones `grace` seconds, cancel the rest."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace)


_KEEPALIVE = (
    # Two agents would else share one port, and each get half of the calls.
    ("grpc.so_reuseport", 0),
    # Controllers ask every 10 s whether the connection lives, also between calls: that is no abuse.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_grace_ms", _LONGEST_CALL_MS),
)

"""Mutual TLS between controller and agents: who may call whom is a role in the certificate, not the chain alone.

A certificate's role is a DNS name among its alternative names (RFC 5280, 4.2.1.6). The client checks the server's role
as gRPC checks a host's name; the server checks the client's with an interceptor, on every call.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from csi_driver.domain.errors import Precondition

CONTROLLER = "controller.tidemark.internal"
"""Role of every controller."""

AGENT = "agent.tidemark.internal"
"""Role of every agent. One name for all: which node it is, is said by the ids that it serves."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """A directory with ca.crt, tls.crt and tls.key in PEM, laid out as Kubernetes mounts a Secret of type TLS."""

    directory: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Authority, certificate and key as they are now. Raises Precondition, which never holds their contents."""
        try:
            authority, certificate, key = (
                (self.directory / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")
            )
        except OSError as error:
            raise Precondition(
                f"{error.filename} cannot be read: {error.strerror}; the directory of certificates holds ca.crt, tls.crt "
                "and tls.key"
            ) from error
        return authority, certificate, key


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials that ask every caller for a certificate, and that follow changes of the files.

    The files are compared at each handshake. A change that cannot be read leaves the last good ones in force: a Secret
    is replaced in one step, but a wrong one must not take an agent away.
    """
    last = identity.read()

    def configuration(authority: bytes, certificate: bytes, key: bytes) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        try:
            now = identity.read()
        except Precondition as error:
            log.error("certificates are not replaced", why=str(error))
            return None
        if now == last:
            return None
        last = now
        log.info("certificates are replaced", directory=str(identity.directory))
        return configuration(*now)

    # The stubs do not know that None means: as before.
    return grpc.dynamic_ssl_server_credentials(configuration(*last), fetch, require_client_authentication=True)  # type: ignore[arg-type]


def channel_credentials(material: tuple[bytes, bytes, bytes]) -> grpc.ChannelCredentials:
    """Credentials of a caller, from what Identity.read gave. A channel keeps them: another one is made for new files."""
    authority, certificate, key = material
    return grpc.ssl_channel_credentials(authority, key, certificate)


class OnlyRole(grpc.aio.ServerInterceptor):
    """Refuses every caller whose certificate has another role. The chain was checked by then, in the handshake."""

    def __init__(self, role: str) -> None:
        self._role = role.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor. Any: the stubs know the handlers of the synchronous API only."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method

        async def refuse_others(context: Any) -> None:
            names = context.auth_context().get("x509_subject_alternative_name", ())
            if self._role not in names:
                log.warning(
                    "call refused",
                    method=method,
                    peer=context.peer(),
                    names=[n.decode("ascii", "replace") for n in names],
                )
                await context.abort(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"your certificate does not say {self._role.decode()}: this listener serves that role alone",
                )

        if handler.response_streaming:

            async def stream(request: Any, context: Any) -> Any:
                await refuse_others(context)
                async for response in handler.unary_stream(request, context):
                    yield response

            return grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )

        async def unary(request: Any, context: Any) -> Any:
            await refuse_others(context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)

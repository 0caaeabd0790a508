"""Mutual TLS between controller and agents: who may call whom is a role in the certificate, not the chain alone.

A certificate's role is a DNS name among its alternative names (RFC 5280, 4.2.1.6). The client checks the server's role
as gRPC checks a host's name; the server checks the client's with an interceptor, on every call.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from csi_driver.domain.certificates import FILES, fingerprint
from csi_driver.domain.errors import Precondition

CONTROLLER = "controller.tidemark.internal"
"""Role of every controller."""

AGENT = "agent.tidemark.internal"
"""Role of every agent. One name for all: which node it is, is said by the ids that it serves."""

log = structlog.get_logger()


TlsFiles = tuple[bytes, bytes, bytes]
"""Authorities that are trusted, own certificate, its key: each in PEM."""


@dataclass(frozen=True, slots=True)
class TlsDirectory:
    """A directory with ca.crt, tls.crt and tls.key in PEM, laid out as Kubernetes mounts a Secret of type TLS."""

    directory: Path

    def read(self) -> TlsFiles:
        """Authority, certificate and key as they are now. Raises Precondition, which never holds their contents."""
        while True:
            directory = self._current()
            try:
                authority, certificate, key = ((directory / name).read_bytes() for name in FILES)
                return authority, certificate, key
            except OSError as error:
                if self._current() != directory:
                    continue  # exchanged meanwhile, and the old ones are removed right afterwards
                raise Precondition(
                    f"{self.directory / Path(error.filename).name} cannot be read: {error.strerror}; the directory of "
                    "certificates holds ca.crt, tls.crt and tls.key"
                ) from error

    def fingerprint(self) -> str:
        """Return what identifies the certificates that the next handshake uses. Raises Precondition if they are invalid."""
        material = self.read()
        check(material)
        return fingerprint(*material[:2])

    def _current(self) -> Path:
        """A mounted Secret is exchanged in one step by its link ..data: followed once, so that the three files are of one
        making.
        """
        link = self.directory / "..data"
        return link.resolve() if link.is_symlink() else self.directory


def check(material: TlsFiles) -> None:
    """Raise Precondition if these are not certificates, or the key is that of another one. gRPC would find out only at the
    first handshake, when the valid ones are already replaced.
    """
    import ssl  # an agent needs it at each change of its certificates, and a laptop's never

    authority, certificate, key = material
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
        # The standard library reads a key from a file alone: this one is in memory, and has no name.
        with os.fdopen(os.memfd_create("certificate"), "wb") as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", "") or "not PEM"
        raise Precondition(
            f"the certificates do not fit together ({reason.lower().replace('_', ' ')}): ca.crt, tls.crt and tls.key must "
            "be PEM, and the key that of tls.crt"
        ) from None


class ReloadingTlsFiles:
    """Returns the newest valid certificates of a directory. Called at each use; compares before it parses.

    If a change is invalid or cannot be read, the last valid ones stay in use: a wrong Secret must not cut a node off.
    """

    def __init__(self, identity: TlsDirectory) -> None:
        self._identity = identity
        self._good: TlsFiles | None = None
        self._refused: tuple[TlsFiles | None, str] = (None, "")

    def __call__(self) -> TlsFiles:
        """Return them. Raises Precondition until there are valid ones."""
        now: TlsFiles | None = None
        try:
            now = self._identity.read()
            if now != self._good:
                if now == self._refused[0]:
                    raise Precondition(self._refused[1])
                check(now)
                if self._good is not None:
                    log.info("certificates replaced", directory=str(self._identity.directory))
                self._good = now
        except Precondition as error:
            if self._good is None:
                raise
            if (now, str(error)) != self._refused:
                self._refused = now, str(error)
                log.error("certificates not replaced", why=str(error), directory=str(self._identity.directory))
        return self._good


def server_credentials(identity: TlsDirectory) -> grpc.ServerCredentials:
    """Credentials that ask every caller for a certificate, and that follow changes of the files at each handshake."""
    latest = ReloadingTlsFiles(identity)
    last = latest()

    def configuration(authority: bytes, certificate: bytes, key: bytes) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        now = latest()
        if now == last:
            return None
        last = now
        return configuration(*now)

    # The stubs do not know that None means: as before.
    return grpc.dynamic_ssl_server_credentials(configuration(*last), fetch, require_client_authentication=True)  # type: ignore[arg-type]


def channel_credentials(material: TlsFiles) -> grpc.ChannelCredentials:
    """Return the credentials of a caller, from TlsDirectory.read. A channel keeps them: new files need a new channel."""
    authority, certificate, key = material
    return grpc.ssl_channel_credentials(authority, key, certificate)


class RequireRole(grpc.aio.ServerInterceptor):
    """Refuses every caller whose certificate has another role. The handshake has checked the chain before."""

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
                    f"your certificate does not have the role {self._role.decode()}: this listener serves only that role",
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

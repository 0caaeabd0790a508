"""The connection of the command line to one socket: one call, its deadline, and why it was refused."""

import socket
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from csi_driver import __version__
from csi_driver.rpc.errors import is_unknown_call

Reply = TypeVar("Reply", bound=Message)

QUICK = 15.0
"""Seconds for calls that only read."""

PATIENT = 180.0
"""Seconds for calls that format, mount, take a snapshot or clone: longer than any deadline of the agent itself."""


class CallRefused(Exception):
    """A call was refused: `code` is gRPC's word for it, such as NOT_FOUND; the message is the agent's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Channel:
    """A connection to a socket. Every call raises CallRefused. `longest`: seconds that a call may take, if that is less."""

    def __init__(self, endpoint: str, longest: float = PATIENT) -> None:
        self.endpoint = endpoint
        self._longest = longest
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(endpoint, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _csi(self, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        return self._call(f"/csi.v1.{method}", request, reply, seconds)

    def _own(self, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        return self._call(f"/tidemark.v1.Tidemark/{method}", request, reply, seconds)

    def _call(self, path: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
        seconds = min(seconds, self._longest)
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            answer: Reply = call(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._refusal(path, error, seconds) from None
        return answer

    def _refusal(self, path: str, error: grpc.RpcError, seconds: float) -> CallRefused:
        if not isinstance(error, grpc.Call):
            return CallRefused("UNKNOWN", f"{path} failed: {error}; look at the agent's log")
        code = error.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            reason = _unreachable_because(self.endpoint)
            if reason:
                return CallRefused(code.name, reason)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallRefused(
                code.name, f"{path} has not answered within {seconds:.0f} s: it may still end; look at the agent's log"
            )
        if is_unknown_call(error):
            return CallRefused(
                code.name,
                f"the agent at {self.endpoint} does not have {path[1:]}, which this command, of version {__version__}, "
                "needs: use the command of the agent's version, or upgrade the agent",
            )
        return CallRefused(code.name, error.details() or f"{path} failed: look at the agent's log")


def _unreachable_because(endpoint: str) -> str:
    """Return why a socket cannot be reached, and what to do; empty if a process listens on it."""
    path = endpoint.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except PermissionError:
            return f"the socket {path} may not be opened by this user: run as root"
        except OSError:
            return f"no agent answers at {path}: start `tidemark agent`, or name its socket by --endpoint"
    return ""

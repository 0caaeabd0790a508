"""The one table from refusals to gRPC status codes. Nothing below this package knows that codes exist."""

import uuid
from dataclasses import dataclass

import grpc

from csi_driver.domain import errors

CODES: dict[type[errors.DriverError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.TooSlow: grpc.StatusCode.ABORTED,
    errors.BadToken: grpc.StatusCode.ABORTED,
    errors.Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotMountable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.OtherVersion: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Damaged: grpc.StatusCode.INTERNAL,
}

_UNKNOWN_OUTCOME = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
_REFUSALS: dict[grpc.StatusCode, type[errors.DriverError]] = {
    code: kind
    for kind, code in CODES.items()
    if kind not in (errors.TooSlow, errors.BadToken, errors.InUse, errors.NotMountable, errors.OtherVersion)
}

MAX_MESSAGE_BYTES = 1024
"""The message travels in a header, and Kubernetes copies it into an event of about that size."""


@dataclass(frozen=True, slots=True)
class GrpcStatus:
    """What a call is answered with. `incident` is set if the answer says nothing else: the log has the rest."""

    code: grpc.StatusCode
    message: str
    incident: str = ""


def to_status(error: BaseException) -> GrpcStatus:
    """Return the answer to a call that ended in `error`. The text of a defect may hold anything, so it stays in the log."""
    if isinstance(error, errors.DriverError):
        for kind in type(error).__mro__:
            if kind in CODES:
                return GrpcStatus(CODES[kind], printable(str(error), MAX_MESSAGE_BYTES))
    if isinstance(error, grpc.aio.AioRpcError):  # an agent's answer, passed on as it came
        return GrpcStatus(error.code(), printable(error.details() or "", MAX_MESSAGE_BYTES))
    incident = uuid.uuid4().hex[:12]
    return GrpcStatus(
        grpc.StatusCode.INTERNAL,
        f"internal error: see this driver's log for incident {incident}",
        incident,
    )


def from_status(error: grpc.aio.AioRpcError, who: str) -> errors.DriverError:
    """Return the error that an agent's answer means, with its own words: the table read the other way. `who` answered.

    Unavailable also if the call was cut off, so that its outcome is unknown; Damaged for a code that is not in the table.
    """
    details = error.details() or f"no reason was given ({error.code().name})"
    if error.code() in _UNKNOWN_OUTCOME:
        return errors.Unavailable(f"{who}: {details}")
    return _REFUSALS.get(error.code(), errors.Damaged)(details)


def is_unknown_call(error: grpc.aio.AioRpcError | grpc.Call) -> bool:
    """Whether the other side does not have the call: gRPC itself says so. A call that is not offered has another reason."""
    return error.code() is grpc.StatusCode.UNIMPLEMENTED and error.details() == "Method not found!"


def printable(text: str, limit: int) -> str:
    """Return the text in at most `limit` UTF-8 bytes, with control and direction characters escaped: it goes to terminals.

    A longer text loses its middle: a message ends with what to do, and only what it quotes is ever long.
    """
    # Cut roughly before escaping, so that megabytes cost nothing.
    rough = text if len(text) <= 2 * limit else text[:limit] + text[-limit:]
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in rough)
    encoded = clean.encode(errors="backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    half = (limit - 3) // 2
    return encoded[:half].decode(errors="ignore") + "..." + encoded[-half:].decode(errors="ignore")

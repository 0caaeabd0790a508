"""Around every call: one log line, one metric, errors to codes, and work that goes on when the client leaves.

A client's deadline is not a reason to stop in the middle of a change. So the work of a changing call is a task of its own: it
goes on to its end, under its locks. A retry meanwhile is answered ABORTED, and later with the finished object.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from csi_driver.domain.errors import InvalidRequest
from csi_driver.rpc.errors import GrpcStatus, to_status
from csi_driver.rpc.log_fields import describe

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Context = grpc.aio.ServicerContext[Any, Any]

_READING = ("Probe", "List", "Get", "Validate", "NodeGet", "ControllerGet", "ControllerList", "GroupControllerGet")
"""Prefixes of the names of calls that change nothing. An unknown call is treated as one that changes something."""

_QUIET = frozenset(
    {
        "csi.v1.Identity/Probe",
        "csi.v1.Controller/GetCapacity",
        "csi.v1.Node/NodeGetCapabilities",
        "csi.v1.Node/NodeGetVolumeStats",
    }
)
"""Kubelet and provisioner make these all the time, for every volume and class: successes are counted, but not logged."""

log = structlog.get_logger()


class CallObserver(Protocol):
    """Counts calls; agent/metrics.py does it for Prometheus."""

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call was answered, or its client went away (CANCELLED)."""
        ...

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """The work of a call whose client had gone away has ended."""
        ...


class Unobserved:
    """An observer that drops everything."""

    def call(self, method: str, code: str, seconds: float) -> None:
        """See CallObserver."""

    def after_cancel(self, method: str, code: str, seconds: float) -> None:
        """See CallObserver."""


class CallTracker(grpc.aio.ServerInterceptor):
    """All calls of one server; also what shutdown waits for.

    `shielded` is off where the work is a call to another process, which is to be cancelled with its client.
    """

    def __init__(self, observer: CallObserver | None = None, shielded: bool = True) -> None:
        self._observer = observer or Unobserved()
        self.shielded = shielded
        self._running: set[asyncio.Task[Any]] = set()

    async def drain(self, timeout: float) -> list[str]:
        """Wait until all changing work has ended; returns what still runs after `timeout` seconds. Stop serving first."""
        deadline = time.monotonic() + timeout
        while self._running and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._running), timeout=left)
        unfinished = sorted(task.get_name() for task in self._running)
        if unfinished:
            log.warning("calls still running after drain timeout", timeout=timeout, calls=unfinished)
        return unfinished

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[_Request, _Response] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[_Request, _Response] | None":
        """Wrap the handler of one call; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # unknown: gRPC answers UNIMPLEMENTED; neither protocol has a call that takes a stream
        call = _Call(self, handler_call_details.method.lstrip("/"), handler)
        # The request is read inside the call, so that bytes which are no message get an answer of ours.
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                call.stream,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            call.unary,
            response_serializer=handler.response_serializer,
        )

    def start(self, name: str, work: Awaitable[Any]) -> asyncio.Task[Any]:
        """Run the work of a changing call as a task that goes on if its client leaves."""
        task = asyncio.ensure_future(_await(work))
        task.set_name(name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def observe(self, late: bool, method: str, code: str, seconds: float) -> None:
        """Count a call; a broken observer must not break calls."""
        try:
            (self._observer.after_cancel if late else self._observer.call)(method, code, seconds)
        except Exception:
            log.exception("count call failed", method=method)


class _Call:
    """One call, from its bytes to its log line."""

    def __init__(self, calls: CallTracker, method: str, handler: Any) -> None:
        # Any: the stubs know the handlers of the synchronous API only.
        self._calls = calls
        self._method = method
        self._handler = handler
        self._changing = calls.shielded and not method.rpartition("/")[2].startswith(_READING)
        self._fields: dict[str, object] = {}
        self._began = time.monotonic()

    async def unary(self, data: bytes, context: _Context) -> Any:
        """Serve a call with one answer."""
        try:
            work = self._handler.unary_unary(self._read(data), context)
            response = await (self._shielded(work) if self._changing else work)
        except asyncio.CancelledError:
            self._end("CANCELLED")
            raise
        except Exception as error:
            await self._refuse(error, context)
        self._end("OK")
        return response

    async def stream(self, data: bytes, context: _Context) -> AsyncIterator[Any]:
        """Serve a call that answers with a stream; all of those only read."""
        try:
            async for response in self._handler.unary_stream(self._read(data), context):
                yield response
        except asyncio.CancelledError:
            self._end("CANCELLED")
            raise
        except Exception as error:
            await self._refuse(error, context)
        self._end("OK")

    def _read(self, data: bytes) -> Message:
        try:
            request: Message = self._handler.request_deserializer(data)
        except DecodeError as error:
            raise InvalidRequest(
                "the request is not a message of this call (broken bytes, or text that is not UTF-8): "
                "compare the versions of the protocol"
            ) from error
        self._fields = describe(request)
        return request

    async def _shielded(self, work: Awaitable[Any]) -> Any:
        task = self._calls.start(" ".join([self._method, *self._objects()]), work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                task.add_done_callback(partial(self._end_late))
            raise

    def _objects(self) -> list[str]:
        return [str(self._fields[key]) for key in ("name", "volume_id", "snapshot_id") if key in self._fields]

    async def _refuse(self, error: Exception, context: _Context) -> None:
        status = to_status(error)
        self._end(status.code.name, error, status)
        await context.abort(status.code, status.message)

    def _end_late(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._end("CANCELLED", late=True)
            return
        error = task.exception()
        status = to_status(error) if error else None
        self._end(status.code.name if status else "OK", error, status, late=True)

    def _end(
        self, code: str, error: BaseException | None = None, status: GrpcStatus | None = None, late: bool = False
    ) -> None:
        seconds = time.monotonic() - self._began
        self._calls.observe(late, self._method, code, seconds)
        fields = {"method": self._method, "code": code, "ms": round(seconds * 1000, 1), **self._fields}
        if status is not None:
            fields["error"] = status.message
        if status is not None and status.incident:
            fields["incident"] = status.incident
        event = "call finished after cancel" if late else "call"
        if code == "INTERNAL":
            log.error(event, exc_info=error, **fields)
        elif code == "CANCELLED":
            log.warning(event, goes_on=self._changing and not late, **fields)
        elif status is not None:
            log.warning(event, **fields)
        elif self._method in _QUIET:
            log.debug(event, **fields)
        else:
            log.info(event, **fields)


async def _await(work: Awaitable[Any]) -> Any:
    return await work

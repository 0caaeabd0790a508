"""/healthz, /readyz and /metrics of an agent and of a controller, on one HTTP listener in threads of its own.

/healthz fails only if a restart would help: after the event loop has stalled for long. A thread answers it, takes no lock
and reads no volume. A loop that waits in the kernel for a disk is left alone: no signal ends that wait, and a container
that cannot be killed cannot be restarted either.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from csi_driver.domain.errors import DriverError, Precondition

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

STALLED_SECONDS = 20.0
"""More than a busy node delays a process; a kubelet probes several times on top of that before it restarts a container."""

_HEARTBEAT_SECONDS = 1.0
_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Health(Protocol):
    """The state of one process, read by the threads of the listener."""

    def healthy(self) -> tuple[bool, str]:
        """Return whether this process may keep running, and why."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Return whether this process can serve, and what is missing otherwise."""
        ...


class Heartbeat:
    """Shows that the event loop turns. `text` is the answer of /healthz while it does."""

    def __init__(self, text: str = "ok", stalled: float = STALLED_SECONDS) -> None:
        self._text = text
        self._stalled = stalled
        self._thread = threading.get_native_id()
        self._beat = time.monotonic()

    async def run(self) -> None:
        """Beat once a second on this event loop, until cancelled."""
        self._thread = threading.get_native_id()
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    def healthy(self) -> tuple[bool, str]:
        """Return whether this process may keep running, and why."""
        seconds = self.stalled_seconds()
        if not seconds:
            return True, self._text
        if _waits_in_kernel(self._thread):
            return True, f"the event loop has waited in the kernel for {seconds:.0f} s: see the node's kernel log"
        return False, stalled_text(seconds)

    def stalled_seconds(self) -> float:
        """Return for how long the event loop has not turned; 0 below the threshold."""
        seconds = time.monotonic() - self._beat
        return seconds if seconds >= self._stalled else 0.0


class AgentHealth(Heartbeat):
    """Readiness as a set of named conditions. The event loop writes them."""

    def __init__(self, stalled: float = STALLED_SECONDS) -> None:
        super().__init__("ok", stalled)
        self._not_ready: dict[str, str] = {}
        self._notes: dict[str, str] = {}

    def set_not_ready(self, condition: str, why: str) -> None:
        """Make this process not ready until `set_ready` is called for the same condition."""
        self._not_ready[condition] = why

    def set_ready(self, condition: str) -> None:
        """Remove a condition that `set_not_ready` has set."""
        self._not_ready.pop(condition, None)

    def note(self, title: str, text: str) -> None:
        """Show a line on /readyz that does not change the status."""
        self._notes[title] = text

    def ready(self) -> tuple[bool, str]:
        """Return whether no condition is missing; the text has one line for each condition and note."""
        conditions, notes = dict(self._not_ready), dict(self._notes)
        if seconds := self.stalled_seconds():
            conditions["loop"] = stalled_text(seconds)
        return not conditions, "\n".join([*_lines(conditions or {"ready": "yes"}), *_lines(notes)])


class ControllerHealth(Heartbeat):
    """Readiness as one check, which raises DriverError while something is missing. A thread calls it: it must not block."""

    def __init__(self, check: Callable[[], None], stalled: float = STALLED_SECONDS) -> None:
        super().__init__("alive", stalled)
        self._check = check

    def ready(self) -> tuple[bool, str]:
        """Return whether the check passes, or its error."""
        if seconds := self.stalled_seconds():
            return False, stalled_text(seconds)
        try:
            self._check()
        except DriverError as error:
            return False, str(error)
        return True, "ready"


class ProbeServer:
    """Serves the three paths from threads. `port` is known after `start`."""

    def __init__(self, address: tuple[str, int], registry: "CollectorRegistry", health: Health) -> None:
        self._address = address
        self._registry = registry
        self._health = health
        self._server: WSGIServer | None = None
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._stopping = False

    @property
    def port(self) -> int:
        """The port that is served; the configured one before `start`."""
        return self._server.server_port if self._server is not None else self._address[1]

    def start(self) -> None:
        """Bind and serve; port 0 takes any free one. Raises Precondition if the address cannot be bound."""
        from prometheus_client import make_wsgi_app

        host, port = self._address
        try:
            self._server = _bind(host, port, _app(self._health, make_wsgi_app(self._registry)))
        except OSError as error:
            raise Precondition(
                f"--metrics-address {host}:{port} cannot be served ({error.strerror}): choose another, or leave it out"
            ) from error
        self._thread.start()

    def stop(self) -> None:
        """Stop serving. Answers that are under way go on."""
        if self._server is None or self._stopping:
            return
        self._stopping = True
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which polls nothing while it is idle
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        while self._server is not None and not self._stopping:
            self._server.handle_request()


def stalled_text(seconds: float) -> str:
    """Return what both paths answer for an event loop that has stalled."""
    return f"the event loop has not turned for {seconds:.0f} s"


def _bind(host: str, port: int, app: _App) -> "WSGIServer":
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from prometheus_client.exposition import ThreadingWSGIServer

    class QuietHandler(WSGIRequestHandler):
        """Logs no requests: probes would fill the log."""

        timeout = 10.0
        """Seconds for a request to arrive: a client that connects and sends nothing must not keep a thread."""

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
            """Log nothing."""

    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Listener(ThreadingWSGIServer):
        address_family = family

    return make_server(str(address[0]), port, app, Listener, QuietHandler)


def _app(health: Health, metrics: _App) -> _App:
    probes = {"/healthz": health.healthy, "/readyz": health.ready}

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path in probes:
            passed, text = probes[path]()
            status = "200 OK" if passed else "503 Service Unavailable"
        else:
            status, text = "404 Not Found", "here are /metrics, /healthz and /readyz"
        body = f"{text}\n".encode()
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _lines(items: Mapping[str, str]) -> list[str]:
    return [f"{title}: {text}" for title, text in sorted(items.items())]


def _waits_in_kernel(thread: int) -> bool:
    """Return whether a thread of this process sleeps where no signal reaches it: state D."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"D"
    except OSError:
        return False

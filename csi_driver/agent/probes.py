"""What a kubelet's probes are told: /healthz and /readyz, beside /metrics on one HTTP listener.

/healthz fails only where a restart would help: when the event loop has stood still for long. It is answered by a thread
of its own, takes no lock and looks at no volume. A loop that waits in the kernel for a disk is left alone: no signal ends
that wait, and a container that cannot be killed cannot be started again either.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry

STALLED_SECONDS = 20.0
"""Above what a busy node does to a process; a kubelet asks several times on top of that before it acts."""

_BEAT_SECONDS = 1.0
_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Health:
    """The state of one process. Written by its event loop, read by the threads of the listener."""

    def __init__(self, stalled: float = STALLED_SECONDS) -> None:
        self._stalled = stalled
        self._lacking: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._thread = threading.get_native_id()
        self._beat = time.monotonic()

    def lack(self, what: str, why: str) -> None:
        """Not ready: `what` is missing, because of `why`."""
        self._lacking[what] = why

    def have(self, what: str) -> None:
        """`what` is not missing any more."""
        self._lacking.pop(what, None)

    def note(self, what: str, text: str) -> None:
        """Something that people who ask should see, and that decides nothing."""
        self._notes[what] = text

    async def run(self) -> None:
        """Show that the event loop turns, until cancelled."""
        self._thread = threading.get_native_id()
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def healthy(self) -> tuple[bool, str]:
        """Whether to leave this process running, and why."""
        still = time.monotonic() - self._beat
        if still < self._stalled:
            return True, "ok"
        if _waits_in_kernel(self._thread):
            return True, f"the event loop has waited in the kernel for {still:.0f} s: see the node's kernel log"
        return False, f"the event loop has not turned for {still:.0f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether to send work here, and what is missing otherwise."""
        lacking, notes = dict(self._lacking), dict(self._notes)
        still = time.monotonic() - self._beat
        if still >= self._stalled:
            lacking["loop"] = f"the event loop has not turned for {still:.0f} s"
        return not lacking, "\n".join([*_lines(lacking or {"ready": "yes"}), *_lines(notes)])


def serve(address: tuple[str, int], registry: "CollectorRegistry", health: Health) -> "WSGIServer":
    """Serve /metrics, /healthz and /readyz in threads; `shutdown()` of the result ends it, its `server_port` is the port.

    Port 0 takes any. Raises OSError where the address cannot be had.
    """
    import socket
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from prometheus_client import make_wsgi_app
    from prometheus_client.exposition import ThreadingWSGIServer

    class Quiet(WSGIRequestHandler):
        """A line for each probe would be all that the log holds."""

        timeout = 10.0
        """Seconds for a request to come: whoever connects and says nothing must not keep a thread."""

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
            """Say nothing."""

    host, port = address
    family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Listener(ThreadingWSGIServer):
        address_family = family

    server = make_server(str(found[0]), port, _app(health, make_wsgi_app(registry)), Listener, Quiet)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


def _app(health: Health, metrics: _App) -> _App:
    asks = {"/healthz": health.healthy, "/readyz": health.ready}

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path in asks:
            good, text = asks[path]()
            status = "200 OK" if good else "503 Service Unavailable"
        else:
            status, text = "404 Not Found", "here are /metrics, /healthz and /readyz"
        body = f"{text}\n".encode()
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _lines(items: Mapping[str, str]) -> list[str]:
    return [f"{what}: {text}" for what, text in sorted(items.items())]


def _waits_in_kernel(thread: int) -> bool:
    """Whether a thread of this process sleeps where no signal reaches it: state D."""
    try:
        with open(f"/proc/self/task/{thread}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"D"
    except OSError:
        return False

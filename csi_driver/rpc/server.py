"""The gRPC server on a unix socket: found or made safely, readable by its owner alone, gone when the server is."""

import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from csi_driver._pb import csi_pb2_grpc, pluginregistration_pb2_grpc, tidemark_pb2_grpc
from csi_driver.domain.errors import InvalidRequest, Precondition

_MAX_SOCKET_PATH = 107
"""What the kernel's sockaddr_un holds."""

_ADDERS: tuple[tuple[type, Callable[[Any, Any], None]], ...] = (
    (csi_pb2_grpc.IdentityServicer, csi_pb2_grpc.add_IdentityServicer_to_server),
    (csi_pb2_grpc.ControllerServicer, csi_pb2_grpc.add_ControllerServicer_to_server),
    (csi_pb2_grpc.GroupControllerServicer, csi_pb2_grpc.add_GroupControllerServicer_to_server),
    (csi_pb2_grpc.SnapshotMetadataServicer, csi_pb2_grpc.add_SnapshotMetadataServicer_to_server),
    (csi_pb2_grpc.NodeServicer, csi_pb2_grpc.add_NodeServicer_to_server),
    (tidemark_pb2_grpc.TidemarkServicer, tidemark_pb2_grpc.add_TidemarkServicer_to_server),
    (pluginregistration_pb2_grpc.RegistrationServicer, pluginregistration_pb2_grpc.add_RegistrationServicer_to_server),
)

OPTIONS = (("grpc.max_send_message_length", -1),)
"""Lists are bounded by paging; a tree is read by this driver's own client, which takes messages of any size."""


class Server:
    """One server. `start` may be called once; `stop` any number of times."""

    def __init__(
        self, url: str, servicers: Sequence[object], interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    ) -> None:
        self.path = socket_path(url)
        self._servicers = servicers
        self._interceptors = interceptors
        self._server: grpc.aio.Server | None = None
        self._inode = (0, 0)

    async def start(self) -> None:
        """Bind and serve. Raises Precondition where the socket cannot be had."""
        _make_parent(self.path.parent)
        clear_stale(self.path)
        adders = [(adder(servicer), servicer) for servicer in self._servicers]
        server = grpc.aio.server(interceptors=list(self._interceptors), options=list(OPTIONS))
        try:
            for add, servicer in adders:
                add(servicer, server)
            with _private():
                server.add_insecure_port(f"unix://{self.path}")
            status = self.path.lstat()
            await server.start()
        except (RuntimeError, OSError) as error:
            await server.stop(None)
            raise Precondition(f"socket {self.path} cannot be made: {error}; look at its directory") from error
        self._inode = (status.st_dev, status.st_ino)
        self._server = server

    async def stop(self, grace: float) -> None:
        """Take no more calls, give the running ones `grace` seconds, cancel the rest, remove the socket.

        Cancelled calls leave their work to go on: see CallTracker.drain.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        await server.stop(grace)
        try:
            status = self.path.lstat()
            # gRPC removes it when it stops listening, at the start of the grace; by now another server may have made its
            # own there.
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            return


def socket_path(url: str) -> Path:
    """The path in `unix:///path.sock`. Raises InvalidRequest for every other form."""
    path = url.removeprefix("unix://")
    if path == url or not path.startswith("/") or not path.endswith(".sock") or not path.isprintable():
        raise InvalidRequest(f"endpoint {url!r} is not served: give unix:///absolute/path.sock")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidRequest(f"endpoint {url!r} is too long: a socket's path has at most {_MAX_SOCKET_PATH} bytes")
    return Path(os.path.normpath(path))


def clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse anything else that lies there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Precondition(f"{path} is there and is no socket: remove it or choose another endpoint")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Precondition(f"socket {path} cannot be made: {error.strerror}; look at its directory") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # somebody listens, and has a full queue
        except OSError as error:
            raise Precondition(
                f"socket {path} cannot be looked at: {error.strerror}; remove it if it is old"
            ) from error
    raise Precondition(f"another process serves {path}: stop it, or choose another endpoint")


def adder(servicer: object) -> Callable[[Any, Any], None]:
    """The function of the generated code that adds a servicer to a server."""
    for kind, adder in _ADDERS:
        if isinstance(servicer, kind):
            return adder
    raise TypeError(f"{type(servicer).__name__} serves no protocol that is known here")


def _make_parent(directory: Path) -> None:
    try:
        if not directory.exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Precondition(f"directory {directory} cannot be made: {error.strerror}; make it") from error


@contextmanager
def _private() -> Iterator[None]:
    """The mode is right from the first moment: a chmod after the bind would leave a window."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)

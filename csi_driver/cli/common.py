"""What the subcommands share: the option for the socket, and the connection to the agent.

Neither rich nor gRPC is imported at the top: `tidemark agent` loads this module too, and stays small.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli import sizes
from csi_driver.cli.failure import Failure

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client

__all__ = ["Endpoint", "Failure", "connect", "endpoint_of", "retry_while_busy", "size_of"]


def endpoint_of(text: str) -> str:
    """Return an endpoint as gRPC reads it. A bare path and `unix:/path`, as sidecars write them, are accepted too."""
    path = text.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//"):
        raise typer.BadParameter(f"{text!r} is not a socket: use unix:///run/tidemark/csi.sock")
    return f"unix://{path}"


def size_of(text: str, option: str) -> int:
    """Parse the value of a size option."""
    try:
        return sizes.parse(text)
    except sizes.BadSize as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


Endpoint = Annotated[
    str,
    typer.Option(
        envvar="CSI_ENDPOINT",
        metavar="SOCKET",
        callback=endpoint_of,
        help="CSI socket of the agent, e.g. unix:///run/tidemark/csi.sock.",
    ),
]


@contextmanager
def connect(endpoint: str) -> "Iterator[Client]":
    """Yield a client of the agent. A refused call becomes a Failure in the user's words."""
    from csi_driver.cli.refusals import explain
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    with Client(endpoint) as client:
        try:
            yield client
        except CallRefused as refused:
            raise Failure(explain(refused, client)) from None


def retry_while_busy(call: Callable[[], None], seconds: float) -> None:
    """Retry a call that removes something while it is refused as busy, as the kubelet does, for up to `seconds`.

    A device stays busy for a moment if another program has created a mount namespace meanwhile: it holds a copy of every
    mount until it ends.
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    end = time.monotonic() + seconds
    while True:
        try:
            call()
        except CallRefused as refused:
            if refused.code not in {"ABORTED", "FAILED_PRECONDITION"} or time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return

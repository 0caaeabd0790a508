"""What the subcommands share: options, the connection to the agent, names instead of ids, output and errors.

Neither rich nor gRPC is imported at the top: `tidemark agent` loads this module too, and stays small.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csi_driver.cli import sizes
from csi_driver.domain.ids import parse

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Kind, Node


WIDE = 1000
"""Columns of output that is never wrapped."""

STAGING = Path(os.environ.get("TIDEMARK_STAGING", "/run/tidemark/staging"))
"""Under /run: volumes that `tidemark mount` has staged are no longer staged after a reboot. TIDEMARK_STAGING sets another
directory for users other than root; it must be the same for mount and umount."""


class Failure(Exception):
    """Printed on stderr as one sentence that ends with the next step; the exit code is 1."""


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
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@contextmanager
def connect(endpoint: str) -> "Iterator[Client]":
    """Yield a client of the agent. A refused call becomes a Failure with the agent's message."""
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    with Client(endpoint) as client:
        try:
            yield client
        except CallRefused as refused:
            raise Failure(refused.message) from None


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


def shown_name(node: "Node", nodes: "Sequence[Node]" = ()) -> str:
    """Return the name to print: `group/volume` for a group's member, whose name joins the two parts by NUL."""
    group, found, source_id = node.name.partition("\0")
    if not found:
        return node.name
    source = next((n.name for n in nodes if n.id == source_id), source_id)
    return f"{group}/{source}"


def find(client: "Client", text: str, *kinds: "Kind") -> "Node":
    """Return the object with this name or id. Raises Failure if there is none, or more than one."""
    nodes = client.tree()
    kind_names = " or ".join(kinds)
    matches = [n for n in nodes if n.kind in kinds and n.id == text]
    matches = matches or [n for n in nodes if n.kind in kinds and text in {n.name, shown_name(n, nodes)}]
    if not matches:
        command = "tidemark tree" if len(kinds) > 1 or kinds[0] == "group" else f"tidemark {kinds[0]} list"
        raise Failure(f"no {kind_names} is called {text!r}: `{command}` lists them")
    if len(matches) > 1:
        raise Failure(
            f"{text!r} is the name of {len(matches)} objects: use an id, {' or '.join(n.id for n in matches)}"
        )
    return matches[0]


def find_id(client: "Client", text: str, *kinds: "Kind") -> str:
    """Return the id alone. An id is passed on as it is, so that it works even if a part of the tree cannot be read."""
    return text if parse(text) else find(client, text, *kinds).id


def views(node: "Node") -> tuple[tuple[str, ...], ...]:
    """Return the mount points of a volume, each with every path that leads to it."""
    return node.places or tuple((path,) for path in node.used_by)


def places(node: "Node") -> str:
    """Return the mount points of a volume for people, without the staging directories of `tidemark mount`."""
    points = [place[0] for place in views(node) if not any(Path(path).is_relative_to(STAGING) for path in place)]
    if node.holder:
        points.append(f"held by {node.holder}")
    return ", ".join(points) or ("staged" if node.used_by else "")


def print_json(value: Any) -> None:
    """Print dataclasses, or lists of them, as JSON with a final newline."""
    plain = [asdict(item) for item in value] if isinstance(value, list) else value
    typer.echo(json.dumps(plain if isinstance(plain, list | dict) else asdict(plain), indent=2, default=_plain))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print a table for people, or `empty` if it has no rows. A title that begins with `>` aligns its column to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in columns:
        right = title.startswith(">")
        table.add_column(title.removeprefix(">"), justify="right" if right else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # One line for each row, however wide: a wrapped name can neither be copied nor found by grep.
    Console(width=WIDE).print(table)


def show_time(moment: datetime) -> str:
    """Return a time in the local time zone, to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")

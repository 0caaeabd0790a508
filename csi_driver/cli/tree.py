"""`tidemark tree`: volumes, their snapshots and clones, and the bytes that each has of its own."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_pool, complete_volume
from csi_driver.cli.objects import AgentObjects, is_parent
from csi_driver.cli.output.documents import as_text, document
from csi_driver.cli.output.escape import escape
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import say
from csi_driver.cli.output.table import UNLIMITED, shorten, terminal_width
from csi_driver.cli.output.times import minute
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from csi_driver.rpc.clients.cli_client import Node

INDENT = 4
"""Columns that each level of the tree takes."""

_LEAST_NAME = 16


def tree(
    volume: Annotated[
        str,
        typer.Argument(
            help="Only this volume, its snapshots and clones, e.g. db.",
            autocompletion=complete_volume,
            show_default=False,
        ),
    ] = "",
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="Only this pool, e.g. default.", autocompletion=complete_pool)
    ] = "",
    no_usage: Annotated[
        bool, typer.Option("--no-usage", help="Do not count bytes; faster if volumes are large and fragmented.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Draw volumes, their snapshots, and clones of those.

    "Own" is the space that deleting this object alone frees; "shared" is space that others use as well.

    $ tidemark tree
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        volume_id = AgentObjects.read_for(client, "volume", [volume]).find(volume, "volume").id if volume else ""
        objects = AgentObjects.read(client, pool, volume_id, with_usage=not no_usage)
    if form.format == "name":
        for node in objects.nodes:
            say(objects.bare_name(node))
        return
    if not form.for_people:
        typer.echo(as_text([document(node, objects) for node in objects.nodes], form.format))
        return
    from rich.console import Console

    if not objects.nodes:
        say("no volumes: `tidemark volume create db 10Gi` creates one")
        return
    width = UNLIMITED if form.wide else terminal_width()
    Console(width=width).print(draw(objects, width, form.wide))


def draw(objects: AgentObjects, width: int = UNLIMITED, wide: bool = False) -> "Tree":
    """Return the objects as a tree, each below its source if that still exists. `wide`: with those of mounted snapshots."""
    from rich.tree import Tree

    nodes = objects.all if wide else objects.nodes
    by_id = {node.id: node for node in nodes}
    children: dict[str, list[Node]] = {}
    roots: list[Node] = []
    for node in nodes:
        parent = by_id.get(node.parent_id)
        if parent is not None and is_parent(parent, node):
            children.setdefault(parent.id, []).append(node)
        else:
            roots.append(node)
    drawn = Tree("", hide_root=True)

    def add(branch: Tree, node: "Node", depth: int) -> None:
        below = branch.add(_label(node, objects, width - INDENT * depth, is_root=depth == 0))
        for child in children.get(node.id, ()):
            add(below, child, depth + 1)

    # Group snapshots last: their members are drawn below their volumes.
    for root in sorted(roots, key=lambda n: n.kind == "group"):
        add(drawn, root, 0)
    return drawn


def _label(node: "Node", objects: AgentObjects, width: int, is_root: bool) -> "Text":
    """Return name and details of a node: on one line if they fit, else the details below the name."""
    from rich.text import Text

    style = {"volume": "bold", "snapshot": "cyan", "group": "magenta", "other": "dim"}[node.kind]
    name = Text(shorten(escape(objects.name(node)), max(width, _LEAST_NAME)), style)
    details = _details(node, objects, is_root)
    one_line = Text("  ").join([name, *details])
    if one_line.cell_len <= width:
        return one_line
    lines, line = [name], Text("  ")
    for detail in (Text(shorten(detail.plain, max(width - 2, _LEAST_NAME)), detail.style) for detail in details):
        if line.cell_len > 2 and line.cell_len + 2 + detail.cell_len > width:
            lines.append(line)
            line = Text("  ")
        line = line.append_text(detail) if line.cell_len == 2 else line.append("  ").append_text(detail)
    return Text("\n").join([*lines, line])


def _details(node: "Node", objects: AgentObjects, is_root: bool) -> "list[Text]":
    from rich.text import Text

    titles = {"group": "group snapshot", "other": "of a kind that this version does not know"}
    kind = f"{titles.get(node.kind, node.kind)}, {show(node.size)}"
    details = [Text(f"{kind}, {escape(node.format)}" if node.format else kind)]
    if node.usage:
        details.append(Text(f"own {show(node.usage.exclusive)}", "green"))
        details.append(Text(f"shared {show(node.usage.shared)}", "yellow"))
    details.append(Text(minute(node.created), "dim"))
    users = objects.users(node)
    if users:
        details.append(Text(escape(users if users.startswith("held by") else f"in use: {users}"), "red"))
    if node.condition:
        details.append(Text(escape(node.condition), "red"))
    source = objects.source(node) if is_root and node.parent_id else ""
    if source:
        details.append(Text(escape(f"{'clone of' if node.kind == 'volume' else 'of'} {source}"), "dim"))
    return details

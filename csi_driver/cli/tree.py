"""`tidemark tree`: volumes, their snapshots and clones, and the bytes that each has of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import WIDE, Endpoint, Json, connect, find_id, places, print_json, show_time, shown_name
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from csi_driver.rpc.clients.cli_client import Node


def tree(
    volume: Annotated[str, typer.Argument(help="Only this volume, its snapshots and clones, e.g. db.")] = "",
    pool: Annotated[str, typer.Option(metavar="POOL", help="Only this pool, e.g. default.")] = "",
    no_usage: Annotated[
        bool, typer.Option("--no-usage", help="Do not count bytes; faster if volumes are large and fragmented.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Draw volumes, their snapshots, and clones of those.

    "Own" is the space that deleting this object alone frees; "shared" is space that others use as well.

    $ tidemark tree
    """
    with connect(endpoint) as client:
        volume_id = find_id(client, volume, "volume") if volume else ""
        nodes = client.tree(pool, volume_id, with_usage=not no_usage)
    if as_json:
        print_json(nodes)
        return
    from rich.console import Console

    if not nodes:
        typer.echo("no volumes: `tidemark volume create NAME --size 10Gi` creates one")
        return
    # Never wrapped: the lines of a tree are hard enough to follow.
    Console(width=WIDE).print(draw(nodes))


def draw(nodes: "Sequence[Node]") -> "Tree":
    """Return the nodes as a tree: each below its source, if that still exists."""
    from rich.tree import Tree

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

    def add(branch: Tree, node: "Node") -> None:
        below = branch.add(_label(node, nodes, gone=bool(node.parent_id) and node in roots))
        for child in children.get(node.id, ()):
            add(below, child)

    # Group snapshots last: their members are drawn below their volumes.
    for root in sorted(roots, key=lambda n: n.kind == "group"):
        add(drawn, root)
    return drawn


def is_parent(parent: "Node", node: "Node") -> bool:
    """Return whether `parent` is the source of `node`, not a later object with the same name.

    The record of a clone of a snapshot has the uid of the snapshot's own volume.
    """
    return node.parent_uid in {parent.uid, parent.parent_uid if parent.kind == "snapshot" else parent.uid}


def _label(node: "Node", nodes: "Sequence[Node]", gone: bool) -> "Text":
    from rich.text import Text

    style = {"volume": "bold", "snapshot": "cyan", "group": "magenta", "other": "dim"}[node.kind]
    titles = {"group": "group snapshot", "other": "of a kind that this version does not know"}
    kind = titles.get(node.kind, node.kind)
    text = Text.assemble((shown_name(node, nodes), style), (f"  {kind}, {show(node.size)}", ""))
    if node.format:
        text.append(f", {node.format}")
    if node.usage:
        text.append("  own ", "dim").append(show(node.usage.exclusive), "green")
        text.append("  shared ", "dim").append(show(node.usage.shared), "yellow")
    text.append(f"  {show_time(node.created)}", "dim")
    if node.used_by:
        text.append(f"  in use: {places(node)}", "red")
    elif node.holder:
        text.append(f"  held by {node.holder}", "red")
    if node.condition:
        text.append(f"  {node.condition}", "red")
    if gone:
        text.append(
            f"  clone of {node.parent_id}, which is gone"
            if node.kind == "volume"
            else f"  of {node.parent_id}, which is gone",
            "dim",
        )
    return text

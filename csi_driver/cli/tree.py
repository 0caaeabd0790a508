"""`tidemark tree`: disks, their snapshots, what was made from those, and how many bytes each has for itself."""

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
    volume: Annotated[str, typer.Argument(help="Only this disk and what hangs on it.")] = "",
    pool: Annotated[str, typer.Option(metavar="POOL", help="Only this pool.")] = "",
    no_usage: Annotated[
        bool, typer.Option("--no-usage", help="Do not count bytes: quicker where disks are large and fragmented.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Draw disks, their snapshots, and the disks made from those.

    "Own" is what deleting this one alone would free; "shared" is what others refer to as well.
    """
    with connect(endpoint) as client:
        of = find_id(client, volume, "volume") if volume else ""
        nodes = client.tree(pool, of, with_usage=not no_usage)
    if as_json:
        print_json(nodes)
        return
    from rich.console import Console

    if not nodes:
        typer.echo("no disks yet: `tidemark volume create NAME --size 10Gi` makes one")
        return
    # Never folded: the lines of a tree are hard enough to follow.
    Console(width=WIDE).print(draw(nodes))


def draw(nodes: "Sequence[Node]") -> "Tree":
    """The nodes as a tree: each below what it was made from, as long as that is still the same object."""
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

    # Groups last: their members are drawn below the disks that they were cut from.
    for root in sorted(roots, key=lambda n: n.kind == "group"):
        add(drawn, root)
    return drawn


def is_parent(parent: "Node", node: "Node") -> bool:
    """Whether an object with the parent's id is the parent itself, not another that was given its name later.

    Of a disk made from a snapshot the record keeps the uid of the snapshot's own source.
    """
    return node.parent_uid in {parent.uid, parent.parent_uid if parent.kind == "snapshot" else parent.uid}


def _label(node: "Node", nodes: "Sequence[Node]", gone: bool) -> "Text":
    from rich.text import Text

    style = {"volume": "bold", "snapshot": "cyan", "group": "magenta", "other": "dim"}[node.kind]
    words = {"volume": "disk", "group": "group snapshot", "other": "of a kind that this version does not know"}
    kind = words.get(node.kind, node.kind)
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
        text.append(f"  made from {node.parent_id}, which is gone", "dim")
    return text

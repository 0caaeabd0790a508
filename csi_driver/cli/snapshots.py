"""`tidemark snapshot` and `tidemark group`: disks at one moment, alone or several together."""

from typing import Annotated

import typer

from csi_driver.cli.common import (
    Endpoint,
    Json,
    connect,
    find_id,
    print_json,
    print_table,
    show_time,
    shown_name,
)
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

app = typer.Typer(help="Snapshots of one disk: create, delete, list.", no_args_is_help=True)
group_app = typer.Typer(help="Snapshots of several disks at one moment: create, delete.", no_args_is_help=True)


@app.command()
def create(
    volume: Annotated[str, typer.Argument(help="Name or id of the disk, in use or not.")],
    name: Annotated[str, typer.Argument(help="The same name again answers the same snapshot.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Keep what a disk holds now.

    $ tidemark snapshot create db before-upgrade
    """
    with connect(endpoint) as client:
        cut = client.create_snapshot(find_id(client, volume, "volume"), name)
    if as_json:
        print_json(cut)
    else:
        typer.echo(f"snapshot {name} holds {volume} as of {show_time(cut.created)}: {cut.id}")


@app.command()
def delete(
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT", help="Names or ids.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Delete snapshots. The disk stays, and so do the disks that were made from them."""
    with connect(endpoint) as client:
        for snapshot_id in [find_id(client, text, "snapshot") for text in snapshots]:
            client.delete_snapshot(snapshot_id)
            typer.echo(f"deleted {snapshot_id}")


@app.command("list")
def list_(
    volume: Annotated[str, typer.Option("--of", metavar="VOLUME", help="Those of one disk only.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Show all snapshots, or those of one disk."""
    with connect(endpoint) as client:
        nodes = client.tree()
        of = find_id(client, volume, "volume") if volume else ""
    snapshots = [n for n in nodes if n.kind == "snapshot" and of in {"", n.parent_id}]
    if as_json:
        print_json(snapshots)
        return
    names = {node.id: shown_name(node, nodes) for node in nodes}
    print_table(
        ("NAME", "OF", ">SIZE", "HOLDS", "CUT", "CONDITION"),
        [
            (
                names[s.id],
                names.get(s.parent_id, s.parent_id),
                show(s.size),
                s.format,
                show_time(s.created),
                s.condition,
            )
            for s in snapshots
        ],
        "no snapshots yet: `tidemark snapshot create VOLUME NAME` makes one",
    )


@group_app.command("create")
def create_group(
    name: Annotated[str, typer.Argument(help="The same name again answers the same group.")],
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME", help="Names or ids of the disks.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Keep what several disks hold at one moment: all of them, or none.

    $ tidemark group create nightly db db-log
    """
    with connect(endpoint) as client:
        group = client.create_group(name, [find_id(client, text, "volume") for text in volumes])
    if as_json:
        print_json(group)
    else:
        typer.echo(f"group {name} holds {len(group.members)} disks as of {show_time(group.created)}: {group.id}")


@group_app.command("delete")
def delete_group(
    group: Annotated[str, typer.Argument(help="Name or id.")], endpoint: Endpoint = DEFAULT_ENDPOINT
) -> None:
    """Delete a group with all its snapshots."""
    with connect(endpoint) as client:
        group_id = find_id(client, group, "group")
        client.delete_group(group_id)
    typer.echo(f"deleted {group_id}")

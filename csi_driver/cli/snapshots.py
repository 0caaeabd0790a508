"""`tidemark snapshot` and `tidemark group`: snapshots of one volume, or of several at one moment."""

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

app = typer.Typer(help="Snapshots of one volume: create, delete, list.", no_args_is_help=True)
group_app = typer.Typer(help="Snapshots of several volumes at one moment: create, delete.", no_args_is_help=True)


@app.command()
def create(
    volume: Annotated[str, typer.Argument(help="Name or id of the volume, in use or not, e.g. db.")],
    name: Annotated[
        str, typer.Argument(help="Name of the snapshot; the same name returns the same snapshot, e.g. before-upgrade.")
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Take a snapshot of a volume.

    $ tidemark snapshot create db before-upgrade
    """
    with connect(endpoint) as client:
        snapshot = client.create_snapshot(find_id(client, volume, "volume"), name)
    if as_json:
        print_json(snapshot)
    else:
        typer.echo(f"snapshot {name} has the content of {volume} as of {show_time(snapshot.created)}: {snapshot.id}")


@app.command()
def delete(
    snapshots: Annotated[list[str], typer.Argument(metavar="SNAPSHOT", help="Names or ids of snapshots.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Delete snapshots. Their volume and clones of them stay.

    $ tidemark snapshot delete before-upgrade
    """
    with connect(endpoint) as client:
        for snapshot_id in [find_id(client, text, "snapshot") for text in snapshots]:
            client.delete_snapshot(snapshot_id)
            typer.echo(f"deleted {snapshot_id}")


@app.command("list")
def list_(
    volume: Annotated[str, typer.Option("--of", metavar="VOLUME", help="Only snapshots of this volume, e.g. db.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """List all snapshots, or those of one volume.

    $ tidemark snapshot list --of db
    """
    with connect(endpoint) as client:
        nodes = client.tree()
        of = find_id(client, volume, "volume") if volume else ""
    snapshots = [n for n in nodes if n.kind == "snapshot" and of in {"", n.parent_id}]
    if as_json:
        print_json(snapshots)
        return
    names = {node.id: shown_name(node, nodes) for node in nodes}
    print_table(
        ("NAME", "VOLUME", ">SIZE", "FORMAT", "CREATED", "CONDITION"),
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
        "no snapshots: `tidemark snapshot create VOLUME NAME` takes one",
    )


@group_app.command("create")
def create_group(
    name: Annotated[
        str, typer.Argument(help="Name of the group snapshot; the same name returns the same one, e.g. nightly.")
    ],
    volumes: Annotated[
        list[str], typer.Argument(metavar="VOLUME", help="Names or ids of the volumes, e.g. db db-log.")
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Take snapshots of several volumes at one moment: all, or none.

    $ tidemark group create nightly db db-log
    """
    with connect(endpoint) as client:
        group = client.create_group(name, [find_id(client, text, "volume") for text in volumes])
    if as_json:
        print_json(group)
    else:
        typer.echo(
            f"group snapshot {name} has {len(group.members)} volumes as of {show_time(group.created)}: {group.id}"
        )


@group_app.command("delete")
def delete_group(
    group: Annotated[str, typer.Argument(help="Name or id of the group snapshot.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Delete a group snapshot with all its members.

    $ tidemark group delete nightly
    """
    with connect(endpoint) as client:
        group_id = find_id(client, group, "group")
        client.delete_group(group_id)
    typer.echo(f"deleted {group_id}")

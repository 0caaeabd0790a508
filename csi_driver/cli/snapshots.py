"""`tidemark snapshot`: snapshots of one volume."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_snapshot, complete_volume
from csi_driver.cli.deletion import DryRun, delete_planned, plan_deletion, print_dry_run
from csi_driver.cli.failure import Failure
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document, plain
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list, print_object, print_result
from csi_driver.cli.output.times import minute, second
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Client, Node

app = typer.Typer(cls=CommandGroup, help="Snapshots of one volume: create, delete, list, show.", no_args_is_help=True)


@app.command()
def create(
    volume: Annotated[
        str,
        typer.Argument(help="Name or id of the volume, in use or not, e.g. db.", autocompletion=complete_volume),
    ],
    name: Annotated[
        str, typer.Argument(help="Name of the snapshot; the same name returns the same snapshot, e.g. before-upgrade.")
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Take a snapshot of a volume.

    $ tidemark snapshot create db before-upgrade
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "volume", [volume])
        source = objects.find(volume, "volume")
        existing = next((snapshot for snapshot in objects.snapshots if snapshot.name == name), None)
        if existing is None:
            check_new_name(name, "snapshot")
        elif existing.parent_uid != source.uid:
            raise Failure(
                f"snapshot {name} exists, of {objects.source(existing)}: use another name, or "
                f"`tidemark snapshot delete {objects.argument(existing)}` first"
            )
        snapshot = client.create_snapshot(source.id, name)
    of, taken = objects.name(source), second(snapshot.created)
    sentence = (
        f"snapshot {name} of {of} exists, taken at {taken}: unchanged"
        if existing
        else f"snapshot {name} has the content of {of} as of {taken}"
    )
    print_result(form, plain(snapshot), name, sentence)


@app.command()
def delete(
    snapshots: Annotated[
        list[str],
        typer.Argument(metavar="SNAPSHOT", help="Names or ids of snapshots.", autocompletion=complete_snapshot),
    ],
    dry_run: DryRun = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Delete snapshots. Their volume and clones of them stay.

    $ tidemark snapshot delete before-upgrade
    $ tidemark snapshot delete nightly-1 nightly-2 --dry-run
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "snapshot", snapshots)
        plan = plan_deletion(objects, [objects.find(text, "snapshot") for text in snapshots])
        if dry_run:
            print_dry_run(form, client, objects, plan)
            return
        if plan.refusal:
            raise Failure(plan.refusal)
        delete_planned(client, objects, plan)


@app.command("list")
def list_(
    volume: Annotated[
        str,
        typer.Option(
            "--of", metavar="VOLUME", help="Only snapshots of this volume, e.g. db.", autocompletion=complete_volume
        ),
    ] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List all snapshots, or those of one volume.

    $ tidemark snapshot list --of db
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
    snapshots = objects.snapshots
    if volume:
        # By id: snapshots of an earlier volume of that name are listed too, and say so.
        source = objects.find(volume, "volume")
        snapshots = [snapshot for snapshot in snapshots if snapshot.parent_id == source.id]
    print_list(
        form,
        snapshots,
        _columns(objects),
        document=lambda snapshot: document(snapshot, objects),
        name=objects.bare_name,
        empty="no snapshots: `tidemark snapshot create VOLUME NAME` takes one",
    )


@app.command("show")
def show_(
    snapshot: Annotated[
        str,
        typer.Argument(help="Name or id of the snapshot, e.g. before-upgrade.", autocompletion=complete_snapshot),
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Show one snapshot: its volume, its clones, its space and where it is mounted.

    $ tidemark snapshot show before-upgrade
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        node = _with_usage(client, objects.find(snapshot, "snapshot"))
    print_object(form, document(node, objects), objects.bare_name(node), _lines(node, objects, form.wide))


def _with_usage(client: "Client", snapshot: "Node") -> "Node":
    """Return a snapshot with its bytes, counted for its volume alone; as it is if that volume is deleted."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    try:
        nodes = client.tree(volume_id=snapshot.parent_id, with_usage=True)
    except CallRefused:
        return snapshot
    return next((node for node in nodes if node.id == snapshot.id), snapshot)


def _columns(objects: AgentObjects) -> "list[Column[Node]]":
    return [
        Column("NAME", objects.name),
        Column("VOLUME", objects.source),
        Column("SIZE", lambda s: show(s.size), key=lambda s: s.size, right=True, rank=2),
        Column("FORMAT", lambda s: s.format, rank=4),
        Column("CREATED", lambda s: minute(s.created), key=lambda s: s.created, rank=1),
        Column("CONDITION", lambda s: s.condition, rank=3),
        Column("MOUNTED AT", objects.users, wide=True),
        Column("STORED NAME", lambda s: s.name.replace("\0", "/"), wide=True),
        Column("ID", lambda s: s.id, wide=True),
    ]


def _lines(snapshot: "Node", objects: AgentObjects, wide: bool) -> list[tuple[str, str]]:
    clones = objects.clones_of(snapshot)
    text = [
        ("name", objects.name(snapshot)),
        ("volume", objects.source(snapshot)),
        ("size", show(snapshot.size)),
        ("format", snapshot.format),
        ("pool", snapshot.pool),
        ("created", second(snapshot.created)),
        ("mounted at", objects.users(snapshot) or "not mounted"),
        ("clones", ", ".join(objects.name(clone) for clone in clones) or "none"),
    ]
    group = objects.get(snapshot.group_id) if snapshot.group_id else None
    if group:
        text.append(("group", objects.name(group)))
    if snapshot.usage:
        text.append(
            ("own space", f"{show(snapshot.usage.exclusive)}, {show(snapshot.usage.shared)} shared with others")
        )
    if snapshot.condition:
        text.append(("condition", snapshot.condition))
    if wide:
        text += [("stored name", snapshot.name.replace("\0", "/")), ("id", snapshot.id), ("uid", snapshot.uid)]
    return text

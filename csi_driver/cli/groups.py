"""`tidemark group`: snapshots of several volumes at one moment."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_group, complete_volume
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document, plain
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list, print_object, print_result, say
from csi_driver.cli.output.times import minute, second
from csi_driver.cli.sizes import show
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Node

app = typer.Typer(
    cls=CommandGroup,
    help="Snapshots of several volumes at one moment: create, delete, list, show.",
    no_args_is_help=True,
)

Group = Annotated[
    str, typer.Argument(help="Name or id of the group snapshot, e.g. nightly.", autocompletion=complete_group)
]


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(help="Name of the group snapshot; the same name returns the same one, e.g. nightly.")
    ],
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="VOLUME", help="Names or ids of the volumes, e.g. db db-log.", autocompletion=complete_volume
        ),
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Take snapshots of several volumes at one moment: all, or none.

    $ tidemark group create nightly db db-log
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "volume", volumes)
        existing = next((group for group in objects.groups if group.name == name), None)
        if existing is None:
            check_new_name(name, "group snapshot")
        sources = [objects.find(text, "volume") for text in volumes]
        group = client.create_group(name, [source.id for source in sources])
    of = ", ".join(objects.name(source) for source in sources)
    taken = second(group.created)
    sentence = (
        f"group snapshot {name} of {of} exists, taken at {taken}: unchanged"
        if existing
        else f"group snapshot {name} has the content of {of} as of {taken}"
    )
    print_result(form, plain(group), name, sentence)


@app.command()
def delete(group: Group, endpoint: Endpoint = DEFAULT_ENDPOINT) -> None:
    """Delete a group snapshot with all its members.

    $ tidemark group delete nightly
    """
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "group", [group])
        node = objects.find(group, "group")
        client.delete_group(node.id)
    say(f"group snapshot {objects.name(node)} is deleted with its members")


@app.command("list")
def list_(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List all group snapshots.

    $ tidemark group list
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
    print_list(
        form,
        objects.groups,
        [
            Column("NAME", objects.name),
            Column("VOLUMES", lambda g: ", ".join(_volumes(g, objects))),
            Column("SIZE", lambda g: show(g.size), key=lambda g: g.size, right=True, rank=2),
            Column("CREATED", lambda g: minute(g.created), key=lambda g: g.created, rank=1),
            Column("ID", lambda g: g.id, wide=True),
        ],
        document=lambda group: document(group, objects),
        name=objects.bare_name,
        empty="no group snapshots: `tidemark group create NAME VOLUME...` takes one",
    )


@app.command("show")
def show_(group: Group, endpoint: Endpoint = DEFAULT_ENDPOINT, output: Output = "table", as_json: Json = False) -> None:
    """Show one group snapshot and its members.

    $ tidemark group show nightly
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
    node = objects.find(group, "group")
    lines = [
        ("name", objects.name(node)),
        ("size", show(node.size)),
        ("pool", node.pool),
        ("created", second(node.created)),
        ("members", ", ".join(objects.name(member) for member in _members(node, objects))),
    ]
    print_object(
        form, document(node, objects), objects.bare_name(node), [*lines, ("id", node.id)] if form.wide else lines
    )


def _members(group: "Node", objects: AgentObjects) -> "list[Node]":
    return [snapshot for snapshot in objects.snapshots if snapshot.group_id == group.id]


def _volumes(group: "Node", objects: AgentObjects) -> list[str]:
    return [objects.source(member) for member in _members(group, objects)]

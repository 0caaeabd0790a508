"""`tidemark volume rename`: the name by which people know a volume."""

from typing import Annotated

import typer

from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_volume
from csi_driver.cli.failure import Failure
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import print_result
from csi_driver.cli.volume_views import reread
from csi_driver.settings import DEFAULT_ENDPOINT


def refuse_shown_name(objects: AgentObjects, name: str) -> None:
    """Refuse to create a volume under the name that another one was given by `rename`."""
    other = next((one for one in objects.volumes if objects.name(one) == name), None)
    if other is not None:
        raise Failure(
            f"volume {name} exists; it was created as {other.name}, and renamed: use another name, or "
            f"`tidemark volume rename {objects.argument(other)} NAME` first"
        )


def rename(
    volume: Annotated[str, typer.Argument(help="Name or id of the volume, e.g. db.", autocompletion=complete_volume)],
    name: Annotated[str, typer.Argument(help="The new name, e.g. orders.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Rename a volume, in use or not. Its id stays, and so does the name of its creation, by which it is found too.

    In a cluster nothing changes: a PersistentVolume has the id.

    $ tidemark volume rename db orders
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        node = objects.find(volume, "volume")
        before = objects.name(node)
        other = next(
            (one for one in objects.volumes if one.id != node.id and name in (one.name, objects.name(one))), None
        )
        if other is not None:
            created = "" if objects.name(other) == name else f", which was created as {name}"
            raise Failure(
                f"{before} cannot be renamed to {name}: {objects.name(other)} exists{created}; use another name"
            )
        if name != node.name:
            check_new_name(name, "volume")
        client.set_label(node.id, name)
        node = reread(client, objects, node.id)
    after = AgentObjects([*(one for one in objects.all if one.id != node.id), node])
    kept = f"; it is still found as {node.name}, the name of its creation" if node.label else ""
    sentence = (
        f"volume {before} is named so already: unchanged" if before == name else f"volume {before} is {name} now{kept}"
    )
    print_result(form, document(node, after), after.bare_name(node), sentence)

"""`tidemark volume clone`: a new volume with the content of a volume or a snapshot."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli import sizes
from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_source
from csi_driver.cli.failure import Failure
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import document
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import print_result
from csi_driver.cli.volume_views import mount_hint
from csi_driver.domain.model import RAW, AccessMode, Capability, SizeRange, Source
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Node


def clone(
    source: Annotated[
        str,
        typer.Argument(
            help="Name or id of a volume, in use or not, or of a snapshot, e.g. db.", autocompletion=complete_source
        ),
    ],
    name: Annotated[str, typer.Argument(help="Name of the new volume; again with the same name: unchanged, e.g. db2.")],
    size: Annotated[str, typer.Option(metavar="SIZE", help="Minimum size, e.g. 20Gi; default: the source's.")] = "",
    block: Annotated[
        bool, typer.Option("--block", help="Raw block device, as a source that was never used is.")
    ] = False,
    thick: Annotated[bool, typer.Option("--thick", help="Thick provisioning: allocate all space now.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Clone a volume or a snapshot: a new volume with the same content, in milliseconds and without taking space.

    $ tidemark volume clone db db2
    """
    from csi_driver.cli.refusals import space_failure
    from csi_driver.rpc.clients.cli_client import CallRefused

    form = output_form(output, as_json=as_json)
    wanted = SizeRange(sizes.positive(size, "--size") if size else 0)
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        origin = objects.find(source, "volume", "snapshot")
        existing = next((volume for volume in objects.volumes if name in (volume.name, objects.name(volume))), None)
        if existing is None:
            check_new_name(name, "volume")
        else:
            _check_same(objects, existing, origin, name)
        raw = block or origin.format == RAW
        capability = Capability("block" if raw else "mount", AccessMode.WRITER)
        parameters = {"provisioning": "thick"} if thick else {}
        start = Source("snapshot" if origin.kind == "snapshot" else "volume", origin.id)
        try:
            created = client.create_volume(existing.name if existing else name, wanted, [capability], parameters, start)
        except CallRefused as refused:
            raise space_failure(refused, client, objects, origin.pool, max(wanted.required, origin.size)) from None
        objects = AgentObjects.read(client)
        volume = objects.find(created.id, "volume")
    what = f"{objects.name(origin)}, with {sizes.show(created.size)}{sizes.rounded(size, created.size)}"
    if existing is not None:
        sentence = f"volume {objects.name(volume)} exists as a clone of {what}: unchanged"
    else:
        sentence = f"volume {name} is a clone of {what}: {mount_hint(objects, volume, raw)}"
    print_result(form, document(volume, objects), objects.bare_name(volume), sentence)


def _check_same(objects: AgentObjects, existing: "Node", origin: "Node", name: str) -> None:
    """Refuse a name that another volume has: one that is not a clone of this source."""
    if existing not in objects.clones_of(origin):
        created = "" if objects.name(existing) == name else f", which was created as {name},"
        raise Failure(
            f"volume {objects.name(existing)} exists{created} and is not a clone of {objects.name(origin)}: use another name, or "
            f"`tidemark volume delete {objects.argument(existing)}` first"
        )

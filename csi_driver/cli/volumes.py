"""`tidemark volume`: create, delete, expand, list and show volumes."""

from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli import sizes, volume_views
from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_pool, complete_source, complete_volume
from csi_driver.cli.controller import ApiProxy, Kubeconfig
from csi_driver.cli.deletion import DryRun, confirm, delete_planned, plan_deletion, print_dry_run
from csi_driver.cli.failure import Failure
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.names import check_new_name
from csi_driver.cli.node import Driver
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.orphans import orphaned
from csi_driver.cli.output.documents import document
from csi_driver.cli.output.escape import as_argument
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import print_list, print_object, print_result
from csi_driver.cli.refusals import in_our_words, space_failure
from csi_driver.cli.rename import refuse_shown_name
from csi_driver.domain.model import RAW, AccessMode, Capability, SizeRange, Source
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import CallRefused, Client, Node

app = typer.Typer(
    cls=CommandGroup,
    help="Volumes: create, delete, expand, list, show, clone, rename, export, import.",
    no_args_is_help=True,
)

Volume = Annotated[
    str, typer.Argument(help="Name or id of the volume, e.g. db.", autocompletion=complete_volume, show_default=False)
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the volume; the same name returns the same volume, e.g. db.")],
    size_argument: Annotated[
        str, typer.Argument(metavar="SIZE", help="Minimum size, e.g. 10Gi.", show_default=False)
    ] = "",
    size: Annotated[str, typer.Option(metavar="SIZE", help="The same as an option.")] = "",
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size, e.g. 12Gi.")] = "",
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Snapshot or volume to clone, e.g. before-upgrade.",
            autocompletion=complete_source,
        ),
    ] = "",
    block: Annotated[bool, typer.Option("--block", help="Raw block device, never formatted.")] = False,
    fs_type: Annotated[
        str, typer.Option("--fs", metavar="ext4|xfs", help="File system; default: that of the source, or ext4.")
    ] = "",
    pool: Annotated[
        str,
        typer.Option(
            metavar="POOL", help="Pool; default: that of the source, or the first one.", autocompletion=complete_pool
        ),
    ] = "",
    thick: Annotated[bool, typer.Option("--thick", help="Thick provisioning: allocate all space now.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Create a volume, empty or as a clone of a snapshot or volume.

    $ tidemark volume create db 10Gi
    $ tidemark volume create db-test --from before-upgrade
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    if block and fs_type:
        raise typer.BadParameter("a raw block device has no file system: use --block or --fs")
    form = output_form(output, as_json=as_json)
    size_text = sizes.one_of(size_argument, size)
    size_range = SizeRange(
        sizes.positive(size_text, "SIZE") if size_text else 0, sizes.positive(limit, "--limit") if limit else 0
    )
    parameters = {"pool": pool} if pool else {}
    if thick:
        parameters["provisioning"] = "thick"
    with connect(endpoint) as client:
        # Without a source, a controller creates volumes also while one node is silent.
        objects = AgentObjects.read(client) if source else AgentObjects.read_for(client, "volume", [])
        existing = next((volume for volume in objects.volumes if volume.name == name), None)
        if existing is None:
            check_new_name(name, "volume")
            refuse_shown_name(objects, name)
        start = objects.find(source, "snapshot", "volume") if source else None
        raw = block or (start is not None and start.format == RAW and not fs_type)
        capability = Capability("block" if raw else "mount", AccessMode.WRITER, fs_type)
        origin = Source("snapshot" if start.kind == "snapshot" else "volume", start.id) if start else None
        try:
            created = client.create_volume(name, size_range, [capability], parameters, origin)
        except CallRefused as refused:
            raise _create_failure(
                refused, client, objects, existing, size_range, pool or (start.pool if start else "")
            ) from None
        volume = volume_views.reread(client, objects, created.id)
        objects = AgentObjects([*(node for node in objects.all if node.id != volume.id), volume])
    if existing is not None and existing.uid == volume.uid:
        shown = objects.name(volume)
        renamed = "" if shown == name else f" as {shown}, which it was renamed to,"
        sentence = f"volume {name} exists{renamed} with {sizes.show(created.size)}: unchanged"
    else:
        of = f", a clone of {objects.source(volume)}" if start else ""
        note = sizes.rounded(size_text, created.size)
        sentence = (
            f"volume {name} has {sizes.show(created.size)}{note}{of}: {volume_views.mount_hint(objects, volume, raw)}"
        )
    print_result(form, document(volume, objects), objects.bare_name(volume), sentence)


@app.command()
def delete(
    volumes: Annotated[
        list[str],
        typer.Argument(metavar="VOLUME", help="Names or ids of volumes.", autocompletion=complete_volume),
    ],
    with_snapshots: Annotated[
        bool, typer.Option("--with-snapshots", help="Delete their snapshots too; asks first. Not if they have clones.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --with-snapshots: do not ask.")] = False,
    dry_run: DryRun = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Delete volumes that are not in use. Their snapshots and clones stay.

    $ tidemark volume delete db-test
    $ tidemark volume delete db-test --with-snapshots --dry-run
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "volume", volumes)
        plan = plan_deletion(objects, [objects.find(text, "volume") for text in volumes], with_snapshots)
        if dry_run:
            print_dry_run(form, client, objects, plan)
            return
        if plan.refusal:
            raise Failure(plan.refusal)
        if with_snapshots:
            confirm(objects, plan, yes)
        delete_planned(client, objects, plan, keeps_snapshots=not with_snapshots)


@app.command()
def expand(
    volume: Volume,
    size_argument: Annotated[str, typer.Argument(metavar="SIZE", help="New size, e.g. 20Gi.", show_default=False)] = "",
    size: Annotated[str, typer.Option(metavar="SIZE", help="The same as an option.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Expand a volume, in use or not; a mounted file system grows with it. Volumes never shrink.

    $ tidemark volume expand db 20Gi
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    form = output_form(output, as_json=as_json)
    size_text = sizes.one_of(size_argument, size)
    if not size_text:
        raise typer.BadParameter("the new size is missing: use e.g. 20Gi", param_hint="SIZE")
    wanted = sizes.positive(size_text, "SIZE")
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "volume", [volume])
        before = objects.find(volume, "volume")
        try:
            grown, needs_node = client.expand_volume(before.id, SizeRange(wanted))
        except CallRefused as refused:
            raise space_failure(refused, client, objects, before.pool, wanted - before.size) from None
        if needs_node and before.used_by:
            try:
                client.grow(before.id, before.used_by[0])
            except CallRefused as refused:
                raise Failure(
                    f"volume {objects.name(before)} has {sizes.show(grown)} now, but its file system has not grown: "
                    f"{in_our_words(refused, objects)}"
                ) from None
        node = volume_views.reread(client, objects, before.id)
    name = objects.name(node)
    if grown > before.size:
        sentence = f"{name} has {sizes.show(grown)}{sizes.rounded(size_text, grown)}, before {sizes.show(before.size)}"
    elif wanted < before.size:
        sentence = f"{name} has {sizes.show(grown)} already, more than {size_text}: unchanged, volumes never shrink"
    else:
        sentence = f"{name} has {sizes.show(grown)} already: unchanged"
    print_result(form, document(node, objects), objects.bare_name(node), sentence)


@app.command("list")
def list_(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    orphans: Annotated[
        bool,
        typer.Option("--orphans", help="Only volumes without a PersistentVolume, at least an hour old; in a cluster."),
    ] = False,
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    as_json: Json = False,
) -> None:
    """List all volumes.

    $ tidemark volume list
    $ kubectl -n tidemark exec deploy/tidemark-controller -- tidemark volume list --orphans
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    # Volumes first: one that is created between the two reads is then too young, never an orphan.
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
    volumes = objects.volumes
    if orphans:
        volumes = orphaned([*volumes, *objects.snapshot_mounts], kubeconfig, driver_name, api_proxy)
    elif form.wide:
        volumes = [*volumes, *objects.snapshot_mounts]
    print_list(
        form,
        volumes,
        volume_views.columns(objects),
        document=lambda volume: document(volume, objects),
        name=objects.bare_name,
        empty="no orphaned volumes" if orphans else "no volumes: `tidemark volume create db 10Gi` creates one",
    )


@app.command("show")
def show_(
    volume: Volume, endpoint: Endpoint = DEFAULT_ENDPOINT, output: Output = "table", as_json: Json = False
) -> None:
    """Show one volume: its space, snapshots, users and rollbacks.

    $ tidemark volume show db
    """
    form = output_form(output, as_json=as_json)
    with connect(endpoint) as client:
        objects = AgentObjects.read_for(client, "volume", [volume])
        node = volume_views.reread(client, objects, objects.find(volume, "volume").id, with_usage=True)
    print_object(form, document(node, objects), objects.bare_name(node), volume_views.lines(node, objects, form.wide))


def _create_failure(
    refused: "CallRefused",
    client: "Client",
    objects: AgentObjects,
    existing: "Node | None",
    wanted: SizeRange,
    pool: str,
) -> Failure:
    """Return why a volume was not created. An existing volume that is too small is to be expanded."""
    if refused.code == "ALREADY_EXISTS" and existing is not None and "differs in its size" in refused.message:
        name, size = objects.name(existing), sizes.show(existing.size)
        if wanted.required > existing.size:
            argument = as_argument(existing.name) or existing.id
            return Failure(
                f"volume {name} exists with {size}: `tidemark volume expand {argument} {sizes.written(wanted.required)}` "
                "expands it; for another volume, use another name"
            )
        return Failure(
            f"volume {name} exists with {size}, more than the limit of {sizes.show(wanted.limit)}: use another name"
        )
    return space_failure(refused, client, objects, pool, wanted.required)

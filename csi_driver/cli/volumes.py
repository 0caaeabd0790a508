"""`tidemark volume`: create, delete, expand, list and show volumes."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.common import (
    Endpoint,
    Failure,
    Json,
    connect,
    find,
    find_id,
    places,
    print_json,
    print_table,
    show_time,
    shown_name,
    size_of,
)
from csi_driver.cli.controller import ApiProxy, Kubeconfig
from csi_driver.cli.node import Driver, call
from csi_driver.cli.sizes import show
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE
from csi_driver.domain.model import RAW, AccessMode, Capability, SizeRange, Source
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.rpc.clients.cli_client import Client, Node

app = typer.Typer(help="Volumes: create, delete, expand, list, show.", no_args_is_help=True)

Volume = Annotated[str, typer.Argument(help="Name or id of the volume, e.g. db.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the volume; the same name returns the same volume, e.g. db.")],
    size: Annotated[str, typer.Option(metavar="SIZE", help="Minimum size, e.g. 10Gi.")] = "",
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Maximum size, e.g. 12Gi.")] = "",
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Snapshot or volume to clone, e.g. before-upgrade.")
    ] = "",
    block: Annotated[bool, typer.Option("--block", help="Raw block device, never formatted.")] = False,
    fs_type: Annotated[
        str, typer.Option("--fs", metavar="ext4|xfs", help="File system; default: that of the source, or ext4.")
    ] = "",
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="Pool; default: that of the source, or the first one.")
    ] = "",
    thick: Annotated[bool, typer.Option("--thick", help="Thick provisioning: allocate all space now.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Create a volume, empty or as a clone of a snapshot or volume.

    $ tidemark volume create db --size 10Gi
    $ tidemark volume create db-test --from before-upgrade
    """
    if block and fs_type:
        raise typer.BadParameter("a raw block device has no file system: use --block or --fs")
    size_range = SizeRange(
        size_of(size, "--size") if size else 0,
        size_of(limit, "--limit") if limit else 0,
    )
    parameters = {"pool": pool} if pool else {}
    if thick:
        parameters["provisioning"] = "thick"
    with connect(endpoint) as client:
        start = find(client, source, "snapshot", "volume") if source else None
        raw = block or (start is not None and start.format == RAW and not fs_type)
        capability = Capability("block" if raw else "mount", AccessMode.WRITER, fs_type)
        created = client.create_volume(
            name,
            size_range,
            [capability],
            parameters,
            Source("snapshot" if start.kind == "snapshot" else "volume", start.id) if start else None,
        )
        if as_json:
            print_json(_read(client, created.id))
        else:
            typer.echo(f"volume {name} has {show(created.size)}: {created.id}")


@app.command()
def delete(
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME", help="Names or ids of volumes.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Delete volumes that are not in use. Their snapshots and clones stay.

    $ tidemark volume delete db-test
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    with connect(endpoint) as client:
        for volume_id in [find_id(client, text, "volume") for text in volumes]:
            try:
                client.delete_volume(volume_id)
            except CallRefused as refused:
                if refused.code == "FAILED_PRECONDITION" and places(node := _read(client, volume_id)) == "staged":
                    raise Failure(f"{refused.message}: `tidemark umount {node.name}` unstages it") from None
                raise
            typer.echo(f"deleted {volume_id}")


@app.command()
def expand(
    volume: Volume,
    size: Annotated[str, typer.Argument(help="New size, e.g. 20Gi.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Expand a volume, in use or not; a mounted file system grows with it. Volumes never shrink.

    $ tidemark volume expand db 20Gi
    """
    from csi_driver.rpc.clients.cli_client import CallRefused

    size_range = SizeRange(size_of(size, "SIZE"))
    with connect(endpoint) as client:
        volume_id = find_id(client, volume, "volume")
        grown, on_node = client.expand_volume(volume_id, size_range)
        node = _read(client, volume_id)
        if on_node and node.used_by:
            try:
                client.grow(volume_id, node.used_by[0])
            except CallRefused as refused:
                raise Failure(
                    f"volume {node.name} has {show(grown)} now, but its file system has not grown: {refused.message}"
                ) from None
        if as_json:
            print_json(_read(client, volume_id))
        else:
            typer.echo(f"volume {node.name} has {show(grown)}")


@app.command("list")
def list_(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    orphans: Annotated[
        bool,
        typer.Option("--orphans", help="Only volumes without a PersistentVolume, at least an hour old; in a cluster."),
    ] = False,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    as_json: Json = False,
) -> None:
    """List all volumes.

    $ tidemark volume list
    $ kubectl -n tidemark exec deploy/tidemark-controller -- tidemark volume list --orphans
    """
    # Volumes first: one that is created between the two reads is then too young, never an orphan.
    with connect(endpoint) as client:
        nodes = client.tree()
    volumes = [node for node in nodes if node.kind == "volume"]
    if orphans:
        handles = _handles(kubeconfig, driver_name, api_proxy)
        old = datetime.now(UTC) - timedelta(hours=1)
        volumes = [volume for volume in volumes if volume.id not in handles and volume.created <= old]
    if as_json:
        print_json(volumes)
        return
    names = {node.id: shown_name(node, nodes) for node in nodes}
    rows = [
        (
            v.name,
            show(v.size),
            v.format,
            v.pool,
            places(v),
            names.get(v.parent_id, v.parent_id),
            show_time(v.created),
        )
        for v in volumes
    ]
    print_table(
        ("NAME", ">SIZE", "FORMAT", "POOL", "IN USE", "SOURCE", "CREATED"),
        rows,
        "no orphaned volumes" if orphans else "no volumes: `tidemark volume create NAME --size 10Gi` creates one",
    )


@app.command("show")
def show_(volume: Volume, endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """Show one volume: its space, snapshots, users and rollbacks.

    $ tidemark volume show db
    """
    with connect(endpoint) as client:
        node = _read(client, find_id(client, volume, "volume"), with_usage=True)
        if as_json:
            print_json(node)
            return
        nodes = client.tree()
    names = {n.id: shown_name(n, nodes) for n in nodes}
    snapshots = [n for n in nodes if n.kind == "snapshot" and n.parent_uid == node.uid]
    lines = [
        ("name", node.name),
        ("id", node.id),
        ("size", f"{show(node.size)} ({node.size} bytes){', thick' if node.thick else ''}"),
        ("format", node.format),
        ("created", show_time(node.created)),
        ("in use", ", ".join(node.used_by) or "no"),
        ("device", node.device or "none"),
        ("source", names.get(node.parent_id, node.parent_id) or "none: created empty"),
        ("snapshots", ", ".join(names[s.id] for s in snapshots) or "none"),
    ]
    if node.usage:
        lines.append(("own space", f"{show(node.usage.exclusive)}, {show(node.usage.shared)} shared with others"))
    if node.condition:
        lines.append(("condition", node.condition))
    if node.holder:
        lines.append(("held by", node.holder))
    for rolled in node.rollbacks:
        safety = f", content before: {names.get(rolled.safety_id, rolled.safety_id)}" if rolled.safety_id else ""
        back_to = names.get(rolled.snapshot_id, rolled.snapshot_id)
        lines.append(("rolled back", f"{show_time(rolled.at)} to {back_to}{safety}"))
    for title, value in lines:
        typer.echo(f"{title + ':':<13}{value}")


def _handles(kubeconfig: str, driver: str, api_proxy: str) -> set[str]:
    """Return the volume handles of the driver's PersistentVolumes."""
    from csi_driver.kube.resources import PVS

    async def read(api: "Api", _installation: object) -> set[str]:
        sources = [(pv.get("spec") or {}).get("csi") or {} for pv in await api.list(PVS)]
        return {csi.get("volumeHandle", "") for csi in sources if csi.get("driver") == driver}

    return call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, driver, read, api_proxy)


def _read(client: "Client", volume_id: str, with_usage: bool = False) -> "Node":
    nodes = client.tree(volume_id=volume_id, with_usage=with_usage)
    for node in nodes:
        if node.id == volume_id:
            return node
    raise Failure(f"volume {volume_id} no longer exists: `tidemark volume list` lists those that do")

"""`tidemark volume`: disks, made empty or from a source, grown, looked at, deleted."""

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

app = typer.Typer(help="Disks: create, delete, expand, list, show.", no_args_is_help=True)

Volume = Annotated[str, typer.Argument(help="Name or id of the disk.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The same name again answers the same disk.")],
    size: Annotated[str, typer.Option(metavar="SIZE", help="At least so large, such as 10Gi.")] = "",
    limit: Annotated[str, typer.Option(metavar="SIZE", help="At most so large.")] = "",
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Begin with what this snapshot or disk holds.")
    ] = "",
    block: Annotated[bool, typer.Option("--block", help="A raw block device, never formatted.")] = False,
    fs_type: Annotated[str, typer.Option("--fs", metavar="ext4|xfs", help="File system; the source's, or ext4.")] = "",
    pool: Annotated[str, typer.Option(metavar="POOL", help="Where; the source's pool, or the first.")] = "",
    thick: Annotated[bool, typer.Option("--thick", help="Set all its space aside now.")] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Make a disk, empty, or from a snapshot or another disk.

    $ tidemark volume create db --size 10Gi
    $ tidemark volume create db-test --from before-upgrade
    """
    if block and fs_type:
        raise typer.BadParameter("a raw block device has no file system: give --block or --fs")
    wanted = SizeRange(
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
        made = client.create_volume(
            name,
            wanted,
            [capability],
            parameters,
            Source("snapshot" if start.kind == "snapshot" else "volume", start.id) if start else None,
        )
        if as_json:
            print_json(_one(client, made.id))
        else:
            typer.echo(f"disk {name} has {show(made.size)}: {made.id}")


@app.command()
def delete(
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME", help="Names or ids.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
) -> None:
    """Delete disks that nobody uses. Their snapshots stay, and so does what was made from them."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    with connect(endpoint) as client:
        for volume_id in [find_id(client, text, "volume") for text in volumes]:
            try:
                client.delete_volume(volume_id)
            except CallRefused as refused:
                if refused.code == "FAILED_PRECONDITION" and places(disk := _one(client, volume_id)) == "staged":
                    raise Failure(f"{refused.message}: `tidemark umount {disk.name}` does that") from None
                raise
            typer.echo(f"deleted {volume_id}")


@app.command()
def expand(
    volume: Volume,
    size: Annotated[str, typer.Argument(help="The new size, such as 20Gi.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
) -> None:
    """Grow a disk, in use or not; a mounted file system grows with it. Disks never shrink."""
    from csi_driver.rpc.clients.cli_client import CallRefused

    wanted = SizeRange(size_of(size, "SIZE"))
    with connect(endpoint) as client:
        volume_id = find_id(client, volume, "volume")
        grown, on_node = client.expand_volume(volume_id, wanted)
        node = _one(client, volume_id)
        if on_node and node.used_by:
            try:
                client.grow(volume_id, node.used_by[0])
            except CallRefused as refused:
                raise Failure(
                    f"disk {node.name} has {show(grown)} now, but its file system has not grown: {refused.message}"
                ) from None
        if as_json:
            print_json(_one(client, volume_id))
        else:
            typer.echo(f"disk {node.name} has {show(grown)}")


@app.command("list")
def list_(
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    orphans: Annotated[
        bool,
        typer.Option("--orphans", help="In a cluster: those that no PersistentVolume names, an hour old or older."),
    ] = False,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    as_json: Json = False,
) -> None:
    """Show all disks.

    $ tidemark volume list
    $ kubectl -n tidemark exec deploy/tidemark-controller -- tidemark volume list --orphans
    """
    # Read first: what is made between the two is then seen as too young, never as nobody's.
    with connect(endpoint) as client:
        nodes = client.tree()
    volumes = [node for node in nodes if node.kind == "volume"]
    if orphans:
        named = _handles(kubeconfig, driver_name, api_proxy)
        old = datetime.now(UTC) - timedelta(hours=1)
        volumes = [volume for volume in volumes if volume.id not in named and volume.created <= old]
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
        ("NAME", ">SIZE", "FORMAT", "POOL", "IN USE", "MADE FROM", "CREATED"),
        rows,
        "no disk is an orphan" if orphans else "no disks yet: `tidemark volume create NAME --size 10Gi` makes one",
    )


@app.command("show")
def show_(volume: Volume, endpoint: Endpoint = DEFAULT_ENDPOINT, as_json: Json = False) -> None:
    """Show one disk: its space, its snapshots, who uses it, where it was rolled back to."""
    with connect(endpoint) as client:
        node = _one(client, find_id(client, volume, "volume"), with_usage=True)
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
        ("holds", node.format),
        ("created", show_time(node.created)),
        ("in use", ", ".join(node.used_by) or "no"),
        ("device", node.device or "none"),
        ("made from", names.get(node.parent_id, node.parent_id) or "nothing: it began empty"),
        ("snapshots", ", ".join(names[s.id] for s in snapshots) or "none"),
    ]
    if node.usage:
        lines.append(("its own", f"{show(node.usage.exclusive)}, {show(node.usage.shared)} shared with others"))
    if node.condition:
        lines.append(("condition", node.condition))
    if node.holder:
        lines.append(("held by", node.holder))
    for rolled in node.rollbacks:
        safety = f", before that: {names.get(rolled.safety_id, rolled.safety_id)}" if rolled.safety_id else ""
        back_to = names.get(rolled.snapshot_id, rolled.snapshot_id)
        lines.append(("rolled back", f"{show_time(rolled.at)} to {back_to}{safety}"))
    for title, value in lines:
        typer.echo(f"{title + ':':<13}{value}")


def _handles(kubeconfig: str, driver: str, api_proxy: str) -> set[str]:
    """What the cluster's PersistentVolumes of the driver name."""
    from csi_driver.kube.resources import PVS

    async def read(api: "Api", _ours: object) -> set[str]:
        found = [(volume.get("spec") or {}).get("csi") or {} for volume in await api.list(PVS)]
        return {csi.get("volumeHandle", "") for csi in found if csi.get("driver") == driver}

    return call(kubeconfig, DEFAULT_NAMESPACE, DEFAULT_RELEASE, driver, read, api_proxy)


def _one(client: "Client", volume_id: str, with_usage: bool = False) -> "Node":
    nodes = client.tree(volume_id=volume_id, with_usage=with_usage)
    for node in nodes:
        if node.id == volume_id:
            return node
    raise Failure(f"disk {volume_id} has gone meanwhile: `tidemark volume list` shows those that exist")

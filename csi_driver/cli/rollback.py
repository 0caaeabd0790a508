"""`tidemark rollback`: a disk goes back to one of its own snapshots."""

from typing import Annotated

import typer

from csi_driver.cli.common import Endpoint, Failure, Json, connect, find, places, print_json, show_time, shown_name
from csi_driver.cli.controller import api_proxy_option
from csi_driver.settings import DEFAULT_ENDPOINT

_CLUSTER = "In a cluster"


def rollback(
    volume: Annotated[
        str, typer.Argument(help="Name or id of the disk; it must not be in use.", show_default=False)
    ] = "",
    snapshot: Annotated[str, typer.Argument(help="Name or id of one of its own snapshots.", show_default=False)] = "",
    name: Annotated[
        str, typer.Option(help="With a name the command may be repeated: only the first one changes anything.")
    ] = "",
    no_safety_snapshot: Annotated[
        bool, typer.Option("--no-safety-snapshot", help="Do not keep what the disk holds now: it is lost.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
    claim: Annotated[
        str, typer.Option(metavar="NAMESPACE/NAME", help="The claim whose disk goes back.", rich_help_panel=_CLUSTER)
    ] = "",
    to: Annotated[
        str, typer.Option("--snapshot", metavar="NAME", help="One of its VolumeSnapshots.", rich_help_panel=_CLUSTER)
    ] = "",
    snapshot_class: Annotated[
        str,
        typer.Option("--class", metavar="NAME", help="Class of the safety snapshot.", rich_help_panel=_CLUSTER),
    ] = "",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long it may wait for the disk: 90s, 10m.", rich_help_panel=_CLUSTER)
    ] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Apply it, and do not follow it.", rich_help_panel=_CLUSTER)
    ] = False,
    kubeconfig: Annotated[
        str,
        typer.Option(envvar="KUBECONFIG", metavar="FILE", help="Where the cluster is.", rich_help_panel=_CLUSTER),
    ] = "",
    api_proxy: Annotated[str, api_proxy_option("Reach its API through this proxy.", _CLUSTER)] = "",
) -> None:
    """Take a disk back to one of its snapshots, in place.

    What it holds now is kept in a safety snapshot first, so that a rollback can be taken back. All snapshots stay.

    On a node, a disk of its agent; in a cluster, a claim's, by a VolumeRollback that is applied and followed.

    $ tidemark rollback db before-upgrade

    $ tidemark rollback --claim shop/db --snapshot before-upgrade
    """
    if claim or to:
        if not claim or not to or volume or snapshot:
            raise typer.BadParameter(
                "in a cluster, --claim NAMESPACE/NAME and --snapshot NAME are given, and no disk by position"
            )
        from csi_driver.cli.rollback_claim import Asked, roll_back_claim

        safety = not no_safety_snapshot
        asked = Asked(claim, to, name, safety, snapshot_class, timeout, not no_wait, as_json)
        roll_back_claim(asked, kubeconfig, api_proxy)
        return
    if not volume or not snapshot:
        raise typer.BadParameter("name the disk and one of its snapshots, or in a cluster --claim and --snapshot")
    with connect(endpoint) as client:
        disk = find(client, volume, "volume")
        target = find(client, snapshot, "snapshot")
        if disk.used_by:
            raise Failure(
                f"{disk.name} is in use at {places(disk)}: stop what uses it, `tidemark umount` it, try again"
            )
        done = client.roll_back(disk.id, target.id, name or _fresh_name(), skip_safety=no_safety_snapshot)
        if as_json:
            print_json(done)
            return
        nodes = client.tree(volume_id=disk.id)
    again = " (done before: this call changed nothing)" if done.already_done else ""
    typer.echo(f"{disk.name} holds what it held in {shown_name(target, nodes)}, since {show_time(done.at)}{again}")
    if done.safety_id:
        kept = next((shown_name(n, nodes) for n in nodes if n.id == done.safety_id), done.safety_id)
        typer.echo(f"what it held before is in snapshot {kept}: `tidemark rollback {disk.name} {kept}` takes it back")


def _fresh_name() -> str:
    import uuid

    return f"cli-{uuid.uuid4().hex}"

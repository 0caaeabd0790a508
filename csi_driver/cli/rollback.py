"""`tidemark rollback`: rolls a volume back to one of its own snapshots."""

from typing import Annotated

import typer

from csi_driver.cli.common import Endpoint, Failure, Json, connect, find, places, print_json, show_time, shown_name
from csi_driver.cli.controller import api_proxy_option
from csi_driver.settings import DEFAULT_ENDPOINT

_CLUSTER = "In a cluster"


def rollback(
    volume: Annotated[
        str, typer.Argument(help="Name or id of the volume; it must not be in use, e.g. db.", show_default=False)
    ] = "",
    snapshot: Annotated[
        str, typer.Argument(help="Name or id of one of its own snapshots, e.g. before-upgrade.", show_default=False)
    ] = "",
    name: Annotated[
        str, typer.Option(help="Name of this rollback; a repeated name changes nothing, e.g. ticket-42.")
    ] = "",
    no_safety_snapshot: Annotated[
        bool, typer.Option("--no-safety-snapshot", help="Take no safety snapshot: the current content is lost.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    as_json: Json = False,
    claim: Annotated[
        str,
        typer.Option(
            metavar="NAMESPACE/NAME", help="PVC whose volume is rolled back, e.g. shop/db.", rich_help_panel=_CLUSTER
        ),
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            "--snapshot",
            metavar="NAME",
            help="One of the PVC's VolumeSnapshots, e.g. before-upgrade.",
            rich_help_panel=_CLUSTER,
        ),
    ] = "",
    snapshot_class: Annotated[
        str,
        typer.Option(
            "--class", metavar="NAME", help="VolumeSnapshotClass of the safety snapshot.", rich_help_panel=_CLUSTER
        ),
    ] = "",
    timeout: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Maximum wait until the volume is released, e.g. 10m.", rich_help_panel=_CLUSTER
        ),
    ] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Apply the VolumeRollback and exit.", rich_help_panel=_CLUSTER)
    ] = False,
    kubeconfig: Annotated[
        str,
        typer.Option(envvar="KUBECONFIG", metavar="FILE", help="Path to a kubeconfig file.", rich_help_panel=_CLUSTER),
    ] = "",
    api_proxy: Annotated[str, api_proxy_option("Proxy for the Kubernetes API, e.g. http://proxy:3128.", _CLUSTER)] = "",
) -> None:
    """Roll a volume back to one of its snapshots, in place.

    A safety snapshot of the current content is taken first, so that a rollback can be undone. All snapshots stay.

    On a node, a volume of its agent; in a cluster, the volume of a PVC, by a VolumeRollback.

    $ tidemark rollback db before-upgrade

    $ tidemark rollback --claim shop/db --snapshot before-upgrade
    """
    if claim or to:
        if not claim or not to or volume or snapshot:
            raise typer.BadParameter("in a cluster, use --claim NAMESPACE/NAME and --snapshot NAME, without arguments")
        from csi_driver.cli.rollback_claim import RollbackOptions, roll_back_claim

        safety = not no_safety_snapshot
        options = RollbackOptions(claim, to, name, safety, snapshot_class, timeout, not no_wait, as_json)
        roll_back_claim(options, kubeconfig, api_proxy)
        return
    if not volume or not snapshot:
        raise typer.BadParameter("name the volume and one of its snapshots, or in a cluster use --claim and --snapshot")
    with connect(endpoint) as client:
        volume_node = find(client, volume, "volume")
        target = find(client, snapshot, "snapshot")
        if volume_node.used_by:
            raise Failure(
                f"{volume_node.name} is in use at {places(volume_node)}: stop the programs that use it, `tidemark umount` it, retry"
            )
        done = client.roll_back(volume_node.id, target.id, name or _fresh_name(), skip_safety=no_safety_snapshot)
        if as_json:
            print_json(done)
            return
        nodes = client.tree(volume_id=volume_node.id)
    again = " (completed before: this call changed nothing)" if done.already_done else ""
    typer.echo(f"{volume_node.name} was rolled back to {shown_name(target, nodes)} at {show_time(done.at)}{again}")
    if done.safety_id:
        safety_name = next((shown_name(n, nodes) for n in nodes if n.id == done.safety_id), done.safety_id)
        typer.echo(
            f"the content before is in snapshot {safety_name}: `tidemark rollback {volume_node.name} {safety_name}` undoes the rollback"
        )


def _fresh_name() -> str:
    import uuid

    return f"cli-{uuid.uuid4().hex}"

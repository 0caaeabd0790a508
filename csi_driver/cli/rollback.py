"""`tidemark rollback`: rolls a volume back to one of its own snapshots; in a cluster, also lists rollbacks."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from csi_driver.cli.cluster_objects import rollback_list, rollback_show
from csi_driver.cli.common import Endpoint, connect
from csi_driver.cli.completion import complete_snapshot, complete_volume
from csi_driver.cli.controller import api_proxy_option
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.names import check_new_name
from csi_driver.cli.objects import AgentObjects
from csi_driver.cli.output.documents import plain
from csi_driver.cli.output.escape import in_a_sentence
from csi_driver.cli.output.form import Json, Output, output_form
from csi_driver.cli.output.printing import print_result
from csi_driver.cli.output.times import second
from csi_driver.cli.suggest import suggestion
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Node, RollbackResult

_CLUSTER = "In a cluster"


class RollbackGroup(CommandGroup):
    """`rollback VOLUME SNAPSHOT` is short for `rollback create VOLUME SNAPSHOT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert `create` before words that begin with no verb."""
        if args and args[0] not in ctx.help_option_names and self.get_command(ctx, args[0]) is None:
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RollbackGroup,
    help="Roll a volume back to one of its snapshots, in place.\n\n"
    "$ tidemark rollback db before-upgrade          short for: rollback create\n"
    "$ tidemark rollback --claim shop/db --snapshot before-upgrade",
    no_args_is_help=True,
)


@app.command()
def create(
    volume: Annotated[
        str,
        typer.Argument(
            help="Name or id of the volume; it must not be in use, e.g. db.",
            show_default=False,
            autocompletion=complete_volume,
        ),
    ] = "",
    snapshot: Annotated[
        str,
        typer.Argument(
            help="Name or id of one of its own snapshots, e.g. before-upgrade.",
            show_default=False,
            autocompletion=complete_snapshot,
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(help="Name of this rollback; a repeated name changes nothing, e.g. ticket-42.")
    ] = "",
    no_safety_snapshot: Annotated[
        bool, typer.Option("--no-safety-snapshot", help="Take no safety snapshot: the current content is lost.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    output: Output = "table",
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

    $ tidemark rollback create db before-upgrade

    $ tidemark rollback create --claim shop/db --snapshot before-upgrade
    """
    form = output_form(output, as_json=as_json)
    if claim or to:
        if not claim or not to or volume or snapshot:
            raise typer.BadParameter("in a cluster, use --claim NAMESPACE/NAME and --snapshot NAME, without arguments")
        from csi_driver.cli.rollback_claim import RollbackOptions, roll_back_claim

        safety = not no_safety_snapshot
        options = RollbackOptions(claim, to, name, safety, snapshot_class, timeout, not no_wait, form)
        roll_back_claim(options, kubeconfig, api_proxy)
        return
    if not volume or not snapshot:
        near = suggestion(volume, ["list", "show"]) if volume else ""
        raise typer.BadParameter(
            f"name the volume and one of its snapshots{near}, or in a cluster use --claim and --snapshot"
        )
    with connect(endpoint) as client:
        objects = AgentObjects.read(client)
        node = objects.find(volume, "volume")
        target = objects.find(snapshot, "snapshot", of=node)
        again = next((item for item in node.rollbacks if item.name == name), None) if name else None
        if again is None:
            if name:
                check_new_name(name, "rollback")
            if node.used_by or node.holder:
                raise objects.in_use(node)
        done = client.roll_back(node.id, target.id, name or _fresh_name(), skip_safety=no_safety_snapshot)
        objects = AgentObjects.read(client, volume_id=node.id)
    node = objects.get(node.id) or node
    print_result(form, plain(done), done.name, *_sentences(done, node, target, objects))


app.command("list")(rollback_list)
app.command("show")(rollback_show)


def _sentences(done: "RollbackResult", volume: "Node", target: "Node", objects: AgentObjects) -> list[str]:
    name, back_to, at = objects.name(volume), in_a_sentence(objects.name(target)), second(done.at)
    first = (
        f"{name} was rolled back to {back_to} at {at} by this name: unchanged"
        if done.already_done
        else f"{name} has the content of {back_to} again, since {at}"
    )
    safety = objects.get(done.safety_id) if done.safety_id else None
    if safety is None:
        return [first]
    undo = f"`tidemark rollback {objects.argument(volume)} {objects.argument(safety)}`"
    return [first, f"the content before is in snapshot {objects.name(safety)!r}: {undo} undoes the rollback"]


def _fresh_name() -> str:
    import uuid

    return f"cli-{uuid.uuid4().hex}"

"""`tidemark node`: the nodes of a cluster, and those that will not come back. Talks to the Kubernetes API alone."""

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.cluster import call
from csi_driver.cli.controller import ApiProxy, Kubeconfig, Namespace, Release
from csi_driver.cli.grammar import CommandGroup
from csi_driver.cli.output.form import Json, NoHeaders, Output, Sort, output_form
from csi_driver.cli.output.printing import Column, print_list, print_object, say
from csi_driver.cli.suggest import not_found
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation

app = typer.Typer(
    cls=CommandGroup, help="Nodes of a cluster: list, show, decommission, recommission.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node, as kubectl shows it, e.g. worker-7.")]
Driver = Annotated[
    str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="Name of the CSI driver, as in its CSIDriver object.")
]


@app.command("list")
def list_nodes(
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    sort: Sort = "",
    no_headers: NoHeaders = False,
    as_json: Json = False,
) -> None:
    """List all nodes that have, or should have, volumes.

    $ tidemark node list
    """
    form = output_form(output, as_json=as_json, sort=sort, no_headers=no_headers)
    print_list(
        form,
        _read(kubeconfig, namespace, release, driver_name, api_proxy),
        [
            Column("NODE", lambda n: str(n["node"])),
            Column("STATE", lambda n: str(n["state"])),
            Column("AGENT", lambda n: str(n["agent"]), rank=1),
            Column("VOLUMES", lambda n: str(n["volumes"]), key=lambda n: n["volumes"], right=True, rank=2),
            Column("DECOMMISSIONED", lambda n: str(n["decommissioned"])),
        ],
        document=lambda node: node,
        name=lambda node: str(node["node"]),
        empty="no node has an agent: check the DaemonSet, and the options --namespace and --release",
    )


@app.command("show")
def show_node(
    node: Name,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    output: Output = "table",
    as_json: Json = False,
) -> None:
    """Show one node.

    $ tidemark node show worker-7
    """
    nodes = {row["node"]: row for row in _read(kubeconfig, namespace, release, driver_name, api_proxy)}
    row = nodes.get(node)
    if row is None:
        raise not_found("node", node, nodes)
    lines = [(key, str(row[key]) or "no") for key in ("node", "state", "agent", "volumes", "decommissioned")]
    print_object(output_form(output, as_json=as_json), row, node, lines)


@app.command()
def decommission(
    node: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if the node is Ready or its agent responds.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Declare that a node will not come back, so that its PVCs and snapshots can be deleted.

    The cluster loses the data on that node. If the node comes back, its agent deletes nothing: its volumes are listed as
    orphans.

    $ tidemark node decommission worker-7
    """
    from csi_driver.operator.agents import decommissioned_nodes

    def work(api: "Api", installation: "Installation") -> Awaitable[str]:
        return decommissioned_nodes.decommission(api, installation, node, datetime.now(UTC), force)

    call(kubeconfig, namespace, release, driver_name, work, api_proxy)
    say(f"node {node} is decommissioned: its PVCs and snapshots can be deleted now")


@app.command()
def recommission(
    node: Name,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Undo `decommission`: deletes wait for the node's agent again.

    $ tidemark node recommission worker-7
    """
    from csi_driver.operator.agents import decommissioned_nodes

    def work(api: "Api", installation: "Installation") -> Awaitable[str]:
        return decommissioned_nodes.recommission(api, installation, node)

    call(kubeconfig, namespace, release, driver_name, work, api_proxy)
    say(f"node {node} is not decommissioned any longer: deletes wait for its agent")


# The names before: scripts may use them.
app.command("forget", hidden=True)(decommission)
app.command("unforget", hidden=True)(recommission)


def _read(kubeconfig: str, namespace: str, release: str, driver_name: str, api_proxy: str) -> list[dict[str, Any]]:
    """Return a document for each node."""
    from csi_driver.operator.agents import decommissioned_nodes

    cluster = call(kubeconfig, namespace, release, driver_name, decommissioned_nodes.list_nodes, api_proxy)
    rows: list[dict[str, Any]] = []
    for owner in sorted({*cluster.owners(), *cluster.decommissioned_at}):
        agent = cluster.agents.get(owner)
        at = cluster.decommissioned_at.get(owner, "")
        rows.append(
            {
                "node": owner,
                "state": "gone" if owner not in cluster.nodes else "ready" if cluster.nodes[owner] else "not ready",
                "agent": "none" if agent is None else "ready" if agent.ready else "not ready",
                "volumes": cluster.volumes.get(owner, 0),
                "decommissioned": at,
                "forgotten": at,  # the old key, for programs that read it
            }
        )
    return rows

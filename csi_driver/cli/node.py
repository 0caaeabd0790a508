"""`tidemark node`: the nodes of a cluster, and those that will not come back. Talks to the Kubernetes API alone."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.common import Failure, Json, print_table
from csi_driver.cli.controller import ApiProxy, Kubeconfig, Namespace, Release
from csi_driver.cli.unexpected import missing
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation

app = typer.Typer(help="Nodes of a cluster: list, decommission, recommission.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node, as kubectl shows it, e.g. worker-7.")]
Driver = Annotated[
    str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="Name of the CSI driver, as in its CSIDriver object.")
]
_Result = TypeVar("_Result")


@app.command("list")
def list_nodes(
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    as_json: Json = False,
) -> None:
    """List all nodes that have, or should have, volumes.

    $ tidemark node list
    """
    from csi_driver.operator.agents.decommissioned_nodes import list_nodes

    cluster = call(kubeconfig, namespace, release, driver_name, list_nodes, api_proxy)
    rows = []
    for owner in sorted({*cluster.owners(), *cluster.decommissioned_at}):
        agent = cluster.agents.get(owner)
        rows.append(
            {
                "node": owner,
                "state": "gone" if owner not in cluster.nodes else "ready" if cluster.nodes[owner] else "not ready",
                "agent": "none" if agent is None else "ready" if agent.ready else "not ready",
                "volumes": cluster.volumes.get(owner, 0),
                "decommissioned": cluster.decommissioned_at.get(owner, ""),
            }
        )
    if as_json:
        # The old key stays beside the new one for programs that read it.
        typer.echo(json.dumps([{**row, "forgotten": row["decommissioned"]} for row in rows], indent=2))
        return
    print_table(
        ["NODE", "STATE", "AGENT", ">VOLUMES", "DECOMMISSIONED"],
        [[str(value) for value in row.values()] for row in rows],
        "no node has an agent: check the DaemonSet, and the options --namespace and --release",
    )


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
    typer.echo(f"node {node} is decommissioned: its PVCs and snapshots can be deleted now")


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
    typer.echo(f"node {node} is not decommissioned any longer: deletes wait for its agent")


# The names before: scripts may use them.
app.command("forget", hidden=True)(decommission)
app.command("unforget", hidden=True)(recommission)


def call(
    kubeconfig: str,
    namespace: str,
    release: str,
    driver: str,
    work: "Callable[[Api, Installation], Awaitable[_Result]]",
    api_proxy: str = "",
) -> _Result:
    """Run `work` with a client of the cluster's API. Raises Failure with the message of the error."""
    from csi_driver.domain.errors import DriverError

    try:
        from csi_driver.kube.client import Api, default_kubeconfig
        from csi_driver.operator.installation import Installation
    except ImportError as error:
        raise Failure(missing(error.name or "")) from None

    async def connected() -> _Result:
        api = await Api.connect(kubeconfig or default_kubeconfig(), api_proxy)
        try:
            return await work(api, Installation(namespace, release, driver))
        finally:
            await api.close()

    try:
        return asyncio.run(connected())
    except DriverError as error:
        raise Failure(str(error)) from None

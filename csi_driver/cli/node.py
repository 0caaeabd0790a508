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
from csi_driver.controller.settings import DEFAULT_NAMESPACE, DEFAULT_RELEASE

if TYPE_CHECKING:
    from csi_driver.kube.client import Api
    from csi_driver.operator.installation import Installation

app = typer.Typer(help="Nodes of a cluster: list, forget a dead one, unforget.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node, as kubectl shows it.")]
Driver = Annotated[str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="The CSI driver's name.")]
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
    """Show every node that has, or should have, disks.

    $ tidemark node list
    """
    from csi_driver.operator.agents.decommissioned_nodes import list_nodes

    cluster = call(kubeconfig, namespace, release, driver_name, list_nodes, api_proxy)
    rows = []
    for owner in sorted({*cluster.owners(), *cluster.noted}):
        agent = cluster.agents.get(owner)
        rows.append(
            {
                "node": owner,
                "state": "gone" if owner not in cluster.nodes else "ready" if cluster.nodes[owner] else "not ready",
                "agent": "none" if agent is None else "ready" if agent.ready else "not ready",
                "volumes": cluster.volumes.get(owner, 0),
                "forgotten": cluster.noted.get(owner, ""),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ["NODE", "STATE", "AGENT", ">DISKS", "FORGOTTEN"],
        [[str(value) for value in row.values()] for row in rows],
        "no node has an agent: look at the DaemonSet, and at --namespace and --release",
    )


@app.command()
def forget(
    node: Name,
    force: Annotated[bool, typer.Option("--force", help="Even if the node or its agent seems to live.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Say that a node will not come back, so that its claims and snapshots can be deleted.

    What was on it is lost to the cluster. Should the node come back all the same, its agent deletes nothing: its disks
    are listed as orphans.

    $ tidemark node forget worker-7
    """
    from csi_driver.operator.agents import decommissioned_nodes

    def work(api: "Api", ours: "Installation") -> Awaitable[str]:
        return decommissioned_nodes.decommission(api, ours, node, datetime.now(UTC), force)

    call(kubeconfig, namespace, release, driver_name, work, api_proxy)
    typer.echo(f"node {node} is forgotten: its claims and snapshots can be deleted now")


@app.command()
def unforget(
    node: Name,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Driver = DRIVER_NAME,
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
) -> None:
    """Take that back: deletes wait for the node's agent again.

    $ tidemark node unforget worker-7
    """
    from csi_driver.operator.agents import decommissioned_nodes

    def work(api: "Api", ours: "Installation") -> Awaitable[str]:
        return decommissioned_nodes.recommission(api, ours, node)

    call(kubeconfig, namespace, release, driver_name, work, api_proxy)
    typer.echo(f"node {node} counts again")


def call(
    kubeconfig: str,
    namespace: str,
    release: str,
    driver: str,
    work: "Callable[[Api, Installation], Awaitable[_Result]]",
    api_proxy: str = "",
) -> _Result:
    """Do something with the cluster's API. What is refused becomes a Failure in the refusal's own words."""
    from csi_driver.domain.errors import DriverError

    try:
        from csi_driver.kube.client import Api, default_kubeconfig
        from csi_driver.operator.installation import Installation
    except ImportError as error:
        raise Failure(f"{error.name} is missing: install tidemark-csi[controller]") from None

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

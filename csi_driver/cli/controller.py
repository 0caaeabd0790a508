"""`tidemark controller`: from options and environment to ControllerSettings. Every option is an environment variable too."""

import asyncio
import socket
import sys
from typing import Annotated, Any, Literal

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.agent import address_of
from csi_driver.cli.common import endpoint_of
from csi_driver.controller.settings import (
    DEFAULT_CERTIFICATES,
    DEFAULT_NAMESPACE,
    DEFAULT_RELEASE,
    ControllerSettings,
    check_proxy,
)
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

Namespace = Annotated[
    str, typer.Option(envvar="TIDEMARK_NAMESPACE", metavar="NAME", help="Where the driver is installed.")
]
Release = Annotated[str, typer.Option(envvar="TIDEMARK_RELEASE", metavar="NAME", help="The chart's full name.")]
Kubeconfig = Annotated[
    str,
    typer.Option(envvar="KUBECONFIG", metavar="FILE", show_default="the pod's account", help="Leads to the cluster."),
]


def proxy_of(text: str) -> str:
    """The URL of a proxy, or nothing."""
    try:
        check_proxy(text)
    except BadSetting as error:
        raise typer.BadParameter(str(error)) from None
    return text


def api_proxy_option(told: str, panel: str | None = None) -> Any:
    """The option of every command that reaches the Kubernetes API; `panel`: the part of the help that it stands in."""
    return typer.Option(
        envvar="TIDEMARK_API_PROXY",
        metavar="URL",
        callback=proxy_of,
        show_default="none, whatever HTTPS_PROXY says",
        help=told,
        rich_help_panel=panel,
    )


ApiProxy = Annotated[str, api_proxy_option("Reach the Kubernetes API through this proxy, http://HOST:PORT.")]


def controller(
    endpoint: Annotated[
        str,
        typer.Option(
            envvar=["CSI_ENDPOINT", "TIDEMARK_ENDPOINT"],
            metavar="SOCKET",
            callback=endpoint_of,
            help="The CSI socket to serve to the sidecars.",
        ),
    ] = DEFAULT_ENDPOINT,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Annotated[
        str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="The CSI driver's name.")
    ] = DRIVER_NAME,
    certificates: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CERTIFICATES", metavar="DIR", help="Where the controller's own certificate lies."
        ),
    ] = DEFAULT_CERTIFICATES,
    controller_secret: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CONTROLLER_SECRET",
            metavar="NAME",
            show_default="made here",
            help="Your own Secret with the controller's certificate.",
        ),
    ] = "",
    agent_secret: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_AGENT_SECRET", metavar="NAME", show_default="made here", help="The same for the agents."
        ),
    ] = "",
    metrics_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_METRICS_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            help="Serve /metrics, /healthz and /readyz here.",
        ),
    ] = "",
    webhook_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_WEBHOOK_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            help="Serve the webhook that pins claims here.",
        ),
    ] = "",
    pod_name: Annotated[
        str, typer.Option(envvar="POD_NAME", show_default="the host's name", help="Tells replicas apart.")
    ] = "",
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    operator: Annotated[
        bool, typer.Option("--operator/--no-operator", envvar="TIDEMARK_OPERATOR", help="Reconcile, or route only.")
    ] = True,
    snapshots_in_flight: Annotated[
        int,
        typer.Option(
            "--snapshots-in-flight-per-node",
            envvar="TIDEMARK_SNAPSHOTS_IN_FLIGHT_PER_NODE",
            help="Scheduled snapshots that one node makes at a time.",
        ),
    ] = 4,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(envvar="TIDEMARK_LOG_FORMAT", help="Lines for people or for programs."),
    ] = "console",
) -> None:
    """Serve a cluster: pass each CSI call to the agent that owns the disk, and reconcile rollbacks and schedules.

    Runs in a pod beside the sidecars; the chart starts it. Needs no privileges, and keeps nothing of its own.

    $ tidemark controller --namespace tidemark --kubeconfig ~/.kube/config
    """
    try:
        settings = ControllerSettings(
            endpoint=endpoint,
            namespace=namespace,
            release=release,
            driver_name=driver_name,
            certificates=certificates,
            controller_secret=controller_secret,
            agent_secret=agent_secret,
            metrics_address=address_of(metrics_address) if metrics_address else None,
            webhook_address=address_of(webhook_address) if webhook_address else None,
            pod_name=pod_name or socket.gethostname(),
            kubeconfig=kubeconfig,
            api_proxy=api_proxy,
            operator=operator,
            snapshots_in_flight=snapshots_in_flight,
            log_format=log_format,
        )
    except BadSetting as error:
        raise typer.BadParameter(str(error)) from None
    try:
        from csi_driver.controller.main import run_controller
    except ImportError as error:
        raise typer.BadParameter(f"{error.name} is missing: install tidemark-csi[controller]") from None
    sys.exit(asyncio.run(run_controller(settings)))

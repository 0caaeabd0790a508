"""`tidemark controller`: reads options and environment into ControllerSettings. Every option is an environment variable too."""

import socket
import sys
from typing import Annotated, Any, Literal

import typer

from csi_driver import DRIVER_NAME
from csi_driver.cli.agent import address_of
from csi_driver.cli.common import Failure, endpoint_of
from csi_driver.cli.unexpected import missing
from csi_driver.controller.settings import (
    DEFAULT_CERTIFICATES,
    DEFAULT_NAMESPACE,
    DEFAULT_RELEASE,
    ControllerSettings,
    check_proxy,
)
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

Namespace = Annotated[
    str, typer.Option(envvar="TIDEMARK_NAMESPACE", metavar="NAME", help="Namespace of the installation, e.g. tidemark.")
]
Release = Annotated[
    str,
    typer.Option(
        envvar="TIDEMARK_RELEASE",
        metavar="NAME",
        help="Full name of the chart's release, with which its objects' names begin.",
    ),
]
Kubeconfig = Annotated[
    str,
    typer.Option(
        envvar="KUBECONFIG", metavar="FILE", show_default="the pod's account", help="Path to a kubeconfig file."
    ),
]


def proxy_of(text: str) -> str:
    """Check the URL of a proxy, or an empty text."""
    try:
        check_proxy(text)
    except BadSetting as error:
        raise typer.BadParameter(str(error)) from None
    return text


def api_proxy_option(text: str, panel: str | None = None) -> Any:
    """Return the option of every command that reaches the Kubernetes API; `panel`: its section of the help."""
    return typer.Option(
        envvar="TIDEMARK_API_PROXY",
        metavar="URL",
        callback=proxy_of,
        show_default="none; HTTPS_PROXY is ignored",
        help=text,
        rich_help_panel=panel,
    )


ApiProxy = Annotated[str, api_proxy_option("Proxy for the Kubernetes API, e.g. http://proxy:3128.")]


def controller(
    endpoint: Annotated[
        str,
        typer.Option(
            envvar=["CSI_ENDPOINT", "TIDEMARK_ENDPOINT"],
            metavar="SOCKET",
            callback=endpoint_of,
            help="CSI socket to serve to the sidecars, e.g. unix:///run/tidemark/csi.sock.",
        ),
    ] = DEFAULT_ENDPOINT,
    namespace: Namespace = DEFAULT_NAMESPACE,
    release: Release = DEFAULT_RELEASE,
    driver_name: Annotated[
        str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="Name of the CSI driver, as in its CSIDriver object.")
    ] = DRIVER_NAME,
    certificates: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CERTIFICATES",
            metavar="DIR",
            help="Directory of the controller's own certificate, an absolute path.",
        ),
    ] = DEFAULT_CERTIFICATES,
    controller_secret: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CONTROLLER_SECRET",
            metavar="NAME",
            show_default="created",
            help="User-supplied Secret with the controller's certificate. Needs --agent-secret.",
        ),
    ] = "",
    agent_secret: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_AGENT_SECRET",
            metavar="NAME",
            show_default="created",
            help="User-supplied Secret with the agents' certificate. Needs --controller-secret.",
        ),
    ] = "",
    metrics_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_METRICS_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            help="Address of /metrics, /healthz and /readyz, e.g. :9808.",
        ),
    ] = "",
    webhook_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_WEBHOOK_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            help="Address of the admission webhook that selects nodes for PVCs, e.g. :9443.",
        ),
    ] = "",
    pod_name: Annotated[
        str,
        typer.Option(
            envvar="POD_NAME",
            show_default="the host's name",
            help="Name of this replica in the leader election; must be unique.",
        ),
    ] = "",
    kubeconfig: Kubeconfig = "",
    api_proxy: ApiProxy = "",
    operator: Annotated[
        bool,
        typer.Option(
            "--operator/--no-operator",
            envvar="TIDEMARK_OPERATOR",
            help="Reconcile custom resources, or only forward CSI calls.",
        ),
    ] = True,
    snapshots_in_flight: Annotated[
        int,
        typer.Option(
            "--snapshots-in-flight-per-node",
            envvar="TIDEMARK_SNAPSHOTS_IN_FLIGHT_PER_NODE",
            help="Maximum number of scheduled snapshots in progress on one node, at least 1.",
        ),
    ] = 4,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(envvar="TIDEMARK_LOG_FORMAT", help="Format of the log: console for people, json for programs."),
    ] = "console",
) -> None:
    """Serve a cluster: forward each CSI call to the agent that owns the volume, and reconcile rollbacks and schedules.

    Runs in a pod beside the sidecars; the chart starts it. Needs no privileges and no storage.

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
    import asyncio

    try:
        from csi_driver.controller.main import run_controller
    except ImportError as error:
        raise Failure(missing(error.name or "")) from None
    sys.exit(asyncio.run(run_controller(settings)))

"""`tidemark agent`: reads options and environment into Settings. Every option is an environment variable too."""

import os
import re
import socket
from typing import Annotated, Literal

import typer

from csi_driver import DRIVER_NAME
from csi_driver.agent.settings import (
    DEFAULT_MOUNT,
    DEFAULT_POOL,
    DEFAULT_RUNTIME_DIRECTORY,
    PoolImage,
    PoolSpec,
    Settings,
    dump,
)
from csi_driver.backends.registry import DEFAULT_BACKEND, parse_pool
from csi_driver.cli.common import endpoint_of, size_of
from csi_driver.environment import restart_without_ambient
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

_POOLS, _NODE, _LIMITS = "Pools", "This node", "Limits"
_MONITORING, _CLUSTER = "Log and metrics", "In a cluster"
"""The groups of `tidemark agent --help`, in this order."""

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\s]*):(\d{1,5})", re.ASCII)


def pool_of(text: str) -> PoolSpec:
    """Parse `NAME=BACKEND:PATH`, `NAME=PATH`, or a path alone, which is `default=reflink:PATH`."""
    return PoolSpec(*parse_pool(text, DEFAULT_POOL))


def address_of(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`; `:PORT` is every IPv4 address, `[::1]:PORT` one of IPv6."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise typer.BadParameter(f"{text!r} is not an address: use HOST:PORT, e.g. 127.0.0.1:9808")
    return match[1].strip("[]") or "0.0.0.0", int(match[2])  # noqa: S104  requested by leaving out the host


def agent(
    pool: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TIDEMARK_POOL",
            metavar="NAME=BACKEND:PATH",
            rich_help_panel=_POOLS,
            help="Pool, e.g. fast=/srv/nvme; may be repeated, the first is the default. A path alone is default=reflink:PATH. "
            "In the environment: several pools, separated by spaces or newlines.",
        ),
    ] = None,
    pool_init: Annotated[
        bool,
        typer.Option(
            "--pool-init",
            envvar="TIDEMARK_POOL_INIT",
            rich_help_panel=_POOLS,
            help="Create a new pool in an empty directory even if it is not a mount point.",
        ),
    ] = False,
    pool_image: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_POOL_IMAGE",
            metavar="FILE",
            rich_help_panel=_POOLS,
            help="File that holds the pool, created, formatted with XFS and mounted if missing, e.g. /var/lib/tidemark/pool.img.",
        ),
    ] = "",
    pool_size: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_POOL_SIZE",
            metavar="SIZE",
            show_default="20Gi for a new image; an existing one keeps its size",
            rich_help_panel=_POOLS,
            help="Size of the pool image, at least 300Mi, e.g. 50Gi. A smaller image grows, also in use; it never shrinks.",
        ),
    ] = "",
    pool_image_sparse: Annotated[
        bool,
        typer.Option(
            "--pool-image-sparse",
            envvar="TIDEMARK_POOL_IMAGE_SPARSE",
            rich_help_panel=_POOLS,
            help="Sparse pool image, not allocated in full; for tests only.",
        ),
    ] = False,
    pool_mount: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_POOL_MOUNT",
            metavar="DIR",
            rich_help_panel=_POOLS,
            help="Mount point of the pool image, an absolute path.",
        ),
    ] = DEFAULT_MOUNT,
    endpoint: Annotated[
        str,
        typer.Option(
            envvar=["CSI_ENDPOINT", "TIDEMARK_ENDPOINT"],
            metavar="SOCKET",
            callback=endpoint_of,
            rich_help_panel=_NODE,
            help="CSI socket to serve, e.g. unix:///run/tidemark/csi.sock.",
        ),
    ] = DEFAULT_ENDPOINT,
    node_name: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_NODE_NAME",
            show_default="the host's name",
            rich_help_panel=_NODE,
            help="Node name; part of every volume id, must not change.",
        ),
    ] = "",
    overcommit: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_OVERCOMMIT",
            rich_help_panel=_LIMITS,
            help="Overcommit ratio (sum of volume sizes / pool size), > 0.",
        ),
    ] = 2.0,
    reserve: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_RESERVE",
            metavar="SIZE",
            show_default="5 %, at least 1 GiB but no more than 10 %",
            rich_help_panel=_LIMITS,
            help="Free space below which volumes and snapshots are refused, e.g. 10Gi.",
        ),
    ] = "",
    max_snapshots: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_MAX_SNAPSHOTS",
            rich_help_panel=_LIMITS,
            help="Maximum number of snapshots of one volume, at least 1.",
        ),
    ] = 256,
    freeze_deadline: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_FREEZE_DEADLINE",
            metavar="SECONDS",
            rich_help_panel=_LIMITS,
            help="Maximum time for which a snapshot freezes a file system before it is aborted, > 0.",
        ),
    ] = 5.0,
    metrics_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_METRICS_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            rich_help_panel=_MONITORING,
            help="Address of /metrics, /healthz and /readyz, e.g. 127.0.0.1:9808.",
        ),
    ] = "",
    metrics_volumes: Annotated[
        int,
        typer.Option(
            envvar="TIDEMARK_METRICS_VOLUMES",
            help="Maximum number of volumes with series of their own in /metrics, the largest first; 0: none.",
        ),
    ] = 500,
    listen: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_LISTEN",
            metavar="HOST:PORT",
            show_default="none",
            rich_help_panel=_CLUSTER,
            help="Address for controllers, with mutual TLS, e.g. :9807. Needs --certificates.",
        ),
    ] = "",
    certificates: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CERTIFICATES",
            metavar="DIR",
            show_default="none",
            rich_help_panel=_CLUSTER,
            help="Directory of ca.crt, tls.crt and tls.key; changed files are reloaded. Needs --listen.",
        ),
    ] = "",
    register: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_REGISTER",
            metavar="DIR",
            show_default="none",
            rich_help_panel=_CLUSTER,
            help="Directory in which the kubelet finds plugins (plugins_registry); for a pod. Needs --kubelet-socket.",
        ),
    ] = "",
    kubelet_socket: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_KUBELET_SOCKET",
            metavar="PATH",
            show_default="none",
            rich_help_panel=_CLUSTER,
            help="Path of the CSI socket as the kubelet sees it. Needs --register.",
        ),
    ] = "",
    runtime_directory: Annotated[
        str,
        typer.Option(
            "--runtime-dir",
            envvar="TIDEMARK_RUNTIME_DIR",
            metavar="DIR",
            rich_help_panel=_NODE,
            help="Directory of the node that is empty after a boot, for the journal of freezes.",
        ),
    ] = DEFAULT_RUNTIME_DIRECTORY,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(
            envvar="TIDEMARK_LOG_FORMAT",
            rich_help_panel=_MONITORING,
            help="Format of the log: console for people, json for programs.",
        ),
    ] = "console",
    driver_name: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_DRIVER_NAME",
            rich_help_panel=_CLUSTER,
            help="Name of the CSI driver, as in its CSIDriver object.",
        ),
    ] = DRIVER_NAME,
    volume_health: Annotated[
        bool,
        typer.Option(
            "--volume-health",
            envvar="TIDEMARK_VOLUME_HEALTH",
            rich_help_panel=_CLUSTER,
            help="Announce CSI's alpha capabilities for volume health; for kubelets with the feature gate CSIVolumeHealth.",
        ),
    ] = False,
) -> None:
    """Serve the pools of this node as a complete CSI driver on a unix socket.

    The only part that needs root. SIGTERM stops it; mounted volumes stay mounted.

    $ tidemark agent --pool /srv/tidemark
    $ tidemark agent --pool fast=/srv/nvme --pool bulk=/srv/disk
    $ tidemark agent --pool-image /var/lib/tidemark/pool.img --pool-size 50Gi
    """
    try:
        image = None
        if pool_image:
            size = size_of(pool_size, "--pool-size") if pool_size else None
            image = PoolImage(pool_image, pool_mount, size, pool_image_sparse)
        pools = tuple(pool_of(text) for text in pool or ())
        if image is not None and not pools:
            pools = (PoolSpec(DEFAULT_POOL, DEFAULT_BACKEND, image.mount),)
        settings = Settings(
            pools=pools,
            image=image,
            pool_init=pool_init,
            endpoint=endpoint,
            node_name=node_name or socket.gethostname(),
            overcommit=overcommit,
            reserve=size_of(reserve, "--reserve") if reserve else None,
            max_snapshots=max_snapshots,
            freeze_deadline=freeze_deadline,
            metrics_address=address_of(metrics_address) if metrics_address else None,
            metrics_volumes=metrics_volumes,
            listen=address_of(listen) if listen else None,
            certificates=certificates,
            register=register,
            kubelet_socket=kubelet_socket,
            runtime_directory=runtime_directory,
            log_format=log_format,
            driver_name=driver_name,
            volume_health=volume_health,
        )
    except BadSetting as error:
        raise typer.BadParameter(str(error)) from None
    _become(settings)


def _become(settings: Settings) -> None:
    """Replace the command line by the agent: the same process, with less memory."""
    # Many short-lived allocations in many threads: two arenas are as fast as eight a core, and take less memory.
    restart_without_ambient(["-m", "csi_driver.agent", dump(settings)], {"MALLOC_ARENA_MAX": "2", **os.environ})

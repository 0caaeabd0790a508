"""`tidemark agent`: from options and environment to Settings. Every option is an environment variable too."""

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
from csi_driver.environment import begin_again
from csi_driver.settings import DEFAULT_ENDPOINT, BadSetting

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\s]*):(\d{1,5})", re.ASCII)


def pool_of(text: str) -> PoolSpec:
    """`NAME=BACKEND:PATH`, `NAME=PATH`, or a path alone, which is `default=reflink:PATH`."""
    return PoolSpec(*parse_pool(text, DEFAULT_POOL))


def address_of(text: str) -> tuple[str, int]:
    """`HOST:PORT`; `:PORT` means every address, `[::1]:PORT` one of IPv6."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise typer.BadParameter(f"{text!r} is not an address: write HOST:PORT, such as 127.0.0.1:9808")
    return match[1].strip("[]") or "0.0.0.0", int(match[2])  # noqa: S104  asked for by leaving the host out


def agent(
    pool: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TIDEMARK_POOL",
            metavar="NAME=BACKEND:PATH",
            help="A pool; may be repeated, the first is the default. A path alone is default=reflink:PATH. "
            "In the environment: several, separated by spaces or newlines.",
        ),
    ] = None,
    pool_init: Annotated[
        bool,
        typer.Option(
            "--pool-init",
            envvar="TIDEMARK_POOL_INIT",
            help="Make a new pool in an empty directory even if it is no mount point.",
        ),
    ] = False,
    pool_image: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_POOL_IMAGE",
            metavar="FILE",
            help="Keep the pool in this file: made, formatted with XFS and mounted where it is not there yet.",
        ),
    ] = "",
    pool_size: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_POOL_SIZE",
            metavar="SIZE",
            show_default="20Gi for a new image, and no change of one that is there",
            help="Size of the pool image: one that is smaller grows, in use or not; it never shrinks.",
        ),
    ] = "",
    pool_image_sparse: Annotated[
        bool,
        typer.Option(
            "--pool-image-sparse",
            envvar="TIDEMARK_POOL_IMAGE_SPARSE",
            help="Do not allocate the pool image in full: only for trying things out.",
        ),
    ] = False,
    pool_mount: Annotated[
        str, typer.Option(envvar="TIDEMARK_POOL_MOUNT", metavar="DIR", help="Where the pool image is mounted.")
    ] = DEFAULT_MOUNT,
    endpoint: Annotated[
        str,
        typer.Option(
            envvar=["CSI_ENDPOINT", "TIDEMARK_ENDPOINT"],
            metavar="SOCKET",
            callback=endpoint_of,
            help="The CSI socket to serve.",
        ),
    ] = DEFAULT_ENDPOINT,
    node_name: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_NODE_NAME",
            show_default="the host's name",
            help="The first part of every id made here: keep it.",
        ),
    ] = "",
    overcommit: Annotated[
        float, typer.Option(envvar="TIDEMARK_OVERCOMMIT", help="How often the pool's size may be promised.")
    ] = 2.0,
    reserve: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_RESERVE",
            metavar="SIZE",
            show_default="5 %, at least 1 GiB but no more than 10 %",
            help="Free space below which nothing new is made.",
        ),
    ] = "",
    max_snapshots: Annotated[
        int, typer.Option(envvar="TIDEMARK_MAX_SNAPSHOTS", help="Snapshots that one disk may have.")
    ] = 256,
    freeze_deadline: Annotated[
        float,
        typer.Option(
            envvar="TIDEMARK_FREEZE_DEADLINE",
            metavar="SECONDS",
            help="How long a snapshot may hold a file system still before it is given up.",
        ),
    ] = 5.0,
    metrics_address: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_METRICS_ADDRESS",
            metavar="HOST:PORT",
            show_default="none",
            help="Serve /metrics, /healthz and /readyz here.",
        ),
    ] = "",
    listen: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_LISTEN",
            metavar="HOST:PORT",
            show_default="none",
            help="Serve controllers here, with mutual TLS.",
        ),
    ] = "",
    certificates: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_CERTIFICATES",
            metavar="DIR",
            show_default="none",
            help="Where ca.crt, tls.crt and tls.key lie, or will be put; changes are followed.",
        ),
    ] = "",
    register: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_REGISTER",
            metavar="DIR",
            show_default="none",
            help="Register with the kubelet that watches this directory (plugins_registry): for a pod.",
        ),
    ] = "",
    kubelet_socket: Annotated[
        str,
        typer.Option(
            envvar="TIDEMARK_KUBELET_SOCKET",
            metavar="PATH",
            show_default="none",
            help="Where the kubelet finds the CSI socket.",
        ),
    ] = "",
    runtime_directory: Annotated[
        str,
        typer.Option(
            "--runtime-dir",
            envvar="TIDEMARK_RUNTIME_DIR",
            metavar="DIR",
            help="Directory of the node that is empty after a boot, for the journal of freezes.",
        ),
    ] = DEFAULT_RUNTIME_DIRECTORY,
    log_format: Annotated[
        Literal["console", "json"],
        typer.Option(envvar="TIDEMARK_LOG_FORMAT", help="Lines for people or for programs."),
    ] = "console",
    driver_name: Annotated[
        str, typer.Option(envvar="TIDEMARK_DRIVER_NAME", help="The CSI driver's name.")
    ] = DRIVER_NAME,
    volume_health: Annotated[
        bool,
        typer.Option(
            "--volume-health",
            envvar="TIDEMARK_VOLUME_HEALTH",
            help="Announce CSI's alpha capabilities for the health of volumes: for kubelets with the gate CSIVolumeHealth.",
        ),
    ] = False,
) -> None:
    """Serve the pools of this node as a complete CSI driver on a unix socket.

    The only part that needs root. It stops on SIGTERM; disks that are mounted stay mounted.

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
    """Go on as the agent: the same process, without the memory of the command line."""
    # Many short-lived allocations in many threads: two arenas are as quick as eight a core, and take less.
    begin_again(["-m", "csi_driver.agent", dump(settings)], {"MALLOC_ARENA_MAX": "2", **os.environ})

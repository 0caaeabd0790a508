"""`tidemark pool create` and `tidemark pool grow`: pools of LVM, made of disks by root on the machine itself. No agent is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from csi_driver.cli.common import size_of
from csi_driver.cli.failure import Failure
from csi_driver.cli.output.documents import plain
from csi_driver.cli.output.form import Output, output_form
from csi_driver.cli.output.printing import print_result
from csi_driver.cli.sizes import show
from csi_driver.domain.ids import is_pool_name
from csi_driver.host.lvm.configuration import is_group_name

if TYPE_CHECKING:
    from csi_driver.backends.lvm.pool_making import PoolMaker

_Name = Annotated[str, typer.Argument(metavar="POOL", help="Name of the pool, e.g. fast.")]


def create(
    name: _Name,
    disks: Annotated[
        list[str], typer.Argument(metavar="DISK...", help="Empty disks or partitions, e.g. /dev/nvme1n1.")
    ],
    lvm: Annotated[
        bool, typer.Option("--lvm", help="Make a pool of LVM: a volume group with a thin pool. Required.")
    ] = False,
    size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            show_default="all",
            help="Size of the thin pool, e.g. 500Gi. What is left of the disks is for thick volumes.",
        ),
    ] = "",
    vg: Annotated[
        str, typer.Option("--vg", metavar="NAME", show_default="the pool's", help="Name of the volume group.")
    ] = "",
    output: Output = "table",
) -> None:
    """Make a pool of LVM of empty disks; run as root on the node itself. A disk that holds anything is refused.

    $ tidemark pool create fast --lvm /dev/nvme1n1
    $ tidemark pool create fast --lvm /dev/nvme1n1 /dev/nvme2n1 --size 500Gi
    """
    form = output_form(output)
    if not lvm:
        raise typer.BadParameter(
            "only pools of LVM are made of disks: add --lvm. For a pool in a directory on XFS, start the agent with --pool DIR",
            param_hint="--lvm",
        )
    if not is_pool_name(name):
        raise typer.BadParameter(
            f"{name!r} is not a valid pool name: use at most 31 lower-case letters, digits and inner dashes",
            param_hint="POOL",
        )
    if vg and not is_group_name(vg):
        raise typer.BadParameter(
            f"{vg!r} is not a name of a volume group: use letters, digits and . _ + -", param_hint="--vg"
        )
    wanted = size_of(size, "--size") if size else None
    with _maker() as maker:
        pool = maker.create(name, vg or name, disks, wanted)
    print_result(
        form,
        plain(pool),
        pool.name,
        f"Made pool {pool.name} of {show(pool.total)} on {', '.join(pool.devices)} (volume group {pool.vg}, {show(pool.metadata)} for "
        "the metadata of its thin pool).",
        f"Serve it: tidemark agent --pool {pool.name}=lvm:{pool.vg}",
    )


def grow(
    name: _Name,
    disks: Annotated[
        list[str], typer.Argument(metavar="DISK...", help="Empty disks or partitions, e.g. /dev/nvme2n1.")
    ],
    output: Output = "table",
) -> None:
    """Add empty disks to a pool of LVM, also in use; run as root on the node itself. A disk that holds anything is refused.

    $ tidemark pool grow fast /dev/nvme2n1
    """
    form = output_form(output)
    with _maker() as maker:
        before, pool = maker.grow(name, disks)
    print_result(
        form,
        plain(pool),
        pool.name,
        f"Pool {pool.name} has {show(pool.total)} now, {show(pool.total - before)} more, on {', '.join(pool.devices)}.",
    )


@contextmanager
def _maker() -> "Iterator[PoolMaker]":
    """Yield what makes pools. A refusal becomes a Failure."""
    from csi_driver.backends.lvm.pool_making import PoolMaker
    from csi_driver.domain.errors import DriverError

    if os.geteuid() != 0:
        raise Failure("disks are changed by root alone: run it with sudo, on the node that has the disks")
    try:
        yield PoolMaker(in_container=_in_container())
    except DriverError as error:
        raise Failure(str(error)) from None


def _in_container() -> bool:
    return (
        "KUBERNETES_SERVICE_HOST" in os.environ or os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    )

"""The `tidemark` command.

Only typer is imported here and in what is imported from here: the agent runs for months, and its memory would pay for
tables and colours that it never draws.
"""

import os
import sys
from typing import Annotated

import typer

from csi_driver import __version__
from csi_driver.cli import (
    agent,
    controller,
    demo,
    mounts,
    node,
    pools,
    rollback,
    snapshots,
    tree,
    uninstall_check,
    volumes,
)
from csi_driver.cli.common import Failure
from csi_driver.environment import begin_again, is_ambient

app = typer.Typer(
    name="tidemark",
    help="Elastic disks, copy-on-write snapshots, and the way back to them.\n\n"
    "$ tidemark demo                           see it all in seconds, on a pool of its own\n"
    "$ tidemark agent --pool /srv/tidemark     serve a directory on XFS; then in another terminal:\n"
    "$ tidemark volume create db --size 10Gi\n"
    "$ tidemark mount db /mnt/db\n"
    "$ tidemark snapshot create db before-upgrade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tidemark {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


app.command("demo", rich_help_panel="Begin here")(demo.demo)
app.command("agent", rich_help_panel="Begin here")(agent.agent)
app.command("controller", rich_help_panel="In a cluster")(controller.controller)
app.add_typer(node.app, name="node", rich_help_panel="In a cluster")
app.add_typer(volumes.app, name="volume", rich_help_panel="Disks and snapshots")
app.add_typer(snapshots.app, name="snapshot", rich_help_panel="Disks and snapshots")
app.add_typer(snapshots.group_app, name="group", rich_help_panel="Disks and snapshots")
app.command("rollback", rich_help_panel="Disks and snapshots")(rollback.rollback)
app.command("mount", rich_help_panel="Disks and snapshots")(mounts.mount)
app.command("umount", rich_help_panel="Disks and snapshots")(mounts.umount)
app.command("tree", rich_help_panel="Look")(tree.tree)
app.command("pools", rich_help_panel="Look")(pools.pools)
app.command("status", rich_help_panel="Look")(pools.status)
app.command("uninstall-check", hidden=True)(uninstall_check.uninstall_check)  # for the chart, not for people


def main() -> None:
    """Run the command line: exit code 0, 1 for a refusal, 2 for wrong usage."""
    # These are started by a pod or a unit, whose environment is not of its making. (An agent begins again in any case.)
    in_pod = sys.argv[1:2] in (["controller"], ["uninstall-check"])
    if in_pod and any(is_ambient(name, value) for name, value in os.environ.items()):
        begin_again(["-m", "csi_driver.cli.main", *sys.argv[1:]], os.environ)
    try:
        app(prog_name="tidemark")
    except Failure as failure:
        typer.echo(f"tidemark: {failure}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""The `tidemark` command.

This module and its imports load no library but typer: the agent runs for months, and would pay in memory for tables and
colours that it never draws.
"""

import os
import sys
from typing import Annotated

import typer

from csi_driver import __version__
from csi_driver.cli import (
    agent,
    controller,
    mounts,
    node,
    pools,
    rollback,
    snapshots,
    tree,
    unexpected,
    uninstall_check,
    volumes,
)
from csi_driver.cli.common import Failure
from csi_driver.cli.demo import command as demo
from csi_driver.environment import is_ambient, restart_without_ambient

app = typer.Typer(
    name="tidemark",
    help="Elastic volumes, copy-on-write snapshots, and in-place rollback.\n\n"
    "$ tidemark demo                           show everything in seconds, on a pool of its own\n"
    "$ tidemark agent --pool /srv/tidemark     serve a directory on XFS; then in another terminal:\n"
    "$ tidemark volume create db --size 10Gi\n"
    "$ tidemark mount db /mnt/db\n"
    "$ tidemark snapshot create db before-upgrade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"tidemark {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


app.command("demo", rich_help_panel="Start here")(demo.demo)
app.command("agent", rich_help_panel="Start here")(agent.agent)
app.command("controller", rich_help_panel="In a cluster")(controller.controller)
app.add_typer(node.app, name="node", rich_help_panel="In a cluster")
app.add_typer(volumes.app, name="volume", rich_help_panel="Volumes and snapshots")
app.add_typer(snapshots.app, name="snapshot", rich_help_panel="Volumes and snapshots")
app.add_typer(snapshots.group_app, name="group", rich_help_panel="Volumes and snapshots")
app.command("rollback", rich_help_panel="Volumes and snapshots")(rollback.rollback)
app.command("mount", rich_help_panel="Volumes and snapshots")(mounts.mount)
app.command("umount", rich_help_panel="Volumes and snapshots")(mounts.umount)
app.command("tree", rich_help_panel="Inspect")(tree.tree)
app.command("pools", rich_help_panel="Inspect")(pools.pools)
app.command("status", rich_help_panel="Inspect")(pools.status)
app.command("uninstall-check", hidden=True)(uninstall_check.uninstall_check)  # for the chart, not for people


def main() -> None:
    """Run the command line. Exit code 0, 1 for an error, 2 for wrong usage."""
    # A pod starts these, with an environment that others may have set. (An agent is restarted without it in any case.)
    in_pod = sys.argv[1:2] in (["controller"], ["uninstall-check"])
    if in_pod and any(is_ambient(name, value) for name, value in os.environ.items()):
        restart_without_ambient(["-m", "csi_driver.cli.main", *sys.argv[1:]], os.environ)
    try:
        app(prog_name="tidemark")
    except Failure as failure:
        typer.echo(f"tidemark: {failure}", err=True)
        sys.exit(1)
    except Exception as error:
        typer.echo(f"tidemark: {unexpected.explain(error, with_traceback=in_pod)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

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
    cluster_objects,
    completion,
    controller,
    groups,
    more_commands,
    mounts,
    node,
    pools,
    rollback,
    snapshots,
    tree,
    umounts,
    unexpected,
    uninstall_check,
    volumes,
)
from csi_driver.cli.demo import command as demo
from csi_driver.cli.failure import Failure
from csi_driver.cli.grammar import RootGroup
from csi_driver.cli.output.printing import warn
from csi_driver.environment import is_ambient, restart_without_ambient

app = typer.Typer(
    cls=RootGroup,
    name="tidemark",
    help="Elastic volumes, copy-on-write snapshots, and in-place rollback.\n\n"
    "$ tidemark demo                           show everything in seconds, on a pool of its own\n"
    "$ tidemark agent --pool /srv/tidemark     serve a directory on XFS; then in another terminal:\n"
    "$ tidemark volume create db 10Gi\n"
    "$ tidemark mount db /mnt/db\n"
    "$ tidemark snapshot create db before-upgrade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

START, CLUSTER, OBJECTS, INSPECT = "Start here", "In a cluster", "Volumes and snapshots", "Inspect"


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


app.command("demo", rich_help_panel=START)(demo.demo)
app.command("agent", rich_help_panel=START)(agent.agent)
app.command("completion", rich_help_panel=START)(completion.completion)
app.command("controller", rich_help_panel=CLUSTER)(controller.controller)
app.add_typer(node.app, name="node", rich_help_panel=CLUSTER)
app.add_typer(cluster_objects.schedule_app, name="schedule", rich_help_panel=CLUSTER)
app.add_typer(volumes.app, name="volume", rich_help_panel=OBJECTS)
app.add_typer(snapshots.app, name="snapshot", rich_help_panel=OBJECTS)
app.add_typer(groups.app, name="group", rich_help_panel=OBJECTS)
app.add_typer(rollback.app, name="rollback", rich_help_panel=OBJECTS)
app.command("mount", rich_help_panel=OBJECTS)(mounts.mount)
app.command("umount", rich_help_panel=OBJECTS)(umounts.umount)
app.command("tree", rich_help_panel=INSPECT)(tree.tree)
app.add_typer(pools.app, name="pool", rich_help_panel=INSPECT)
app.command("status", rich_help_panel=INSPECT)(pools.status)
more_commands.add_commands(app, INSPECT)
app.command("pools", hidden=True)(pools.list_)  # the name before, for one release
app.command("uninstall-check", hidden=True)(uninstall_check.uninstall_check)  # for the chart, not for people


def main() -> None:
    """Run the command line. Exit code 0, 1 for an error, 2 for wrong usage."""
    # A pod starts these, with an environment that others may have set. (An agent is restarted without it in any case.)
    in_pod = sys.argv[1:2] in (["controller"], ["uninstall-check"])
    if in_pod and any(is_ambient(name, value) for name, value in os.environ.items()):
        restart_without_ambient(["-m", "csi_driver.cli.main", *sys.argv[1:]], os.environ)
    if completion.VARIABLE in os.environ:
        completion.prepare()
    try:
        app(prog_name="tidemark")
    except Failure as failure:
        warn(f"tidemark: {failure}")
        sys.exit(1)
    except Exception as error:
        for line in f"tidemark: {unexpected.explain(error, with_traceback=in_pod)}".splitlines():
            warn(line)
        sys.exit(1)


if __name__ == "__main__":
    main()

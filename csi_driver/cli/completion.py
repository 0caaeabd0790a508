"""Completion for shells: `tidemark completion SHELL` prints a script, which asks the command for names on every Tab."""

import os
import re
import socket
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from csi_driver.cli.output.printing import say
from csi_driver.settings import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from csi_driver.cli.objects import AgentObjects
    from csi_driver.rpc.clients.cli_client import Kind

VARIABLE = "_TIDEMARK_COMPLETE"
"""Set by the scripts; the command then prints completions instead of running."""

SECONDS = 1.0
"""For the agent's answer: whoever presses Tab waits for it."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)
"""Names that no shell takes apart. The others are typed by hand, or pasted as ids."""

_RECIPES = {
    "bash": "source <(tidemark completion bash)   # for good: append this line to ~/.bashrc",
    "zsh": "source <(tidemark completion zsh)   # for good: append this line to ~/.zshrc, after compinit",
    "fish": "tidemark completion fish | source   # for good: > ~/.config/fish/completions/tidemark.fish",
}


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell that will read the script.")],
) -> None:
    """Print the completion script of a shell: commands, options, and names of volumes and snapshots.

    $ source <(tidemark completion bash)
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="tidemark", complete_var=VARIABLE, shell=shell))
    # Last: zsh reads `#compdef` in the first line only.
    say(f"# {_RECIPES[shell]}")


def prepare() -> None:
    """Register the shells with typer. Only a process that was started by a completion script needs them."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def complete_volume(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of volumes that begin with a text."""
    return _names(ctx, incomplete, "volume")


def complete_snapshot(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of snapshots that begin with a text."""
    return _names(ctx, incomplete, "snapshot")


def complete_source(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of volumes and snapshots that begin with a text."""
    return _names(ctx, incomplete, "volume", "snapshot")


def complete_group(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of group snapshots that begin with a text."""
    return _names(ctx, incomplete, "group")


def complete_pool(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of pools that begin with a text."""
    objects = _objects(ctx)
    return sorted({node.pool for node in objects.nodes if node.pool.startswith(incomplete)}) if objects else []


def _names(ctx: typer.Context, incomplete: str, *kinds: "Kind") -> list[str]:
    objects = _objects(ctx)
    if objects is None:
        return []
    names: set[str] = set()
    for node in objects.nodes:
        if node.kind in kinds:
            shown = objects.name(node)
            names.add(shown if _SAFE.fullmatch(shown) else node.name)
    return sorted(name for name in names if name.startswith(incomplete) and _SAFE.fullmatch(name))


def _objects(ctx: typer.Context) -> "AgentObjects | None":
    """Read the tree of the agent; None if it does not answer at once."""
    endpoint = str(ctx.params.get("endpoint") or os.environ.get("CSI_ENDPOINT") or DEFAULT_ENDPOINT)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(SECONDS)
        try:
            probe.connect(endpoint.removeprefix("unix:").removeprefix("//"))
        except OSError:
            return None
    from csi_driver.cli.objects import AgentObjects
    from csi_driver.rpc.clients.cli_client import CallRefused, Client

    with Client(endpoint, SECONDS) as client:
        try:
            return AgentObjects.read(client)
        except CallRefused:
            return None

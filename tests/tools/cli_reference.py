"""Write docs/reference/cli.md from the command line itself: what `--help` says of every command.

    python tests/tools/cli_reference.py

Hidden commands and options are left out: they are names of earlier versions, or for the chart.
tests/unit/test_cli_reference.py checks that the page is what this would write.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

TREE = Path(__file__).resolve().parent.parent.parent
PAGE = TREE / "docs" / "reference" / "cli.md"

HEAD = """# The command line

`tidemark` and its commands, as `--help` prints them. Every command has `-h` and `--help`. The exit status is 0, 1 for
an error, 2 for wrong usage. Made from the code by tests/tools/cli_reference.py.

| command | what it does |
|---|---|
"""


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command and all that are not hidden below it, with their words, in the order of its help."""
    yield path, command
    below = getattr(command, "commands", None)
    if below is None:
        return
    # list_commands needs a context and returns the names in the order of the help.
    context = command.make_context(path[-1], [], resilient_parsing=True)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None and not child.hidden:
            yield from commands(child, (*path, name))


def page(app: Any) -> str:
    """Return the page for this typer app."""
    found = list(commands(typer.main.get_command(app), ("tidemark",)))
    leaves = [(path, command) for path, command in found if getattr(command, "commands", None) is None]
    table = "".join(
        f"| [`{' '.join(path)}`](#{anchor(path)}) | {cell(summary(command))} |\n" for path, command in leaves
    )
    return HEAD + table + "".join(section(path, command) for path, command in leaves)


def section(path: tuple[str, ...], command: Any) -> str:
    """Return the section of one command: usage, help, and a list of its arguments and options."""
    context = command.make_context(path[-1], [], resilient_parsing=True)
    usage, items = [*path], []
    for parameter in command.get_params(context):
        # Its names, and its help with what typer adds to it: all that --help prints of it; None if it is hidden.
        record = None if parameter.hidden else parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        name, said = record[0], split(record[1])
        if parameter.param_type_name == "argument":
            name = name.split()[0].strip("[]{}").upper()
            usage.append(name if parameter.required else f"[{name}]")
        items.append(fill(f"- `{name}`{said}", "  ") + "\n")
    if any(item.startswith("- `-") for item in items):
        usage.insert(len(path), "[OPTIONS]")
    lines = [f"\n## {' '.join(path)}\n", f"    {' '.join(usage)}\n"]
    lines += [f"{text}\n" for text in paragraphs(command.help or "")]
    return "\n".join([*lines, "".join(items)]) if items else "\n".join(lines)


def split(text: str) -> str:
    """Return the help of an argument or option with what typer adds to it (`[env var: X; default: y]`) in words."""
    text, _, added = text.strip().removesuffix("]").rpartition("  [") if text.endswith("]") else (text, "", "")
    notes = []
    for note in filter(None, added.split("; ", 1) if added.startswith("env var") else [added]):
        kind, _, value = note.partition(": ")
        if kind == "env var":
            notes.append("in the environment " + " or ".join(f"`{one}`" for one in value.split(", ")))
        elif kind == "default":
            notes.append("default: " + (value.strip("()") if value.startswith("(") else f"`{value}`"))
        else:
            notes.append(note)
    return (f" ({'; '.join(notes)})" if notes else "") + f": {' '.join(text.split())}"


def summary(command: Any) -> str:
    """Return the first sentence of a command's help."""
    first = next(paragraphs(command.help or ""), "")
    return re.split(r"(?<=\.)\s", first.strip(), maxsplit=1)[0]


def paragraphs(help_: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; those that show commands, or are set in, become code."""
    for block in re.split(r"\n\s*\n", help_.replace("\b", "").strip("\n")):
        lines = block.splitlines()
        if any(line.startswith(("$", "  ")) for line in lines):
            yield "\n".join(f"    {line.removeprefix('$ ')}" for line in lines)
        elif block.strip():
            yield fill(" ".join(line.strip() for line in lines))


def fill(text: str, indent: str = "") -> str:
    """Break a paragraph into lines of at most 120 characters."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def anchor(path: tuple[str, ...]) -> str:
    """Return the end of a link to a command's section."""
    return "-".join(path)


def cell(text: str) -> str:
    """Return the text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page of the command line of this tree."""
    from csi_driver.cli.main import app

    PAGE.write_text(page(app))
    sys.stdout.write(f"{PAGE.relative_to(TREE)}\n")


if __name__ == "__main__":
    main()

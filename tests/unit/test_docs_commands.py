"""Each `tidemark` command that a page shows is one that the command line has, with these options and arguments."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from csi_driver.cli.grammar import SHORT_VERBS
from csi_driver.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (ROOT / "README.md", ROOT / "charts/tidemark/README.md", *(ROOT / "docs").rglob("*.md"))
    if "adr" not in page.parts and page.name != "cli.md"  # decisions of their day; a page made from the code
)
SHOWN = re.compile(
    r"^(?: {4}|\$ )+(?:sudo )?(tidemark [a-z].*)$|`(tidemark [a-z][^`]*)`| -- (tidemark [a-z][^`\n]*)", re.MULTILINE
)
COMMANDS = typer.main.get_command(app)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command: indented or in a fence, or between backticks in a sentence."""
    for fence in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        text += "".join(f"\n    {line}" for line in fence.splitlines())
    for match in SHOWN.finditer(text):
        line = match[1] or match[2] or match[3]
        for inner in re.findall(r"\$\(tidemark ([^()]*)\)", line):
            yield shlex.split(inner)
        yield shlex.split(re.sub(r"\$\([^()]*\)", "WORD", line), comments=True)[1:]


class Wrong(Exception):
    """A command that the command line does not have."""


def check(words: list[str]) -> None:
    """Look a command up as the command line does, without running it. Raises Wrong."""
    command: Any = COMMANDS
    while hasattr(command, "commands"):
        if words and command.name == "rollback" and words[0] not in (*command.commands, *SHORT_VERBS, "--help"):
            words = ["create", *words]  # `tidemark rollback VOLUME SNAPSHOT`
        if not words or words[0].startswith("-"):
            break
        name = SHORT_VERBS.get(words[0], words[0])
        words = words[1:]
        if name not in command.commands or command.commands[name].hidden:
            raise Wrong(f"there is no command {name}, or no longer")
        command = command.commands[name]
    options = {text: each for each in command.params for text in (*each.opts, *each.secondary_opts) if text[0] == "-"}
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    count = 0
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("&&", ";", "&", "||") or word.startswith((">", "|", "2>")):
            break
        if not word.startswith("-") or word == "--":
            count += word != "--"
            continue
        name, _, value = word.partition("=")
        if name == "--help":
            return
        if name not in options or options[name].hidden:
            raise Wrong(f"{command.name} has no option {name}, or no longer")
        if not options[name].is_flag and not value and rest:
            rest.pop(0)
    if not any(argument.nargs < 0 for argument in arguments) and count > len(arguments):
        raise Wrong(f"{command.name} takes {len(arguments)} arguments, not {count}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_of_a_page_exists(page: Path) -> None:
    wrong = []
    for words in commands(page.read_text()):
        try:
            check(words)
        except Wrong as error:
            wrong.append(f"tidemark {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "volume make db",
        "volume list --colour",
        "pools",
        "umount a b c",
        "volume create db --sise 1Gi",
        "umount a b c d e f g",
    ],
)
def test_what_the_command_line_does_not_have_is_found(line: str) -> None:
    (words,) = commands(f"Try:\n\n    tidemark {line}\n")
    with pytest.raises(Wrong):
        check(words)


def test_the_readme_shows_commands() -> None:
    assert len(list(commands((ROOT / "README.md").read_text()))) > 8

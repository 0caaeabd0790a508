"""The reference of the command line is what the command line says, and says all of it."""

import typer
from tools import cli_reference

from csi_driver.cli.main import app


def test_the_page_is_what_the_code_says() -> None:
    assert cli_reference.PAGE.read_text() == cli_reference.page(app), (
        "docs/reference/cli.md is not what --help says: run python tests/tools/cli_reference.py"
    )


def made() -> typer.Typer:
    small = typer.Typer()
    group = typer.Typer(help="Things.")

    @group.command("make")
    def make(
        name: str,
        size: str = typer.Option("", help="Minimum size, e.g. 10Gi | 1Ti."),
        pool: str = typer.Option("fast", envvar=["POOL", "OLD_POOL"], help="Where."),
        old: bool = typer.Option(False, hidden=True),
        yes: bool = typer.Option(False, "--yes", help="Do not ask."),
        ratio: float = typer.Option(2.0, show_default="(twice)", help="A ratio."),
    ) -> None:
        """Make a thing. It stays.

        Only the first time.

        $ small thing make db --size 1Gi
        """

    @small.command("gone", hidden=True)
    def gone() -> None:
        """An old name."""

    small.add_typer(group, name="thing")
    small.add_typer(group, name="things", hidden=True)
    return small


def test_a_command_has_usage_help_example_and_options() -> None:
    page = cli_reference.page(made())
    assert "| [`tidemark thing make`](#tidemark-thing-make) | Make a thing. |" in page
    section = page.split("## tidemark thing make\n")[1]
    for expected in (
        "    tidemark thing make [OPTIONS] NAME\n",
        "Make a thing. It stays.\n",
        "    small thing make db --size 1Gi\n",
        "- `--size <str>`: Minimum size, e.g. 10Gi | 1Ti.\n",
        "- `--pool <str>` (in the environment `POOL` or `OLD_POOL`; default: `fast`): Where.\n",
        "- `--yes`: Do not ask.\n",
        "- `--ratio <float>` (default: twice): A ratio.\n",
    ):
        assert expected in section, section


def test_what_is_hidden_is_left_out() -> None:
    page = cli_reference.page(made())
    assert "gone" not in page
    assert "things" not in page
    assert "--old" not in page
    assert "--help`" not in page.split("## ")[1]

"""The options of a command that prints something, and what they come to."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

Format = Literal["table", "wide", "json", "yaml", "name"]

Output = Annotated[
    Format,
    typer.Option(
        "--output",
        "-o",
        help="Format: a table, all columns, documents for programs, or names alone.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", hidden=True, help="Print JSON, as -o json.")]
Sort = Annotated[
    str, typer.Option("--sort", metavar="COLUMN", help="Sort by a column, e.g. size, or -size for the largest first.")
]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Print the table without its titles.")]


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How a result is printed. `sort`: title of a column in lower case, after `-` to reverse; empty: as it comes."""

    format: Format = "table"
    sort: str = ""
    headers: bool = True

    @property
    def for_people(self) -> bool:
        """Whether sentences and tables are printed, not documents or names."""
        return self.format in ("table", "wide")

    @property
    def wide(self) -> bool:
        """Whether every column is printed, however wide the terminal is."""
        return self.format == "wide"


def output_form(output: Format, *, as_json: bool = False, sort: str = "", no_headers: bool = False) -> OutputForm:
    """Return the form that the options ask for."""
    return OutputForm("json" if as_json else output, sort.lower(), not no_headers)

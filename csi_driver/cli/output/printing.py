"""The only place that prints. Every text is escaped here, so that a command cannot forget it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import typer

from csi_driver.cli.output.documents import Document, as_text
from csi_driver.cli.output.escape import escape
from csi_driver.cli.output.form import OutputForm
from csi_driver.cli.output.table import UNLIMITED, Cells, draw, terminal_width, wrap
from csi_driver.cli.suggest import suggestion

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column of a list.

    `key`: what --sort compares, if not the text; `wide`: only with -o wide; `rank`: columns of the highest rank are left
    out first if the terminal is too narrow, and those of rank 0 never.
    """

    title: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any] | None = None
    right: bool = False
    wide: bool = False
    rank: int = 0


def say(text: str) -> None:
    """Print a line."""
    typer.echo(escape(text))


def say_wrapped(start: str, text: str, width: int) -> None:
    """Print a text of any length after `start`: on a terminal in lines of at most `width` columns, below its beginning."""
    lines = wrap(escape(text), len(start), width) if len(start) + len(text) > width else [escape(text)]
    typer.echo("\n".join([escape(start) + lines[0], *lines[1:]]))


def warn(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(escape(text), err=True)


def print_result(form: OutputForm, document: Document, name: str, *sentences: str) -> None:
    """Print what a command did: sentences for people, a document for programs, or the object's name."""
    if not form.for_people:
        _print_documents(form, document, [name])
        return
    for sentence in sentences:
        say(sentence)


def print_object(form: OutputForm, document: Document, name: str, lines: Sequence[tuple[str, str]]) -> None:
    """Print one object: each title with its value, a document, or the object's name."""
    if not form.for_people:
        _print_documents(form, document, [name])
        return
    width = max(len(title) for title, _ in lines) + 2
    for title, value in lines:
        say_wrapped(f"{title + ':':<{width}}", value, UNLIMITED if form.wide else terminal_width())


def print_list(
    form: OutputForm,
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    *,
    document: Callable[[Row], Document],
    name: Callable[[Row], str],
    empty: str,
) -> None:
    """Print a list as a table, documents or names. `empty`: what to say to people if there are no rows."""
    rows = _sorted(rows, columns, form.sort)
    if not form.for_people:
        _print_documents(form, [document(row) for row in rows], [name(row) for row in rows])
        return
    if not rows:
        say(empty)
        return
    table = [
        Cells(column.title, [escape(column.text(row)) for row in rows], column.right, column.rank)
        for column in columns
        if form.wide or not column.wide
    ]
    lines, left_out = draw(table, UNLIMITED if form.wide else terminal_width(), form.headers)
    for line in lines:
        typer.echo(line)
    if left_out:
        warn(f"(left out: {', '.join(left_out)}; -o wide prints every column)")


def _print_documents(form: OutputForm, value: Any, names: Sequence[str]) -> None:
    if form.format == "name":
        for name in names:
            say(name)
        return
    typer.echo(as_text(value, form.format))


def _sorted(rows: Sequence[Row], columns: Sequence[Column[Row]], sort: str) -> Sequence[Row]:
    if not sort:
        return rows
    by_title = {column.title.lower().replace(" ", "-"): column for column in columns}
    column = by_title.get(sort.removeprefix("-"))
    if column is None:
        raise typer.BadParameter(
            f"no column is called {sort.removeprefix('-')!r}{suggestion(sort, by_title)}: use {', '.join(by_title)}",
            param_hint="--sort",
        )
    return sorted(rows, key=column.key or column.text, reverse=sort.startswith("-"))

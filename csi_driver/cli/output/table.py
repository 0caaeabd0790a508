"""Tables for people: as wide as the terminal, one line for each row."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

UNLIMITED = 10_000
"""Columns of output that goes to a file or a pipe: a shortened name could not be found by grep."""

GAP = 3
"""Spaces between two columns."""

_LEAST = 12
"""Columns of a cell that is never shortened further."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One column with its cells, escaped. `rank`: of the columns that do not fit, the highest goes first; 0 stays."""

    title: str
    cells: Sequence[str]
    right: bool = False
    rank: int = 0


def terminal_width() -> int:
    """Return the columns of the terminal (the variable COLUMNS, if it is set); UNLIMITED for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED


def draw(columns: Sequence[Cells], width: int, headers: bool = True) -> tuple[list[str], list[str]]:
    """Return the lines of a table that is at most `width` wide, and the titles of the columns that were left out."""
    from rich.cells import cell_len

    def needed(column: Cells) -> int:
        return max([cell_len(cell) for cell in column.cells] + ([cell_len(column.title)] if headers else [0]))

    shown = list(columns)
    widths = [needed(column) for column in shown]
    left_out: list[str] = []
    while sum(widths) + GAP * (len(shown) - 1) > width:
        last = max(range(len(shown)), key=lambda at: (shown[at].rank, at))
        if shown[last].rank == 0:
            break
        left_out.insert(0, shown.pop(last).title)
        widths.pop(last)
    while sum(widths) + GAP * (len(shown) - 1) > width and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1
    rows = ([[column.title for column in shown]] if headers else []) + [
        list(row) for row in zip(*(column.cells for column in shown), strict=True)
    ]
    lines = []
    for row in rows:
        parts = []
        for column, cell, columns_wide in zip(shown, row, widths, strict=True):
            text = shorten(cell, columns_wide)
            padding = " " * (columns_wide - cell_len(text))
            parts.append(padding + text if column.right else text + padding)
        lines.append((" " * GAP).join(parts).rstrip())
    return lines, left_out


def wrap(text: str, indent: int, width: int) -> list[str]:
    """Return an escaped text in lines of at most `width` columns, broken at spaces; all but the first are indented.

    `indent`: where the text begins in its first line, too. A word that is longer stays whole, to be copied.
    """
    import textwrap

    columns = max(width - indent, _LEAST)
    first, *rest = textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) or [""]
    return [first, *(" " * indent + line for line in rest)]


def shorten(text: str, width: int) -> str:
    """Return the text in at most `width` columns: a longer one loses its middle, since names differ at both ends."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    end = text[-tail:] if tail else ""
    while cell_len(end) > tail:
        end = end[1:]
    return f"{set_cell_size(text, width - 1 - cell_len(end)).rstrip()}…{end}"

"""Writes docs/reference/values.md from the comments in the chart's values.yaml.

    python tests/tools/values_reference.py

A value is documented by the lines of comment right above it; lines of that comment that are indented are an example. A map
whose keys have no comments is one value. tests/chart checks that the page is what this would write.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TREE = Path(__file__).resolve().parent.parent.parent
VALUES = TREE / "charts" / "tidemark" / "values.yaml"
PAGE = TREE / "docs" / "reference" / "values.md"

_KEY = re.compile(r"( *)([\w.-]+):(?: .*)?")
_STEP = 2

HEAD = """# Values of the chart

Set them with `--set`, or in a file that `--values` names. Any other value is refused by its name, so that a typing
error has no silent effect. Made from charts/tidemark/values.yaml by tests/tools/values_reference.py.
"""


@dataclass(frozen=True)
class Value:
    """One documented value: its path, what it is for, and its default."""

    path: tuple[str, ...]
    text: str
    example: str
    default: Any
    section: bool
    """True: a map whose keys are documented themselves."""

    @property
    def name(self) -> str:
        """As `--set` takes it."""
        return ".".join(self.path)


def comments(lines: list[str]) -> dict[tuple[str, ...], list[str]]:
    """The lines of comment above each key, by its path. Keys without a comment are not in it."""
    found: dict[tuple[str, ...], list[str]] = {}
    path: list[str] = []
    block: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.removeprefix("#").removeprefix(" "))
        elif match := _KEY.fullmatch(line):
            path = [*path[: len(match[1]) // _STEP], match[2]]
            if block:
                found[tuple(path)] = block
            block = []
        else:
            block = []
    return found


def documented(text: str) -> Iterator[Value]:
    """All values in the order of the file. Raises ValueError for one whose neighbours have a comment and that has none."""
    texts = comments(text.splitlines())

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[Value]:
        for key, default in node.items():
            here = (*path, key)
            if here not in texts:
                raise ValueError(f"{'.'.join(here)} has no comment in {VALUES.name}: write above it what it is for")
            section = isinstance(default, dict) and any((*here, child) in texts for child in default)
            words = " ".join(line for line in texts[here] if not line.startswith("  "))
            example = "\n".join(line[2:] for line in texts[here] if line.startswith("  "))
            yield Value(here, words, example, default, section)
            if section:
                yield from walk(default, here)

    yield from walk(yaml.safe_load(text), ())


def page(text: str) -> str:
    """The whole page for the text of a values.yaml: what belongs to nothing first, then a section for each map."""
    values = list(documented(text))
    sections = [value for value in values if value.section and len(value.path) == 1]
    parts = [HEAD, "\n## Of the chart as a whole\n\n"]
    parts += [item(value) for value in values if len(value.path) == 1 and not value.section]
    for section in sections:
        parts.append(f"\n## {section.name}\n\n{fill(section.text)}\n\n")
        parts += [item(value) for value in values if value.path[:1] == section.path and len(value.path) > 1]
    return "".join(parts)


def item(value: Value) -> str:
    """A value as an item of a list, with its example below."""
    default = "" if value.section else f" (`{json.dumps(value.default)}`)"
    entry = fill(f"- `{value.name}`{default}: {value.text}", "  ") + "\n"
    if value.example:
        entry += "\n" + "".join(f"      {line}\n" for line in value.example.splitlines()) + "\n"
    return entry


def fill(text: str, indent: str = "") -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(VALUES.read_text()))
    sys.stdout.write(f"{PAGE.relative_to(TREE)}\n")

"""Turn the pages of docs/ into the sources of the site: what a forge shows of a page is what the site shows.

A forge reads CommonMark, the builder Python-Markdown, which wants four columns of indentation in lists. And a link to a
file outside docs/ works on a forge only: the site names the file instead.
"""

import os
import re
import shutil
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
MARKER = re.compile(r" *(?:[*+-]|\d+[.)]) +")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
STEP = 4


def stage(tree: Path, target: Path) -> None:
    """Write the sources of the site to `target`, which is replaced: docs/ and, as changelog.md, CHANGELOG.md."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tree / "docs", target)
    for page in sorted((tree / "docs").rglob("*.md")):
        text = inner_links(page.read_text(), page, tree)
        (target / page.relative_to(tree / "docs")).write_text(lists(text))
    changelog = tree / "CHANGELOG.md"
    if changelog.exists():
        (target / "changelog.md").write_text(lists(inner_links(changelog.read_text(), changelog, tree)))


def inner_links(text: str, page: Path, tree: Path) -> str:
    """Return the page's text with each link that leaves docs/ replaced by its words and the path in the source tree."""
    docs, home = tree / "docs", page.parent if page.is_relative_to(tree / "docs") else tree / "docs"

    def replace(match: re.Match[str]) -> str:
        words, (path, hash_, heading) = match[1], match[2].partition("#")
        if "://" in path or path.startswith(("mailto:", "/")) or not path:
            return match[0]
        target = Path(os.path.normpath(page.parent / path))
        if target == tree / "CHANGELOG.md":
            target = docs / "changelog.md"
        elif target == tree / "README.md":
            target = docs / "index.md"
        elif target.is_dir() and (target / "index.md").exists():
            target /= "index.md"
        if target.is_relative_to(docs):
            return f"[{words}]({os.path.relpath(target, home)}{hash_}{heading})"
        if not target.is_relative_to(tree) or not target.exists():
            return match[0]  # dead: the build refuses it
        name = target.relative_to(tree).as_posix()
        return words if name in words else f"{words} (`{name}`)"

    return "".join(part if part.lstrip().startswith("```") else LINK.sub(replace, part) for part in FENCED.split(text))


def lists(text: str) -> str:
    """Return the text with four columns for each level of its lists, and the blank lines that Python-Markdown needs."""
    lines = text.split("\n")
    # Of each line: how many items it is in, the column where the innermost one's text begins, whether it begins an item.
    depth, column, begins, blank_before = ([0] * len(lines) for _ in range(4))
    inside = 0
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "list_item_open":
            inside += 1
            first, end = span(token)
            marker = MARKER.match(lines[first])
            for number in range(first, end):
                depth[number], column[number], begins[number] = inside, len(marker[0]) if marker else 0, number == first
        elif token.type == "list_item_close":
            inside -= 1
        elif token.type in {"bullet_list_open", "ordered_list_open"} and inside == 0:
            blank_before[span(token)[0]] = True
        elif token.type == "paragraph_open" and inside and not token.hidden and begins[span(token)[0]]:
            blank_before[span(token)[0]] = True  # a loose list
    written: list[str] = []
    for number, line in enumerate(lines):
        if blank_before[number] and written and written[-1].strip():
            written.append("")
        if not depth[number] or not line.strip():
            written.append(line)
        elif begins[number]:
            written.append(" " * STEP * (depth[number] - 1) + line.lstrip())
        else:
            own = len(line) - len(line.lstrip())
            written.append(" " * (STEP * depth[number] + max(own - column[number], 0)) + line.lstrip())
    return "\n".join(written)


def span(token: Token) -> tuple[int, int]:
    """Return the lines of a block: the first, and the one after the last."""
    assert token.map is not None
    return token.map[0], token.map[1]

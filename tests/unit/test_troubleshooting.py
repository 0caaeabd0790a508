"""The page on troubleshooting quotes what the code says: a reader who searches for a message finds it there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
PAGE = TREE / "docs" / "how-to" / "troubleshooting.md"
GAP = "…"
OTHERS = {
    "No space left on device",  # the kernel's
    "driver name csi.tidemark.dev not found",  # the kubelet's
    "has no deployed releases",  # helm's
}


def said(tree: ast.AST) -> Iterator[str]:
    """Each text of a module, with a gap for every value that is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def texts() -> str:
    modules = [path for path in (TREE / "csi_driver").rglob("*.py") if "_pb" not in path.parts]
    found = [text for path in modules for text in said(ast.parse(path.read_text()))]
    charts = (TREE / "charts" / "tidemark" / "templates").glob("*.tpl")
    return "\n".join([*found, *(re.sub(r"%[sd]", GAP, path.read_text()) for path in charts)])


def quotes() -> Iterator[str]:
    """What the first columns quote that is a message: several words, or with a gap."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith(("| symptom", "|---")):
            symptom = re.split(r"(?<!\\)\|", line)[1]
            yield from (quote for quote in re.findall(r"`([^`]+)`", symptom) if " " in quote)


def test_every_message_that_is_quoted_is_one_that_the_driver_gives() -> None:
    everything = texts()
    missing = []
    quoted = list(quotes())
    assert len(quoted) > 30
    for quote in set(quoted) - OTHERS:
        pattern = re.escape(quote).replace(re.escape(GAP), "[^\n]*?")
        if not re.search(pattern, everything):
            missing.append(quote)
    assert not missing


def test_each_row_has_a_symptom_a_cause_and_a_command() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "---" not in line]
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert all(cells), row

"""Build the documentation as a site, strictly, and check it: `make docs`.

    python tests/tools/build_site.py              # docs/ of this tree to build/site
    python tests/tools/build_site.py TREE         # those of another tree, with its zensical.toml

The builder (zensical, strict) refuses dead links and headings in Markdown; site_check.py refuses the rest.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from site_check import check
from site_pages import stage

TREE = Path(__file__).resolve().parent.parent.parent
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def build(tree: Path) -> list[str]:
    """Build the site of this tree into its build/site. Returns what is wrong with it, empty if nothing is."""
    stage(tree, tree / "build" / "docs")
    shutil.rmtree(tree / "build" / "site", ignore_errors=True)
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    found = refusals(COLOURS.sub("", run.stdout + run.stderr)) if run.returncode else []
    site = (tree / "build" / "site").resolve()
    return found + (check(site) if site.is_dir() else ["the builder made no site"])


def refusals(output: str) -> list[str]:
    """Return the builder's warnings, each with its place; its last line if it gave none."""
    warnings = re.findall(r"Warning: (.*)\n\s*╭─\[ (\S+) \]", output)
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line.partition("-")[2].strip() for line in lines if line.startswith("WARNING")]
    return (
        [f"docs/{place}: {words}" for words, place in warnings] + said
        or lines[-1:]
        or ["the builder failed, and said nothing"]
    )


def main(arguments: Sequence[str]) -> int:
    """Build, and print what is wrong. Returns 1 if anything is."""
    tree = Path(arguments[0]).resolve() if arguments else TREE
    found = build(tree)
    for problem in found:
        print(problem)
    if found:
        print(f"{len(found)} problems in the documentation.", file=sys.stderr)
        return 1
    pages = sum(1 for _ in (tree / "build" / "site").rglob("*.html"))
    print(f"build/site/index.html: {pages} pages, no dead link, no orphan")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

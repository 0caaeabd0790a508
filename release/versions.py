"""Where the tree says its version, and the changelog's section of a version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from release.errors import ReleaseError

CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## [Unreleased]"


@dataclass(frozen=True)
class Place:
    """A line of a file that has the version, as a pattern with the version as its group."""

    file: str
    name: str
    pattern: str

    def find(self, tree: Path) -> re.Match[str]:
        """Return the match in this tree's file. Raises ReleaseError if the line is missing."""
        match = re.search(self.pattern, (tree / self.file).read_text(), re.MULTILINE)
        if match is None:
            raise ReleaseError(f"{self.file} has no line for {self.name}: add it, or correct release/versions.py")
        return match


PLACES = (
    Place("csi_driver/__init__.py", "__version__", r'^__version__ = "([^"]*)"$'),
    Place("charts/tidemark/Chart.yaml", "version", r"^version: (\S+)$"),
    Place("charts/tidemark/Chart.yaml", "appVersion", r"^appVersion: (\S+)$"),
)


def parse(text: str) -> str:
    """Return the version if it is three numbers, the form that Python, Helm and Semantic Versioning share."""
    if not re.fullmatch(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}", text):
        raise ReleaseError(f"invalid version {text!r}: give three numbers, e.g. VERSION=0.2.0")
    return text


def section(tree: Path, version: str) -> str | None:
    """Return the changelog's text about a version without its heading; None if there is no such section."""
    text = (tree / CHANGELOG).read_text()
    match = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return match[1].strip() if match else None


def differences(tree: Path, version: str) -> Iterator[str]:
    """Yield what must change in a tree before it can be released as this version."""
    for place in PLACES:
        present = place.find(tree)[1]
        if present != version:
            yield f"{place.file}: {place.name} is {present}, not {version}"
    changes = section(tree, version)
    if changes is None:
        yield f"{CHANGELOG}: there is no section `## [{version}] - DATE`"
    elif not changes:
        yield f"{CHANGELOG}: the section of {version} is empty"


def check(tree: Path, version: str) -> None:
    """Raise ReleaseError unless every file of the tree agrees with the version."""
    found = list(differences(tree, version))
    if found:
        listed = "\n".join(f"  {one}" for one in found)
        raise ReleaseError(
            f"the tree is not version {version}:\n{listed}\n"
            f"Run `make release VERSION={version} ARGS=--prepare`, review the change, commit it, and try again."
        )


def prepare(tree: Path, version: str, day: date) -> list[str]:
    """Set the version in the tree, and date the unreleased changes. Return the names of the changed files."""
    changelog = tree / CHANGELOG
    text = changelog.read_text()
    if section(tree, version) is None:
        changes = re.search(rf"^{re.escape(UNRELEASED)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        if changes is None or not changes[1].strip():
            raise ReleaseError(f"{CHANGELOG} has nothing below {UNRELEASED!r}: say there what changes for users")
        text = text.replace(UNRELEASED, f"{UNRELEASED}\n\n## [{version}] - {day.isoformat()}", 1)
    changed = set()
    if text != changelog.read_text():
        changelog.write_text(text)
        changed.add(CHANGELOG)
    for place in PLACES:
        match = place.find(tree)
        if match[1] != version:
            (tree / place.file).write_text(match.string[: match.start(1)] + version + match.string[match.end(1) :])
            changed.add(place.file)
    return sorted(changed)

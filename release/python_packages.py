"""The wheel and the source archive."""

from __future__ import annotations

import sys
from pathlib import Path

from release.commands import output
from release.source import Commit


def build(tree: Path, commit: Commit, target: Path) -> None:
    """Build wheel and source archive of an exported tree into a directory.

    Hatchling of this environment builds them: an isolated build would take whichever tools PyPI has at that moment.
    It takes times from the commit and sorts what it packs.
    """
    argv = (sys.executable, "-m", "hatchling", "build", "--directory", target, "--target")
    for kind in ("sdist", "wheel"):
        output(*argv, kind, directory=tree, environment=commit.environment)

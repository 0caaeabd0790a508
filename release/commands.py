"""Programs that the release runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from release.errors import ReleaseError


def output(*argv: object, directory: Path | None = None, environment: Mapping[str, str] | None = None) -> bytes:
    """Run a program and return its standard output. Raises ReleaseError with the program's own words."""
    words = [str(word) for word in argv]
    try:
        run = subprocess.run(
            words,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ReleaseError(f"{words[0]} is not installed: `make release` installs what Debian has") from error
    if run.returncode:
        said = (run.stderr + run.stdout).decode(errors="replace").strip()
        raise ReleaseError(f"{' '.join(words)} failed with status {run.returncode}:\n{said[-4000:]}")
    return run.stdout

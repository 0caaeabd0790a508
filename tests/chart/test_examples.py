"""The values that the how-to pages show: each block is one that the chart takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_rig import CHART, Chart, Document, values_in

PAGES = sorted((CHART.parent.parent / "docs" / "how-to").glob("*.md"))

DISKS = [{"name": "fast", "path": "/srv/nvme"}, {"name": "bulk", "path": "/srv/disk"}]
"""The pools that examples of classes speak of."""

EXAMPLES = [(page, values) for page in PAGES for values in values_in(page.read_text())]


def test_the_pages_have_examples() -> None:
    assert len(EXAMPLES) > 12
    assert {page.stem for page, _ in EXAMPLES} >= {"backup-tools", "classes", "fit-your-cluster", "monitoring", "pools"}


@pytest.mark.parametrize(
    ("page", "values"), EXAMPLES, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(EXAMPLES)]
)
def test_an_example_is_taken(chart: Chart, page: Path, values: Document) -> None:
    chart.render({"pools": DISKS, **values})

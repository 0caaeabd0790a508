"""Names of all images that the chart can use, for whoever must fetch them beforehand."""

from __future__ import annotations

from pathlib import Path

import yaml


def image_names(chart: Path) -> list[str]:
    """Return the names with their tags: the driver's image first, then the sidecars and the snapshot-controller."""
    values = yaml.safe_load((chart / "values.yaml").read_text())
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["appVersion"]
    pinned = yaml.safe_load((chart / "versions.yaml").read_text())
    sidecars = [f"{values['sidecars']['registry']}/{name}:{tag}" for name, tag in sorted(pinned.items())]
    return [f"{values['image']['repository']}:{version}", *sidecars]

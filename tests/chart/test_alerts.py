"""Alerts: each fires when it should, and stays quiet near that (promtool; alerts.yaml has the courses)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rig import CHART, EVERYTHING, VALUES, Chart, Document

HERE = Path(__file__).resolve().parent
COURSES: dict[str, Document] = yaml.safe_load((HERE / "alerts.yaml").read_text())
BEFORE: dict[str, Document] = yaml.safe_load((VALUES / "rules_before.yaml").read_text())


def rules_of(chart: Chart, **values: Any) -> Document:
    """The groups of rules as Prometheus gets them."""
    documents = chart.render({"monitoring": {"prometheusRule": {"enabled": True, **values}}})
    (rule,) = documents.of("PrometheusRule")
    return dict(rule["spec"])


def alerts(rules: Document) -> dict[str, Document]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def run(promtool: Path, *argv: object) -> str:
    """Run promtool; its words are the failure's."""
    done = subprocess.run([promtool, *map(str, argv)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def try_course(promtool: Path, directory: Path, rules: Document, name: str, course: Document) -> None:
    """promtool's own test of one alert over one course. Descriptions are left out: `check rules` has read their templates."""
    bare = json.loads(json.dumps(rules))
    for rule in alerts(bare).values():
        rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    (directory / "rules.yaml").write_text(yaml.safe_dump(bare))
    expected = []
    if "labels" in course:
        expected = [{"exp_labels": course["labels"], "exp_annotations": {"summary": course["summary"]}}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in course["series"].items()],
                "alert_rule_test": [{"eval_time": course["at"], "alertname": name, "exp_alerts": expected}],
            }
        ],
    }
    (directory / "test.yaml").write_text(yaml.safe_dump(test))
    run(promtool, "test", "rules", directory / "test.yaml")


def test_every_alert_has_its_courses(chart: Chart, promtool: Path, tmp_path: Path) -> None:
    rules = rules_of(chart)
    assert set(alerts(rules)) == set(COURSES)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    run(promtool, "check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
    for name, rule in alerts(rules).items():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name


@pytest.mark.parametrize("name", COURSES)
def test_it_fires(chart: Chart, promtool: Path, tmp_path: Path, name: str) -> None:
    try_course(promtool, tmp_path, rules_of(chart), name, COURSES[name]["fires"])


@pytest.mark.parametrize("name", COURSES)
def test_it_stays_quiet(chart: Chart, promtool: Path, tmp_path: Path, name: str) -> None:
    assert "labels" not in COURSES[name]["quiet"]
    try_course(promtool, tmp_path, rules_of(chart), name, COURSES[name]["quiet"])


def without_node(course: Document) -> Document:
    """The same of an agent whose series do not have the label yet."""
    made: Document = json.loads(json.dumps(course).replace(', node=\\"n1\\"', ""))
    del made["labels"]["node"]
    made["summary"] = re.sub(r"(?<= )n1\b(?!:)", made["labels"]["instance"], made["summary"])
    return made


@pytest.mark.parametrize("name", [name for name in COURSES if "instance" in COURSES[name]["fires"]["labels"]])
def test_it_fires_for_an_agent_of_the_version_before(chart: Chart, promtool: Path, tmp_path: Path, name: str) -> None:
    course = without_node(COURSES[name]["fires"])
    try_course(promtool, tmp_path, rules_of(chart), name, course)


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("kind", ["fires", "quiet"])
def test_a_copy_of_the_rules_before_works_with_the_label_node(
    promtool: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """The series of an agent have one label more than when users wrote their rules."""
    rule = {"alert": name, **BEFORE[name], "annotations": {"summary": "as before"}}
    course = json.loads(
        json.dumps(COURSES[name][kind]).replace(
            'job=\\"pods\\", instance=\\"10.0.0.1', 'job=\\"x-agent\\", instance=\\"10.0.0.1'
        )
    )
    if "labels" in course:
        del course["labels"]["severity"]
        if " by (" in rule["expr"]:
            del course["labels"]["node"]
        course["summary"] = "as before"
    try_course(promtool, tmp_path, {"groups": [{"name": "before", "rules": [rule]}]}, name, course)


@pytest.mark.parametrize(("budget", "label"), [(1, "1.0"), (0.25, "0.25"), (2.5, "2.5")])
def test_the_budget_of_a_freeze_is_a_bucket_of_the_metric(chart: Chart, budget: float, label: str) -> None:
    from prometheus_client import generate_latest

    from csi_driver.agent.metrics import AgentMetrics
    from csi_driver.backends.base import SnapshotTimings

    telemetry = AgentMetrics("n1")
    telemetry.snapshot_taken("fast", SnapshotTimings(frozen=0.01, cloned=0.01))
    assert (
        f'tidemark_freeze_seconds_bucket{{le="{label}",node="n1",pool="fast"}}'
        in generate_latest(telemetry.registry).decode()
    )
    expression = alerts(rules_of(chart, freezeBudgetSeconds=budget))["TidemarkFreezeOverBudget"]["expr"]
    assert expression.count(f'le="{label}"') == 2


def test_thresholds_are_values(chart: Chart) -> None:
    found = alerts(rules_of(chart, poolUsedShare=0.5, certificateDays=3, scheduleLateSeconds=60))
    assert found["TidemarkPoolNearlyFull"]["expr"].endswith("> 0.5")
    assert found["TidemarkCertificateNearEnd"]["expr"].endswith("< 3 * 86400")
    assert found["TidemarkScheduleLate"]["expr"].endswith("> 60")


def test_the_dashboard_arrives_whole(chart: Chart) -> None:
    documents = chart.render({"monitoring": {"dashboard": {"enabled": True}}})
    data = documents.one("ConfigMap", "tidemark-dashboard")["data"]["tidemark.json"]
    assert json.loads(data) == json.loads((CHART / "files" / "dashboard.json").read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in json.loads(data)["panels"]]
    assert len(set(places)) == len(places)


def test_the_monitor_scrapes_agents_and_controllers(chart: Chart) -> None:
    documents = chart.render({"monitoring": {"serviceMonitor": {"enabled": True}}})
    (monitor,) = documents.of("ServiceMonitor")
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    scraped = {
        service["metadata"]["name"]
        for service in documents.of("Service")
        if service["metadata"]["labels"][expression["key"]] in expression["values"]
        and {port["name"] for port in service["spec"]["ports"]} == {"http"}
    }
    assert scraped == {"tidemark-agent", "tidemark-controller"}


def test_the_sidecars_are_scraped_where_values_say_so(chart: Chart) -> None:
    monitor = {"enabled": True, "sidecars": True, "relabelings": [{"targetLabel": "cluster", "replacement": "one"}]}
    values = {"monitoring": {"serviceMonitor": {**monitor, "scrapeTimeout": "10s", "metricRelabelings": [{"a": "b"}]}}}
    for serves, sidecars in ((EVERYTHING, ["provisioner", "resizer", "snapshotter"]), ((), ["provisioner", "resizer"])):
        documents = chart.render(values, serves=serves)
        (made,) = documents.of("ServiceMonitor")
        endpoints = {one["port"]: one for one in made["spec"]["endpoints"]}
        assert list(endpoints) == ["http", *sidecars]
        for one in endpoints.values():
            assert [target["targetLabel"] for target in one["relabelings"]] == ["instance", "cluster"]
            assert (one["scrapeTimeout"], one["metricRelabelings"]) == ("10s", [{"a": "b"}])
        service = documents.one("Service", "tidemark-controller")["spec"]
        pod = documents.one("Deployment", "tidemark-controller")["spec"]["template"]["spec"]
        offered = {(own["name"], own["containerPort"]) for one in pod["containers"] for own in one["ports"]}
        scraped = {(port["targetPort"], port["port"]) for port in service["ports"] if port["name"] != "http"}
        assert scraped == offered
        assert {port["name"] for port in service["ports"]} == set(endpoints)
        assert len(documents.one("Service", "tidemark-agent")["spec"]["ports"]) == 1


def test_what_others_collect_lies_where_they_look(chart: Chart) -> None:
    elsewhere = {"enabled": True, "namespace": "monitoring"}
    documents = chart.render(
        {
            "monitoring": {
                "serviceAnnotations": {"prometheus.io/scrape": "true"},
                "serviceMonitor": elsewhere,
                "prometheusRule": elsewhere,
                "dashboard": {**elsewhere, "folder": "Storage", "annotations": {"example.com/note": "ours"}},
            }
        }
    )
    dashboard = documents.one("ConfigMap", "tidemark-dashboard")["metadata"]
    assert dashboard["annotations"] == {"grafana_folder": "Storage", "example.com/note": "ours"}
    assert dashboard["labels"]["grafana_dashboard"] == "1"
    for kind in ("ServiceMonitor", "PrometheusRule", "ConfigMap"):
        (made,) = documents.of(kind)
        assert made["metadata"]["namespace"] == "monitoring"
    (monitor,) = documents.of("ServiceMonitor")
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["tidemark"]}
    for component in ("agent", "controller"):
        service = documents.one("Service", f"tidemark-{component}")["metadata"]
        assert service["annotations"] == {"prometheus.io/scrape": "true"}
    (plain,) = chart.render({"monitoring": {"dashboard": {"enabled": True}}}).of("ConfigMap")
    assert (plain["metadata"]["namespace"], plain["metadata"].get("annotations")) == ("tidemark", None)


def test_each_alert_links_to_its_page(chart: Chart) -> None:
    pages = {page.stem for page in (CHART.parent.parent / "docs" / "how-to" / "runbooks").glob("*.md")}
    found = alerts(rules_of(chart))
    assert set(found) == pages  # and no page is of an alert that is gone
    for name, rule in found.items():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/how-to/runbooks/{name}.md")
    own = alerts(rules_of(chart, runbookUrl="https://docs.example.com/ALERT.html"))
    assert own["TidemarkPoolFull"]["annotations"]["runbook_url"] == "https://docs.example.com/TidemarkPoolFull.html"
    for rule in alerts(rules_of(chart, runbookUrl="")).values():
        assert "runbook_url" not in rule["annotations"]

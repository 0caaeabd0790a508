"""The dashboard is the generated one and names no release; what the page on monitoring shows, Prometheus takes."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from pathlib import Path

import yaml
from chart_rig import Chart
from tools.dashboard import FILE, written

PAGE = FILE.parent.parent.parent.parent / "docs" / "how-to" / "monitoring.md"


def test_it_is_what_the_generator_writes() -> None:
    assert FILE.read_text() == written(), "run: python tests/tools/dashboard.py"


def test_it_names_no_release_job_or_pod(chart: Chart) -> None:
    dashboard = json.loads(FILE.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [one["definition"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    (rules,) = chart.render({"monitoring": {"prometheusRule": {"enabled": True}}}).of("PrometheusRule")
    queries += [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert len(queries) > 40
    for query in queries:
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)) & {"job", "pod", "instance", "service"} == set()
    names = {one["name"] for one in dashboard["templating"]["list"]}
    assert names >= {"node", "pool", "claim"}
    for query in queries:
        assert set(re.findall(r"\$([a-z]\w*)", query)) <= names


def test_the_places_of_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(FILE.read_text())["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]


def test_prometheus_takes_the_configuration_of_the_page(promtool: Path, tmp_path: Path) -> None:
    block = re.search(r"^    scrape_configs:\n(?:     .*\n)+", PAGE.read_text(), re.MULTILINE)
    assert block is not None
    config = yaml.safe_load(textwrap.dedent(block[0]))
    (job,) = config["scrape_configs"]
    assert job["honor_labels"] is True
    # Debian's Prometheus is built without the discovery of Kubernetes.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["tidemark"]}}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    checked = [promtool, "check", "config", tmp_path / "prometheus.yaml"]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

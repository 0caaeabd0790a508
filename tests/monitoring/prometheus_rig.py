"""Debian's Prometheus over series that were recorded: backfilled, served, asked by its HTTP API."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from support.ports import free_port

MINUTES = 70
"""How long the series are, one sample a minute: longer than the longest window of a query."""
CHANGE = 3
"""So many minutes before the end, the second scrape takes the place of the first: within the shortest window."""


@dataclass(frozen=True)
class Recording:
    """Two scrapes of one process, and something happened in between. `target`: the labels by which Prometheus knows it."""

    target: Mapping[str, str]
    before: str
    after: str

    def samples(self, text: str) -> Iterator[tuple[str, dict[str, str], float]]:
        """As Prometheus keeps them with `honor_labels: true`: a label of a series goes before the target's."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                assert isinstance(sample, Sample)
                yield sample.name, {**self.target, **sample.labels}, sample.value


def openmetrics(recordings: Iterable[Recording], end: int) -> str:
    """The series as promtool backfills them."""
    lines = []
    scrapes = [
        (list(recording.samples(recording.before)), list(recording.samples(recording.after)))
        for recording in recordings
    ]
    for minute in range(-MINUTES, 1):
        for before, after in scrapes:
            for name, labels, value in before if minute < -CHANGE else after:
                shown = ",".join(f"{key}={json.dumps(text)}" for key, text in sorted(labels.items()))
                lines.append(f"{name}{{{shown}}} {value} {end + 60 * minute}")
    return "\n".join([*lines, "# EOF", ""])


class Prometheus:
    """A server that is asked about one moment, the end of the recordings."""

    def __init__(self, address: str, end: int) -> None:
        self._address = address
        self._end = end

    def ask(self, path: str, **parameters: object) -> Any:
        """The data of an answer of the API; a refusal fails the test with Prometheus's own words."""
        data = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self._address}/api/v1/{path}?{data}", timeout=30) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def rows(self, expression: str) -> list[dict[str, str]]:
        """The labels of all results that are numbers."""
        result = self.ask("query", query=expression, time=self._end)["result"]
        return [row["metric"] for row in result if math.isfinite(float(row["value"][1]))]

    def values(self, label: str, selector: str) -> list[str]:
        """What Grafana's label_values() gives."""
        return list(self.ask(f"label/{label}/values", **{"match[]": selector}))


@contextmanager
def serving(
    prometheus: Path, promtool: Path, directory: Path, recordings: Iterable[Recording], rules: str
) -> Iterator[Prometheus]:
    """Run Prometheus over these recordings, with the chart's rules loaded."""
    end = int(time.time())
    (directory / "series").write_text(openmetrics(recordings, end))
    (directory / "rules.yaml").write_text(rules)
    (directory / "prometheus.yaml").write_text("rule_files: [rules.yaml]\n")
    data = directory / "data"
    backfill = [promtool, "tsdb", "create-blocks-from", "openmetrics", directory / "series", data]
    done = subprocess.run(backfill, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    port = free_port()
    argv = [prometheus, f"--config.file={directory}/prometheus.yaml", f"--storage.tsdb.path={data}"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=10y"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, (directory / "log").read_text()
            try:
                with urllib.request.urlopen(f"{address}/-/ready", timeout=5):
                    break
            except OSError:
                time.sleep(0.05)
        else:
            raise AssertionError((directory / "log").read_text())
        yield Prometheus(address, end)
    finally:
        process.terminate()
        process.wait(30)

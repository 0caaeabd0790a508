"""Writes charts/tidemark/files/dashboard.json, the dashboard for Grafana.

    python tests/tools/dashboard.py

No query names a release, a job or a pod; only an agent has tidemark_loop_devices, which tells its calls from those of a
controller. tests/monitoring asks a real Prometheus each query, and tests/chart checks that the file is what this would write.

Plain dictionaries rather than grafana-foundation-sdk: that gives its targets no refId, so that a panel with two queries needs
them by hand all the same, it adds a dozen empty options to each panel, and its version has the time of its build as its epoch, so
that only an exact pin keeps the file from changing with every build of theirs. Without it, this is as short.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
FILE = Path(__file__).resolve().parent.parent.parent / "charts" / "tidemark" / "files" / "dashboard.json"

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NODE = '{node=~"$node"}'
POOL = '{node=~"$node", pool=~"$pool"}'
VOLUME = '{node=~"$node", pool=~"$pool", namespace=~"$namespace", claim=~"$claim"}'
FAILED = '{node=~"$node", code!~"OK|CANCELLED"}'
NAMESPACE = '{namespace=~"$namespace"}'
OF_AGENTS = "and on (job, instance) tidemark_loop_devices"
WIDTH = 24

BY_POOL = "{{node}} {{pool}}"
Query = tuple[str, str]


def variable(name: str, label: str, selector: str, metric: str = "tidemark_volume_size_bytes") -> Json:
    """One variable with the values of a label; All is everything, also what does not have the label."""
    query = f"label_values({metric}{selector}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


VARIABLES: list[Json] = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    variable("node", "Node", "", "tidemark_pool_total_bytes"),
    variable("pool", "Pool", NODE, "tidemark_pool_total_bytes"),
    variable("namespace", "Namespace", POOL),
    variable("claim", "Claim", f"{POOL[:-1]}, {NAMESPACE[1:]}"),
]


def panel(kind: str, width: int, title: str, unit: str, *queries: Query, text: str = "", **defaults: object) -> Json:
    """One panel without its place. A query is an expression and its legend."""
    instant = {"instant": True, "range": False} if kind != "timeseries" else {}
    made: Json = {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"h": 4 if kind == "stat" else 8, "w": width},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, **defaults}, "overrides": []},
        "targets": [
            {"refId": letter, "expr": expression, "legendFormat": legend, **instant}
            for letter, (expression, legend) in zip(string.ascii_uppercase, queries, strict=False)
        ],
    }
    return {**made, "description": text} if text else made


def graph(width: int, title: str, unit: str, *queries: Query, text: str = "", **defaults: object) -> Json:
    """What changed with time."""
    return panel("timeseries", width, title, unit, *queries, text=text, **defaults)


def stat(title: str, unit: str, *queries: Query, text: str = "", width: int = 3) -> Json:
    """The present value, large."""
    return panel("stat", width, title, unit, *queries, text=text)


def named(expression: str) -> str:
    """Add a label `name` for people: NAMESPACE/CLAIM where a volume has a PVC, else its id."""
    joined = f'label_join({expression}, "name", "/", "namespace", "claim", "volume")'
    return f'label_replace({joined}, "name", "$1$2", "name", "(.+/.+)/[^/]+|//(.+)")'


def largest(expression: str) -> Query:
    """The ten largest, by name."""
    return named(f"topk(10, {expression})"), "{{name}}"


def quantile(metric: str, selector: str, by: str, window: str, more: str = "") -> str:
    """The 99th percentile of a histogram."""
    return f"histogram_quantile(0.99, sum by ({by}, le) (rate({metric}_bucket{selector}[{window}]){more}))"


def table(title: str, columns: Sequence[tuple[str, str, str]], text: str) -> Json:
    """One line for each volume; a column has a title, a metric and a unit."""
    labels = "node, pool, namespace, claim, volume"
    made = panel(
        "table",
        WIDTH,
        title,
        "short",
        *((f"sum by ({labels}) ({metric}{VOLUME})", "") for _, metric, _ in columns),
        text=text,
    )
    for target in made["targets"]:
        target["format"] = "table"
    values = [f"Value #{target['refId']}" for target in made["targets"]]
    made["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": value},
            "properties": [{"id": "displayName", "value": name}, {"id": "unit", "value": unit}],
        }
        for value, (name, _, unit) in zip(values, columns, strict=True)
    ]
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}}},
    ]
    made["options"] = {"sortBy": [{"displayName": columns[1][0], "desc": True}], "footer": {"show": False}}
    return made


ROWS: list[tuple[str, list[Json]]] = [
    (
        "Now",
        [
            stat(
                "Agents that answer",
                "short",
                (f"sum(max by (node) (tidemark_agent_reachable{NODE}))", "answer"),
                (f"count(max by (node) (tidemark_agent_reachable{NODE}))", "all"),
                text="As reported by the controllers.",
            ),
            stat("Volumes", "short", (f"sum(tidemark_pool_volumes{POOL})", "")),
            stat("Snapshots", "short", (f"sum(tidemark_pool_snapshots{POOL})", ""), text="Members of groups count."),
            stat(
                "Volumes in trouble",
                "short",
                (f"count(max by (volume) (tidemark_volume_unwell{VOLUME})) or vector(0)", ""),
                text="Their file systems have errors, or accept no writes.",
            ),
            stat("Orphans", "short", ("max(tidemark_orphan_volumes)", ""), text="Volumes without a PersistentVolume."),
            stat(
                "Hanging in the kernel",
                "short",
                (f"sum(tidemark_children_written_off{NODE})", ""),
                text="Helper processes of agents.",
            ),
            stat(
                "Certificates expire in",
                "s",
                ("min(tidemark_certificate_expiry_timestamp_seconds) - time()", ""),
                text="The first to expire.",
            ),
            stat(
                "Versions",
                "short",
                ("count by (version) (tidemark_build_info)", "{{version}}"),
                text="Agents and controllers.",
            ),
        ],
    ),
    (
        "Pools",
        [
            graph(
                6,
                "Used",
                "percentunit",
                (f"tidemark_pool_used_bytes{POOL} / tidemark_pool_total_bytes{POOL}", BY_POOL),
                text="Share of the pool's file system.",
            ),
            graph(
                6,
                "Overcommit",
                "percentunit",
                (f"tidemark_pool_committed_bytes{POOL} / tidemark_pool_total_bytes{POOL}", BY_POOL),
                text="Sum of the sizes of all volumes, as a share of the pool.",
            ),
            graph(6, "Largest volume that may be made", "bytes", (f"tidemark_pool_available_bytes{POOL}", BY_POOL)),
            graph(
                6,
                "Full",
                "short",
                (f"tidemark_pool_full{POOL}", BY_POOL),
                text="1: writes to thin volumes fail, or soon will.",
                max=1,
            ),
        ],
    ),
    (
        "Volumes",
        [
            graph(
                8,
                "Space taken: the ten largest",
                "bytes",
                largest(f"tidemark_volume_used_bytes{VOLUME}"),
                text="What a volume has allocated in its pool; blocks that it shares with snapshots and clones count.",
            ),
            graph(
                8,
                "Growth in an hour: the ten largest",
                "bytes",
                largest(f"delta(tidemark_volume_used_bytes{VOLUME}[1h])"),
            ),
            graph(8, "Snapshots: the ten with most", "short", largest(f"tidemark_volume_snapshots{VOLUME}")),
            table(
                "Volumes",
                [
                    ("Size", "tidemark_volume_size_bytes", "bytes"),
                    ("Taken", "tidemark_volume_used_bytes", "bytes"),
                    ("Deleting it frees", "tidemark_volume_exclusive_bytes", "bytes"),
                    ("Snapshots", "tidemark_volume_snapshots", "short"),
                ],
                "The largest volumes of each node (agent.metricsVolumes).",
            ),
            stat(
                "Volumes that are not listed",
                "short",
                (f"sum(tidemark_pool_volumes_not_shown{POOL})", ""),
                text="A node lists as many as agent.metricsVolumes says.",
                width=6,
            ),
        ],
    ),
    (
        "Snapshots",
        [
            graph(
                8,
                "Time frozen, 99th percentile",
                "s",
                (quantile("tidemark_freeze_seconds", POOL, "node, pool", "15m"), BY_POOL),
                text="How long a snapshot keeps file systems frozen.",
            ),
            graph(
                8,
                "Time to clone, 99th percentile",
                "s",
                (quantile("tidemark_snapshot_clone_duration_seconds", POOL, "node, pool", "15m"), BY_POOL),
            ),
            graph(
                8,
                "Extents",
                "short",
                (f"tidemark_pool_extents{POOL}", BY_POOL),
                text="Clones take longer the more there are.",
            ),
        ],
    ),
    (
        "Calls",
        [
            graph(
                12,
                "Failed calls of agents, per second",
                "reqps",
                (
                    f"sum by (method, code) (rate(tidemark_calls_total{FAILED}[5m]) {OF_AGENTS})",
                    "{{method}} {{code}}",
                ),
            ),
            graph(
                12,
                "Duration of calls of agents, 99th percentile",
                "s",
                (quantile("tidemark_call_seconds", NODE, "method", "5m", f" {OF_AGENTS}"), "{{method}}"),
            ),
        ],
    ),
    (
        "Schedules and rollbacks",
        [
            graph(
                8,
                "Overdue",
                "s",
                (
                    f"max by (namespace, schedule) (tidemark_schedule_late_seconds{NAMESPACE})",
                    "{{namespace}}/{{schedule}}",
                ),
            ),
            graph(
                8,
                "Scheduled snapshots in an hour",
                "short",
                (f"sum by (result) (increase(tidemark_schedule_snapshots_total{NAMESPACE}[1h]))", "{{result}}"),
            ),
            graph(8, "Rollbacks", "short", ("max by (phase) (tidemark_rollbacks)", "{{phase}}")),
        ],
    ),
]


def placed(rows: Iterable[tuple[str, list[Json]]]) -> Iterable[Json]:
    """Yield all panels with their places: from left to right, and below what is above."""
    top = number = 0
    for title, panels in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        }
        top += 1
        left = height = 0
        for one in panels:
            place = one["gridPos"]
            if left + place["w"] > WIDTH:
                left, top, height = 0, top + height, 0
            number += 1
            yield {"id": number, **one, "gridPos": {**place, "x": left, "y": top}}
            left, height = left + place["w"], max(height, place["h"])
        top += height


def dashboard() -> Json:
    """The whole dashboard, as Grafana imports it."""
    return {
        "title": "Tidemark",
        "uid": "tidemark",
        "tags": ["csi", "storage"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "panels": list(placed(ROWS)),
    }


def written() -> str:
    """The content of the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())

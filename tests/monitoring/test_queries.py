"""The dashboard and the alerts, asked of Debian's Prometheus over what real agents and a real controller say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_rig import Prometheus
from recordings import CLAIMS, PLACES
from tools.dashboard import FILE

# One group: what is recorded, and the server, are made once for a process.
pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=20), pytest.mark.xdist_group("prometheus")]

DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
VARIABLES = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
ALL = {one["name"]: one["allValue"] for one in VARIABLES}
EXPECTED = {
    "node": {place.node for place in PLACES},
    "pool": {place.pool for place in PLACES},
    "namespace": {CLAIMS},
    "claim": {place.claim for place in PLACES},
}


def filled(query: str, values: dict[str, str]) -> str:
    """A query as Grafana sends it."""
    for name, value in values.items():
        query = query.replace(f"${name}", value)
    assert "$" not in re.sub(r'"[^"]*\$\d[^"]*"', "", query), query
    return query


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def test_the_variables_have_what_there_is(prometheus: Prometheus) -> None:
    assert {one["name"] for one in VARIABLES} == EXPECTED.keys()
    for one in VARIABLES:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"]["query"])
        assert match is not None
        assert set(prometheus.values(match[2], filled(match[1], ALL))) - {""} == EXPECTED[one["name"]]


@pytest.mark.parametrize("query", [pytest.param(query, id=title) for title, query in queries()])
def test_each_query_has_rows_whatever_is_chosen(prometheus: Prometheus, query: str) -> None:
    everything = prometheus.rows(filled(query, ALL))
    assert everything
    for place in PLACES:
        one = {"node": place.node, "pool": place.pool, "namespace": CLAIMS, "claim": place.claim}
        for name in [*one, None]:
            values = one if name is None else {**ALL, name: one[name]}
            rows = prometheus.rows(filled(query, values))
            assert rows, values
            if "$node" in query and (name is None or name == "node"):
                assert {row["node"] for row in rows if "node" in row} <= {place.node}
            if "$claim" in query and (name is None or name == "claim"):
                assert {row["claim"] for row in rows if "claim" in row} <= {place.claim}


def test_a_volume_has_the_name_of_its_claim_or_its_id(prometheus: Prometheus) -> None:
    query = next(query for title, query in queries() if title.startswith("Space taken"))
    names = {row["name"] for row in prometheus.rows(filled(query, ALL))}
    assert {f"{CLAIMS}/{place.claim}" for place in PLACES} <= names
    others = names - {f"{CLAIMS}/{place.claim}" for place in PLACES}
    assert {name.rpartition(":")[0] for name in others} == {f"{place.node}:{place.pool}" for place in PLACES}


def test_alerts_are_quiet_but_for_what_happened(prometheus: Prometheus, rules: dict[str, str]) -> None:
    """Snapshots of a volume that does not exist were refused on both nodes, and nothing makes those of the schedule ready."""
    firing = {name: rows for name, expression in rules.items() if (rows := prometheus.rows(expression))}
    assert set(firing) == {"TidemarkSnapshotFailed", "TidemarkScheduleLate"}
    assert {(row["node"], row["code"]) for row in firing["TidemarkSnapshotFailed"]} == {
        (place.node, "NOT_FOUND") for place in PLACES
    }
    loaded = prometheus.ask("rules", type="alert")["groups"]
    assert {rule["name"] for group in loaded for rule in group["rules"]} == set(rules)

"""Numbers: written out from seven digits on too, and the same whether a file, `--set` or a string of digits brings them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart_rig import CHART, Chart, Document
from chart_rig import VALUES as SETS

VALUES: Document = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text())

LARGE = 1234567
"""Seven digits: Go prints a float64 of that size as 1.234567e+06."""

BOUNDED: dict[str, Any] = {
    "agent.overcommit": 1.5,
    "agent.freezeDeadline": 2.5,
    "sidecars.logLevel": 9,
    "webhook.timeoutSeconds": 30,
    "monitoring.prometheusRule.poolUsedShare": 0.75,
    "monitoring.prometheusRule.freezeBudgetSeconds": 0.25,
}
"""Numbers that cannot be that large, and fractions."""

ON: dict[str, Any] = {"snapshotController.install": True, "monitoring.prometheusRule.enabled": True}
"""What must be on for all of them to be rendered."""


def numbers(node: Document, path: str = "") -> Iterator[str]:
    """The paths of all values that are numbers."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}"


def nested(flat: Document) -> Document:
    """Values by their paths as a values file has them."""
    made: Document = {}
    for path, value in flat.items():
        *above, last = path.split(".")
        here = made
        for key in above:
            here = here.setdefault(key, {})
        here[last] = value
    return made


GIVEN = {path: BOUNDED.get(path, LARGE) for path in numbers(VALUES)}


def env(chart: Chart, **options: Any) -> dict[str, Any]:
    """The agent's variables."""
    return {one["name"]: one.get("value") for one in chart.render(**options).container("agent")["env"]}


def test_a_large_number_of_a_file_is_written_out(chart: Chart) -> None:
    texts = {"agent.maxUnavailable": LARGE, "agent.reserve": LARGE, "poolImage.size": LARGE * 1000, "image.tag": LARGE}
    values = nested({**GIVEN, **ON, **texts, "agent.overcommit": LARGE, "agent.freezeDeadline": LARGE})
    text = chart.text(values)
    assert re.findall(r"\d[eE]\+\d+", text) == []
    assert f"< {LARGE} * 86400" in text
    assert f"image: ghcr.io/tidemark-dev/tidemark-csi:{LARGE}\n" in text
    given = env(chart, values=values)
    for name in ("OVERCOMMIT", "RESERVE", "MAX_SNAPSHOTS", "FREEZE_DEADLINE", "METRICS_VOLUMES"):
        assert given[f"TIDEMARK_{name}"] == str(LARGE)
    assert given["TIDEMARK_POOL_SIZE"] == str(LARGE * 1000)
    documents = chart.render(values)
    assert documents.one("Deployment", "tidemark-controller")["spec"]["replicas"] == LARGE
    assert documents.one("PodDisruptionBudget", "tidemark-controller")["spec"]["maxUnavailable"] == LARGE
    assert documents.one("DaemonSet", "tidemark-agent")["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxUnavailable": LARGE
    }
    assert f"{LARGE} controllers" in chart.notes(values)


def test_a_number_is_the_same_whatever_brings_it(chart: Chart) -> None:
    """`--set` hands over a fraction as a string, and so do tools that know nothing but strings."""
    assert len(GIVEN) > 15
    of_a_file = chart.render(nested({**GIVEN, **ON}))
    assert chart.render(nested(ON), sets=[f"{path}={value}" for path, value in GIVEN.items()]) == of_a_file
    assert chart.render(nested(ON), strings=[f"{path}={value}" for path, value in GIVEN.items()]) == of_a_file


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("agent.overcommit=1.5", "OVERCOMMIT", "1.5"),
        ("agent.reserve=0", "RESERVE", "0"),
        ("poolImage.size=21474836480", "POOL_SIZE", "21474836480"),
    ],
)
def test_what_set_hands_over_arrives(chart: Chart, given: str, name: str, value: str) -> None:
    assert env(chart, sets=[given])[f"TIDEMARK_{name}"] == value


def test_no_number_of_the_schema_refuses_its_digits_as_a_string() -> None:
    """But those within what is a pod's own language, where the API would."""

    def walk(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            kinds = schema.get("type")  # of a schema, or a value that is called so
            kinds = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
            if kinds & {"number", "integer"} and "string" not in kinds:
                yield path
            for key, value in schema.items():
                yield from walk(value, f"{path}.{key}")

    assert {path.rpartition(".")[2] for path in walk(SCHEMA, "")} == {"tolerationSeconds"}


NAMES = {"name", "namespace", "priorityClassName", "secretName", "serviceAccountName"}
"""Keys of names; a definition has some of them as keys of its schema."""


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values that hold no others, each with the key that it is below."""
    if isinstance(node, dict):
        for below, value in node.items():
            yield from leaves(value, str(below))
    elif isinstance(node, list):
        for one in node:
            yield from leaves(one, key)
    else:
        yield key, node


def test_names_of_digits_stay_names(chart: Chart) -> None:
    """A name or a label that YAML takes for a number is refused by helm or the API."""
    values: Document = yaml.safe_load((SETS / "everything.yaml").read_text())
    values |= {
        "fullnameOverride": "2026",
        "imagePullSecrets": [{"name": "2026"}],
        "tls": {
            "controllerSecret": "2026",
            "agentSecret": "2026",
            "certManager": {"enabled": True, "issuer": {"name": "2026"}},
        },
        "storageClasses": {"1000": {}},
        "snapshots": {"classes": {"2026": {}}},
        "nodeGroups": {"1": {"nodes": {"label": "example.com/disks", "values": ["1"]}}},
    }
    for section in ("agent", "controller"):
        values[section]["priorityClassName"] = "2026"
    values["monitoring"]["dashboard"]["namespace"] = "2026"
    documents = chart.render(values, release="2026", namespace="2026")
    named = [(key, value) for document in documents for key, value in leaves(document) if key in NAMES]
    assert {key for key, _ in named} == NAMES
    assert [(key, value) for key, value in named if not isinstance(value, str)] == []
    assert [key for document in documents for key, value in leaves(document) if value == 2026] == []
    assert {document["metadata"].get("namespace", "2026") for document in documents} == {"2026"}
    assert {one["spec"]["issuerRef"]["name"] for one in documents.of("Certificate")} == {"2026"}
    assert documents.names("ServiceMonitor") == documents.names("PrometheusRule") == {"2026"}
    assert documents.names("StorageClass") == {"tidemark", "1000"}
    assert documents.names("VolumeSnapshotClass") == {"tidemark", "2026"}
    for document in documents:
        for label, value in document["metadata"]["labels"].items():
            assert isinstance(value, str), (document["metadata"]["name"], label)
    for agents in documents.of("DaemonSet"):
        assert all(isinstance(value, str) for value in agents["spec"]["selector"]["matchLabels"].values())

"""The chart's rights against what the API servers have seen since the clusters are up: nothing was missing, nothing is idle.

Last by its name, and in a call of its own where scenarios run side by side: it judges the traces of all the others.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from rig.cluster import NAMESPACE, Cluster
from rig.paths import AUDIT, CHART, RAN, STATE, state_of

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.alone

OURS = f"system:serviceaccount:{NAMESPACE}:tidemark-"
BINDINGS = {"clusterrolebindings", "rolebindings"}
SETTLING = timedelta(seconds=30)
"""What an authorizer may take to hear of a binding, and a controller to try again."""

Use = tuple[str, str, str]
"""Verb, API group, resource with its subresource."""


def clusters() -> list[Path]:
    """The state directories of the clusters that are up."""
    return [state for state in map(state_of, range(8)) if (state / AUDIT.relative_to(STATE)).exists()]


def events(state: Path) -> Iterator[dict[str, Any]]:
    """Every answered request that a cluster's API server has noted."""
    with (state / AUDIT.relative_to(STATE)).open() as log:
        for line in log:
            if not line.endswith("\n"):
                return  # it is being written
            event = json.loads(line)
            if event.get("stage") == "ResponseComplete" and "objectRef" in event:
                yield event


def use_of(event: dict[str, Any]) -> Use:
    what = event["objectRef"]
    resource = what.get("resource", "")
    if what.get("subresource"):
        resource += f"/{what['subresource']}"
    return event["verb"], what.get("apiGroup", ""), resource


def resources(place: str, key: str = "") -> set[tuple[str, str]]:
    """Groups and resources of all rules of the chart for a `place`, cluster or namespace; those that have a `key`."""
    parts = yaml.safe_load((CHART / "files" / "rights.yaml").read_text()).values()
    rules = [rule for part in parts for rule in part.get(place) or () if not key or rule.get(key)]
    return {(group, resource) for rule in rules for group in rule["apiGroups"] for resource in rule["resources"]}


PLACED = resources("namespace")
"""What there is a right to in one namespace alone, for some."""
NAMED = resources("cluster", "resourceNames") | resources("namespace", "resourceNames")
"""What there is a right to by its name alone, for some."""


def right_of(event: dict[str, Any]) -> tuple[str, ...]:
    """The right that a request needs: who does what, with what, where; and with which one, where rights are about that."""
    what, use = event["objectRef"], use_of(event)
    namespace = what.get("namespace", "") if use[1:] in PLACED else ""
    # What is created has no name yet where it is refused, and no right is about that one.
    name = what.get("name", "") if use[1:] in NAMED and event["verb"] != "create" else ""
    return event["user"]["username"], *use, namespace, name


def at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["stageTimestamp"])


def without_rights(state: Path) -> list[tuple[datetime, datetime]]:
    """When an uninstallation had taken the bindings away, under pods that were still ending."""
    found, gone = [], None
    for event in events(state):
        what = event["objectRef"]
        name = what.get("name", "")
        if what.get("resource") not in BINDINGS or not name.startswith("tidemark-") or "uninstall" in name:
            continue
        if event["verb"] == "delete":
            # It is in force before it is answered.
            gone = gone or datetime.fromisoformat(event["requestReceivedTimestamp"])
        elif event["verb"] == "create" and gone:
            found.append((gone, at(event) + SETTLING))
            gone = None
    return found


def test_nothing_was_refused(cluster: Cluster) -> None:
    assert [told for state in clusters() for told in refused_on(state)] == []


def refused_on(state: Path) -> list[str]:
    """What a cluster's API server refused to us for want of a right.

    One that has just been started refuses what it has not read the bindings for yet, however long that takes: a right that
    was granted at any time is there.
    """
    gaps = without_rights(state)
    granted = {right_of(event) for event in events(state) if event.get("responseStatus", {}).get("code", 500) < 300}
    return [
        f"{use_of(event)}: {event['responseStatus'].get('message', '')}"
        for event in events(state)
        if event["user"]["username"].startswith(OURS)
        and event["responseStatus"].get("code") == 403
        and "being terminated" not in event["responseStatus"].get("message", "")  # a namespace that goes, not a right
        and right_of(event) not in granted
        and not any(begin <= at(event) <= end for begin, end in gaps)
    ]


def test_every_right_of_the_controller_was_used(cluster: Cluster) -> None:
    """The sidecars' rights are those that their own projects ask for: what is looked at here is ours."""
    ran = {name for state in clusters() for name in (state / RAN.name).read_text().split()}
    missing = {path.name for path in HERE.glob("test_*.py")} - ran - {Path(__file__).name}
    if missing:
        pytest.skip(f"needs the traces of all scenarios: {', '.join(sorted(missing))} did not run")
    used = {
        use_of(event)
        for state in clusters()
        for event in events(state)
        if event["user"]["username"] == f"{OURS}controller" and not event.get("userAgent", "").startswith("csi-")
    }
    rights = yaml.safe_load((CHART / "files" / "rights.yaml").read_text())["controller"]
    allowed = {
        (verb, group, resource)
        for rule in (*rights["cluster"], *rights["namespace"])
        if rule.get("when") != "givenCertificates"
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed - used == set(), "rights that no scenario needs: take them away, or add the scenario"

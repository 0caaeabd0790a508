"""The chart's rights against what the API server has seen since the cluster is up: nothing was missing, nothing is idle.

Last by its name: it judges the traces of all the other scenarios.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from rig.cluster import NAMESPACE, Cluster
from rig.paths import AUDIT, CHART

HERE = Path(__file__).resolve().parent
OURS = f"system:serviceaccount:{NAMESPACE}:tidemark-"
BINDINGS = {"clusterrolebindings", "rolebindings"}
SETTLING = timedelta(seconds=30)
"""What an authorizer may take to hear of a binding, and a controller to try again."""

Use = tuple[str, str, str]
"""Verb, API group, resource with its subresource."""


def events() -> Iterator[dict[str, Any]]:
    """Every answered request that the API server has noted."""
    with AUDIT.open() as log:
        for line in log:
            event = json.loads(line)
            if event.get("stage") == "ResponseComplete" and "objectRef" in event:
                yield event


def use_of(event: dict[str, Any]) -> Use:
    what = event["objectRef"]
    resource = what.get("resource", "")
    if what.get("subresource"):
        resource += f"/{what['subresource']}"
    return event["verb"], what.get("apiGroup", ""), resource


def request_of(event: dict[str, Any]) -> tuple[str, ...]:
    """Who wanted what of which object. What is created has no name yet where it is refused, and no right is about that one."""
    what = event["objectRef"]
    name = "" if event["verb"] == "create" else what.get("name", "")
    return event["user"]["username"], *use_of(event), what.get("namespace", ""), name


def at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["stageTimestamp"])


def without_rights() -> list[tuple[datetime, datetime]]:
    """When an uninstallation had taken the bindings away, under pods that were still ending."""
    found, gone = [], None
    for event in events():
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
    gaps = without_rights()
    # An API server that has just been started refuses what it has not read the bindings for yet: the right is there.
    granted = {request_of(event) for event in events() if event.get("responseStatus", {}).get("code", 500) < 300}
    refused = [
        f"{use_of(event)}: {event['responseStatus'].get('message', '')}"
        for event in events()
        if event["user"]["username"].startswith(OURS)
        and event["responseStatus"].get("code") == 403
        and "being terminated" not in event["responseStatus"].get("message", "")  # a namespace that goes, not a right
        and request_of(event) not in granted
        and not any(begin <= at(event) <= end for begin, end in gaps)
    ]
    assert refused == []


def test_every_right_of_the_controller_was_used(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """The sidecars' rights are those that their own projects ask for: what is looked at here is ours."""
    missing = {path.name for path in HERE.glob("test_*.py")} - {item.path.name for item in request.session.items}
    if missing:
        pytest.skip(f"needs the traces of all scenarios: {', '.join(sorted(missing))} did not run")
    used = {
        use_of(event)
        for event in events()
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

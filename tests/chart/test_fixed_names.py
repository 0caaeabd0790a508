"""The chart calls things as the contract has them (tests/upgrade/contract.yaml), so that a release finds its own again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rig import VALUES, Chart, Document, Rendered

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "upgrade" / "contract.yaml").read_text())
MADE = ("MutatingWebhookConfiguration", "DaemonSet", "Deployment", "Service", "CustomResourceDefinition")
"""Kinds of which the chart makes no others than those of the contract. It may have further classes, by values."""


def named(kind: str, release: str) -> set[str]:
    return {name.replace("RELEASE", release) for name in CONTRACT["objects"][kind]}


def environment(container: Document) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


@pytest.fixture
def documents(chart: Chart) -> Rendered:
    """As it is installed without any values, where snapshots of groups are served."""
    return chart.render()


@pytest.mark.parametrize("release", ["tidemark", "disks"])
def test_objects_are_called_as_they_were(chart: Chart, release: str) -> None:
    documents = chart.render(release=release)
    full = "tidemark" if release == "tidemark" else f"{release}-tidemark"
    for kind in MADE:
        made = {name for name in named(kind, full) if not name.endswith("-GROUP")}
        assert documents.names(kind) == made, kind
    for kind in ("CSIDriver", "StorageClass", "VolumeSnapshotClass", "VolumeGroupSnapshotClass"):
        assert documents.names(kind) == named(kind, full), kind
    rules = [rule for role in documents.of("Role") for rule in role["rules"]]
    for resource, kind in (("secrets", "Secret"), ("configmaps", "ConfigMap")):
        reached = {name for rule in rules if resource in rule["resources"] for name in rule.get("resourceNames", [])}
        assert reached == named(kind, full)
    agents = documents.one("DaemonSet", f"{full}-agent")["spec"]["template"]["spec"]
    mounted = {volume["secret"]["secretName"] for volume in agents["volumes"] if "secret" in volume}
    assert mounted <= named("Secret", full)


def test_groups_of_nodes_are_called_after_their_agents(chart: Chart) -> None:
    documents = chart.render(VALUES / "groups.yaml")
    (form,) = [name for name in CONTRACT["objects"]["DaemonSet"] if name.endswith("-GROUP")]
    front = form.replace("RELEASE", "tidemark").removesuffix("GROUP")
    assert all(name.startswith(front) for name in documents.names("DaemonSet") - {"tidemark-agent"})
    assert len(documents.names("DaemonSet")) > 1


def test_what_an_upgrade_cannot_change_is_as_it_was(documents: Rendered) -> None:
    fixed = CONTRACT["immutable"]
    for kind, name in (("DaemonSet", "tidemark-agent"), ("Deployment", "tidemark-controller")):
        labels = {key: value.replace("RELEASE", "tidemark") for key, value in fixed[kind].items()}
        assert documents.one(kind, name)["spec"]["selector"] == {"matchLabels": labels}
    driver = documents.one("CSIDriver", CONTRACT["driver"])["spec"]
    assert {key: driver[key] for key in fixed["CSIDriver"]} == fixed["CSIDriver"]
    made = documents.one("StorageClass", "tidemark")
    assert {key: made.get(key) for key in fixed["StorageClass"]} == fixed["StorageClass"]
    for kind in ("VolumeSnapshotClass", "VolumeGroupSnapshotClass"):
        assert documents.one(kind, "tidemark")["driver"] == CONTRACT["driver"]
    services = [service["spec"] for service in documents.of("Service")]
    (headless,) = {spec["clusterIP"] for spec in services if "clusterIP" in spec}
    assert headless == "None"


def test_an_agent_finds_what_the_one_before_left_on_the_node(documents: Rendered) -> None:
    node, agent = CONTRACT["node"], documents.container("agent")
    variables = environment(agent)
    assert (variables["TIDEMARK_POOL_IMAGE"], variables["TIDEMARK_POOL_MOUNT"]) == (
        node["pool_image"],
        node["pool_mount"],
    )
    assert "TIDEMARK_POOL" not in variables, f"the pool is called {node['pool_name']} where nothing is said"
    pod = documents.one("DaemonSet", "tidemark-agent")["spec"]["template"]["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    assert (paths["socket"], paths["registration"]) == (node["socket"], node["registration"])
    ports = {port["name"]: port["containerPort"] for port in agent["ports"]}
    assert ports[CONTRACT["peers"]["port"]["name"]] == CONTRACT["peers"]["port"]["number"]


def test_certificates_of_others_have_the_names_that_are_checked(chart: Chart) -> None:
    documents = chart.render({"tls": {"certManager": {"enabled": True, "issuer": {"name": "ours"}}}})
    for role in ("controller", "agent"):
        certificate = documents.one("Certificate", f"tidemark-{role}")
        assert certificate["spec"]["dnsNames"][0] == CONTRACT["peers"][role]

"""What users add to our pods and objects, and that nothing of ours is lost by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from chart_rig import CHART, VALUES, Chart, Document, Rendered

WORKLOADS = [("agent", "DaemonSet", "tidemark-agent"), ("controller", "Deployment", "tidemark-controller")]
LASTING = [*WORKLOADS, ("snapshotController", "Deployment", "tidemark-snapshot-controller")]
"""All that run as long as the release."""
DEPLOYMENTS = [(section, name) for section, kind, name in LASTING if kind == "Deployment"]
PODS = [*LASTING, ("uninstall", "Job", "tidemark-uninstall-check")]


def installed(section: str, values: Document) -> Document:
    """Values of one section, and the snapshot-controller installed."""
    install: Document = {"snapshotController": {"install": True}}
    return {**install, section: {**install.get(section, {}), **values}}


def pod(documents: Rendered, kind: str, name: str) -> Document:
    """The pod's specification in a workload."""
    found: Document = documents.one(kind, name)["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(("section", "kind", "name"), WORKLOADS)
def test_variables_volumes_and_containers_come_beside_ours(chart: Chart, section: str, kind: str, name: str) -> None:
    volume = {"name": "extra", "configMap": {"name": "extra"}}
    mount = {"name": "extra", "mountPath": "/etc/extra"}
    first = {"name": "first", "image": "busybox:1.35"}
    values = {
        "extraEnvFrom": [{"secretRef": {"name": "extra"}}],
        "extraVolumes": [volume],
        "extraVolumeMounts": [mount],
        "initContainers": [first],
    }
    plain, more = (pod(chart.render(given), kind, name) for given in (None, {section: values}))
    assert more["volumes"] == [*plain["volumes"], volume]
    names = [one["name"] for one in plain.get("initContainers", [])]
    assert [one["name"] for one in more["initContainers"]] == ["first", *names]
    ours, with_more = (
        next(one for one in [*found.get("initContainers", []), *found["containers"]] if one["name"] == section)
        for found in (plain, more)
    )
    assert with_more.pop("envFrom") == values["extraEnvFrom"]
    assert with_more.pop("volumeMounts") == [*ours.pop("volumeMounts"), mount]
    assert with_more == ours


@pytest.mark.parametrize(("section", "kind", "name"), LASTING)
def test_history_annotations_and_account(chart: Chart, section: str, kind: str, name: str) -> None:
    note = {"example.com/note": section}
    values = {"revisionHistoryLimit": 0, "annotations": note, "serviceAccount": {"annotations": note}}
    documents = chart.render(installed(section, values))
    workload = documents.one(kind, name)
    assert workload["spec"]["revisionHistoryLimit"] == 0
    assert workload["metadata"]["annotations"] == note
    assert "example.com/note" not in workload["spec"]["template"]["metadata"].get("annotations", {})
    assert documents.one("ServiceAccount", name)["metadata"]["annotations"] == note
    marked = [one for one in documents.of("ServiceAccount") if "annotations" in one["metadata"]]
    assert len(marked) == 1
    kept = {one["metadata"]["name"]: one["spec"].get("revisionHistoryLimit") for one in documents.of(kind)}
    assert {other for other, limit in kept.items() if limit == 0} == {name}
    assert chart.render(installed(section, {})).one(kind, name)["spec"]["revisionHistoryLimit"] == 10


@pytest.mark.parametrize(("section", "kind", "name"), PODS)
def test_labels_and_annotations_reach_the_pods_of_one(chart: Chart, section: str, kind: str, name: str) -> None:
    """By them a service mesh leaves pods alone: with a container of a mesh in it, the pod of a Job never ends."""
    mark, note = {"example.com/inject": "false"}, {"example.com/mesh": "disabled"}
    documents = chart.render(installed(section, {"podLabels": mark, "podAnnotations": note}))
    workloads = [one for one in documents if "template" in (one.get("spec") or {})]
    assert len(workloads) == len(PODS)
    for one in workloads:
        found = one["spec"]["template"]["metadata"]
        wanted = (one["kind"], one["metadata"]["name"]) == (kind, name)
        assert (mark.items() <= found["labels"].items()) is wanted
        assert (note.items() <= found.get("annotations", {}).items()) is wanted
        assert not {*mark, *note} & {*one["metadata"]["labels"], *one["metadata"].get("annotations", {})}
        assert not mark.items() & one["spec"].get("selector", {}).get("matchLabels", {}).items()


def test_updates_go_as_the_user_says(chart: Chart) -> None:
    documents = chart.render(
        {
            "agent": {"updateStrategy": {"type": "OnDelete"}},
            "controller": {"updateStrategy": {"type": "Recreate"}},
        }
    )
    assert documents.one("DaemonSet", "tidemark-agent")["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert documents.one("Deployment", "tidemark-controller")["spec"]["strategy"] == {"type": "Recreate"}
    documents = chart.render({"controller": {"updateStrategy": {"rollingUpdate": {"maxSurge": 0}}}})
    assert documents.one("Deployment", "tidemark-controller")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
    }


def test_a_node_stays_in_one_group_whatever_affinity_is_given(chart: Chart) -> None:
    """Terms are alternatives: a term without the group's condition would put a second agent on a node."""
    real = {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}
    large = {"key": "example.com/size", "operator": "Exists"}
    required = {"nodeSelectorTerms": [{"matchExpressions": [real]}, {"matchExpressions": [large]}]}
    near = {"preferredDuringSchedulingIgnoredDuringExecution": []}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": required}
    values = {
        "agent": {"affinity": {"nodeAffinity": nodes, "podAffinity": near}},
        "nodeGroups": {"nvme": {"nodes": {"label": "example.com/disks", "values": ["nvme"]}}},
    }
    documents = chart.render(values)
    for name, operator in (("tidemark-agent-nvme", "In"), ("tidemark-agent", "NotIn")):
        affinity = pod(documents, "DaemonSet", name)["affinity"]
        own = {"key": "example.com/disks", "operator": operator, "values": ["nvme"]}
        terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [{"matchExpressions": [real, own]}, {"matchExpressions": [large, own]}]
        assert affinity["podAffinity"] == near
    alone = pod(chart.render({"agent": values["agent"]}), "DaemonSet", "tidemark-agent")["affinity"]
    assert alone == values["agent"]["affinity"]
    assert "affinity" not in pod(chart.render(), "DaemonSet", "tidemark-agent")


@pytest.mark.parametrize(("section", "name"), DEPLOYMENTS)
def test_pods_of_a_deployment_keep_apart_unless_told_otherwise(chart: Chart, section: str, name: str) -> None:
    documents = chart.render(installed(section, {}))
    labels = documents.one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    apart = pod(documents, "Deployment", name)["affinity"]["podAntiAffinity"]
    (preferred,) = apart["preferredDuringSchedulingIgnoredDuringExecution"]
    selected = preferred["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert selected.items() <= labels.items()
    assert selected["app.kubernetes.io/component"] == name.removeprefix("tidemark-")
    other: Document = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    assert pod(chart.render(installed(section, {"affinity": other})), "Deployment", name)["affinity"] == other


@pytest.mark.parametrize(("section", "name"), DEPLOYMENTS)
def test_pods_of_a_deployment_spread_over_what_is_named(chart: Chart, section: str, name: str) -> None:
    zone = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    other = {**zone, "labelSelector": {"matchLabels": {"app": "other"}}}
    documents = chart.render(installed(section, {"topologySpreadConstraints": [other, zone]}))
    first, second = pod(documents, "Deployment", name)["topologySpreadConstraints"]
    assert first == other
    labels = documents.one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    selected = second.pop("labelSelector")["matchLabels"]
    assert second == zone
    assert selected.items() <= labels.items()
    assert selected["app.kubernetes.io/component"] == name.removeprefix("tidemark-")


def images(documents: Rendered) -> set[str]:
    """All images of all pods."""
    pods = [one["spec"]["template"]["spec"] for one in documents if "template" in (one.get("spec") or {})]
    return {one["image"] for found in pods for one in [*found.get("initContainers", []), *found["containers"]]}


@pytest.mark.parametrize("registry", ["mirror.example.com", "mirror.example.com:5000/pulled/"])
def test_every_image_comes_from_the_registry_of_all(chart: Chart, registry: str) -> None:
    install = {"snapshotController": {"install": True}}
    plain = images(chart.render(install))
    assert len(plain) == 5
    pulled = images(chart.render({**install, "global": {"imageRegistry": registry}}))
    assert pulled == {f"{registry.rstrip('/')}/{image.partition('/')[2]}" for image in plain}
    own = {"image": {"repository": "team/tidemark"}, "sidecars": {"resizer": {"repository": "localhost/resizer"}}}
    pulled = images(chart.render({**own, "global": {"imageRegistry": registry}}))
    for repository in ("team/tidemark", "resizer"):
        assert any(image.startswith(f"{registry.rstrip('/')}/{repository}:") for image in pulled)
    assert any(image.startswith("localhost/resizer:") for image in images(chart.render(own)))


def test_pull_secrets_of_all_and_of_ours_reach_every_pod(chart: Chart) -> None:
    values = {"global": {"imagePullSecrets": ["all", {"name": "ours"}]}, "imagePullSecrets": [{"name": "ours"}]}
    documents = chart.render({**values, "snapshotController": {"install": True}})
    pods = [one["spec"]["template"]["spec"] for one in documents if "template" in (one.get("spec") or {})]
    assert len(pods) == 4
    for found in pods:
        assert found["imagePullSecrets"] == [{"name": "ours"}, {"name": "all"}]


def test_policies_let_in_who_must_come_and_nobody_else(chart: Chart) -> None:
    assert not chart.render().of("NetworkPolicy")
    watchers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    documents = chart.render({"networkPolicy": {"enabled": True, "metricsFrom": watchers}, "extraLabels": {"a": "b"}})
    rules = {one["metadata"]["name"]: one["spec"] for one in documents.of("NetworkPolicy")}
    assert set(rules) == {"tidemark-agent", "tidemark-controller"}
    assert all(spec["policyTypes"] == ["Ingress"] for spec in rules.values())
    agents = documents.one("DaemonSet", "tidemark-agent")["spec"]["template"]["metadata"]["labels"]
    controllers = documents.one("Deployment", "tidemark-controller")["spec"]["template"]["metadata"]["labels"]
    calls, metrics = rules["tidemark-agent"]["ingress"]
    assert rules["tidemark-agent"]["podSelector"]["matchLabels"].items() <= agents.items()
    (caller,) = calls["from"]
    assert caller["podSelector"]["matchLabels"].items() <= controllers.items()
    assert not caller["podSelector"]["matchLabels"].items() <= agents.items()
    metrics_of_all, webhook = rules["tidemark-controller"]["ingress"]
    assert metrics["from"] == metrics_of_all["from"] == watchers
    assert "from" not in webhook, "the API server may be anywhere"
    # Every port of our containers is in one of the rules, and nothing beside.
    opened = {range(port["port"], port.get("endPort", port["port"]) + 1) for port in webhook["ports"]}
    opened |= {range(port["port"], port["endPort"] + 1) for port in metrics_of_all["ports"]}
    found = pod(documents, "Deployment", "tidemark-controller")
    for container in [*found["initContainers"], *found["containers"]]:
        for port in container["ports"]:
            assert any(port["containerPort"] in ports for ports in opened), port
    assert {port["port"] for rule in (calls, metrics) for port in rule["ports"]} == {9807, 9808}
    off = chart.render({"networkPolicy": {"enabled": True}, "webhook": {"enabled": False}})
    assert len(off.one("NetworkPolicy", "tidemark-controller")["spec"]["ingress"]) == 1


def test_values_of_the_chart_before_still_render_and_mean_the_same(chart: Chart, tmp_path: Path) -> None:
    """`helm upgrade --reuse-values` hands over the old defaults: what is new is not there at all."""
    copy = Path(shutil.copytree(CHART, tmp_path / "tidemark"))
    shutil.copy(VALUES / "before.yaml", copy / "values.yaml")
    switched_on: dict[str, Any] = {
        "snapshotController": {"install": True},
        "monitoring": {part: {"enabled": True} for part in ("serviceMonitor", "prometheusRule", "dashboard")},
    }
    for values in (None, switched_on, VALUES / "groups.yaml", VALUES / "everything.yaml"):
        assert chart.render(values, chart=copy) == chart.render(values)

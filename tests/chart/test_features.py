"""Snapshots and groups follow what the cluster serves, or what the user says; off leaves nothing of them behind."""

from __future__ import annotations

import pytest
from chart_rig import EVERYTHING, SNAPSHOTS, Chart, Document, Refused, Rendered


def gate(documents: Rendered) -> str:
    """The group gate of the snapshotter: always said, because its default has changed between versions."""
    (said,) = [arg for arg in documents.container("csi-snapshotter")["args"] if arg.startswith("--feature-gates=")]
    return str(said.removeprefix("--feature-gates=CSIVolumeGroupSnapshot="))


def mentions(documents: Rendered, group: str) -> set[str]:
    """Kinds of objects in which an API group appears."""
    return {document["kind"] for document in documents if group in str(document)}


def has_snapshotter(documents: Rendered) -> bool:
    pod = documents.one("Deployment", "tidemark-controller")["spec"]["template"]["spec"]
    return "csi-snapshotter" in {container["name"] for container in pod["containers"]}


def test_a_cluster_without_the_definitions(chart: Chart) -> None:
    documents = chart.render(serves=())
    assert not has_snapshotter(documents)
    assert mentions(documents, "snapshot.storage.k8s.io") == set()
    assert documents.names("StorageClass") == {"tidemark"}
    assert "Snapshots are off, because the cluster does not have their CRDs." in chart.notes(serves=())


@pytest.mark.parametrize("older", [(), ("groupsnapshot.storage.k8s.io/v1beta2/VolumeGroupSnapshotClass",)])
def test_a_cluster_without_groups_of_version_1(chart: Chart, older: tuple[str, ...]) -> None:
    documents = chart.render(serves=SNAPSHOTS + older)
    assert gate(documents) == "false"
    assert mentions(documents, "groupsnapshot.storage.k8s.io") == set()
    assert documents.names("VolumeSnapshotClass") == {"tidemark"}
    assert "group snapshots are off" in chart.notes(serves=SNAPSHOTS + older)


def test_a_cluster_with_all_of_them(chart: Chart) -> None:
    documents = chart.render(serves=EVERYTHING)
    assert gate(documents) == "true"
    assert documents.names("VolumeSnapshotClass") == {"tidemark"}
    assert documents.names("VolumeGroupSnapshotClass") == {"tidemark"}
    assert "ClusterRole" in mentions(documents, "groupsnapshot.storage.k8s.io")
    assert "of groups of volumes too" in chart.notes(serves=EVERYTHING)


@pytest.mark.parametrize(
    ("values", "serves", "snapshots", "groups"),
    [
        ({"snapshots": {"enabled": False}}, EVERYTHING, False, False),
        ({"snapshots": {"enabled": True}}, (), True, False),
        ({"groupSnapshots": {"enabled": False}}, EVERYTHING, True, False),
        ({"snapshots": {"enabled": True}, "groupSnapshots": {"enabled": True}}, (), True, True),
        ({"groupSnapshots": {"enabled": True}}, SNAPSHOTS, True, True),
    ],
)
def test_what_the_user_says_wins(
    chart: Chart, values: Document, serves: tuple[str, ...], snapshots: bool, groups: bool
) -> None:
    documents = chart.render(values, serves=serves)
    assert has_snapshotter(documents) is snapshots
    assert bool(documents.of("VolumeSnapshotClass")) is snapshots
    assert bool(documents.of("VolumeGroupSnapshotClass")) is groups
    if snapshots:
        assert gate(documents) == str(groups).lower()


def test_groups_without_snapshots_are_refused(chart: Chart) -> None:
    with pytest.raises(Refused, match=r"set snapshots\.enabled to true"):
        chart.render({"groupSnapshots": {"enabled": True}}, serves=())


def test_the_classes_are_the_drivers_defaults(chart: Chart) -> None:
    """A rollback's safety snapshot names no class."""
    documents = chart.render({"driverName": "disks.example.com"})
    assert documents.one("VolumeSnapshotClass", "tidemark")["metadata"]["annotations"] == {
        "snapshot.storage.kubernetes.io/is-default-class": "true"
    }
    for kind, field in (
        ("StorageClass", "provisioner"),
        ("VolumeSnapshotClass", "driver"),
        ("VolumeGroupSnapshotClass", "driver"),
    ):
        assert documents.one(kind, "tidemark")[field] == "disks.example.com"
    # The cluster's default class for claims is not ours to take.
    annotations = documents.one("StorageClass", "tidemark")["metadata"]["annotations"]
    assert annotations["storageclass.kubernetes.io/is-default-class"] == "false"


def test_the_snapshot_controller_comes_only_when_asked_for(chart: Chart) -> None:
    assert "tidemark-snapshot-controller" not in chart.render().names("Deployment")
    wanted = {"snapshotController": {"install": True}}
    documents = chart.render(wanted)
    assert "--feature-gates=CSIVolumeGroupSnapshot=true" in documents.container("snapshot-controller")["args"]
    assert "tidemark-snapshot-controller" in documents.names("ClusterRole")
    documents = chart.render(wanted, serves=SNAPSHOTS)
    assert "--feature-gates=CSIVolumeGroupSnapshot=false" in documents.container("snapshot-controller")["args"]
    with pytest.raises(Refused, match="kubectl kustomize"):
        chart.render(wanted, serves=())


def test_several_classes(chart: Chart) -> None:
    values = {
        "pools": [{"name": "bulk", "path": "/srv/disk"}],
        "storageClasses": {
            "tidemark": None,
            "bulk": {"parameters": {"pool": "bulk"}},
            "fast": {"allowVolumeExpansion": False},
        },
    }
    documents = chart.render(values)
    assert documents.names("StorageClass") == {"bulk", "fast"}
    bulk = documents.one("StorageClass", "bulk")
    assert bulk["parameters"] == {"pool": "bulk"}
    assert (bulk["volumeBindingMode"], bulk["reclaimPolicy"], bulk["allowVolumeExpansion"]) == (
        "WaitForFirstConsumer",
        "Delete",
        True,
    )
    assert documents.one("StorageClass", "fast")["allowVolumeExpansion"] is False
    assert "storageClassName: bulk" in chart.notes(values)


def test_the_uninstallation_looks_first_unless_forced(chart: Chart) -> None:
    documents = chart.render()
    job = documents.one("Job", "tidemark-uninstall-check")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert documents.container("uninstall-check")["args"][0] == "uninstall-check"
    assert "tidemark-uninstall" in documents.names("ClusterRole")
    forced = chart.render({"uninstall": {"force": True}})
    assert not forced.of("Job")
    assert "tidemark-uninstall" not in forced.names("ClusterRole") | forced.names("ServiceAccount")


def test_the_webhook_never_keeps_a_claim_from_being_made(chart: Chart) -> None:
    (webhook,) = chart.render().one("MutatingWebhookConfiguration", "tidemark-pin")["webhooks"]
    assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Ignore", 2)
    assert webhook["clientConfig"] == {
        "service": {"name": "tidemark-webhook", "namespace": "tidemark", "path": "/pin", "port": 443}
    }, "the authority is written by the controller: in a manifest, the next upgrade would take it away"
    assert any("dataSourceRef" in condition["expression"] for condition in webhook["matchConditions"])
    off = chart.render({"webhook": {"enabled": False}})
    assert not off.of("MutatingWebhookConfiguration")
    assert "tidemark-webhook" not in off.names("Service")
    assert {"name": "TIDEMARK_WEBHOOK_ADDRESS", "value": ""} in off.container("controller")["env"]


def test_certificates_of_ones_own_come_in_pairs(chart: Chart) -> None:
    with pytest.raises(Refused, match="belong together"):
        chart.render({"tls": {"controllerSecret": "mine"}})
    with pytest.raises(Refused, match=r"needs tls\.certManager\.issuer\.name"):
        chart.render({"tls": {"certManager": {"enabled": True}}})
    given = {"controllerSecret": "mine", "agentSecret": "theirs"}
    documents = chart.render({"tls": given})
    assert not documents.of("Certificate")
    assert "theirs" in str(documents.one("DaemonSet", "tidemark-agent"))
    assert {"name": "TIDEMARK_CONTROLLER_SECRET", "value": "mine"} in documents.container("controller")["env"]
    managed = chart.render({"tls": {**given, "certManager": {"enabled": True, "issuer": {"name": "ours"}}}})
    names = {one["spec"]["secretName"]: one["spec"]["dnsNames"] for one in managed.of("Certificate")}
    assert names == {
        "mine": ["controller.tidemark.internal", "tidemark-webhook.tidemark.svc"],
        "theirs": ["agent.tidemark.internal"],
    }
    unnamed = chart.render({"tls": {"certManager": {"enabled": True, "issuer": {"name": "ours"}}}})
    assert {one["spec"]["secretName"] for one in unnamed.of("Certificate")} == {
        "tidemark-controller-certificate",
        "tidemark-agent-certificate",
    }
    assert "tidemark-agent-certificate" in str(unnamed.one("DaemonSet", "tidemark-agent"))
    assert "tidemark-controller-certificate" in str(unnamed.one("Role", "tidemark-controller"))

"""The chart through helm's whole life of a release: upgrade, rollback, an uninstallation that is refused, forced, and undone.

A second release, for a driver of another name and without pods of its own, so that nothing is taken from the first: what is
tested is what helm and the cluster do with the manifests. Only the hook of the uninstallation runs.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rig.cluster import VALUES, Cluster, RigError
from rig.kubectl import Kubectl
from rig.paths import CHART, TREE

pytestmark = [
    pytest.mark.slow(seconds=100),
    pytest.mark.xdist_group("release lab"),  # what it has in the whole cluster is there once
]

DRIVER = "lab.example.org"
NOT_SERVED = {"ServiceMonitor", "PrometheusRule", "Certificate", "SecurityContextConstraints"}
"""Kinds of projects that this cluster does not have."""
WEBHOOK = "lab-tidemark-pin"
SERVED = (
    "--kube-version=1.34.4",
    "--api-versions=snapshot.storage.k8s.io/v1/VolumeSnapshotClass",
    "--api-versions=groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass",
)
"""`helm template` does not ask the cluster what it is."""
NOWHERE = {
    "driverName": DRIVER,
    "agent": {"nodeSelector": {"example.org/no-such": "node"}},
    "controller": {"operator": False, "resources": {"requests": {"cpu": "1000"}}},
    "storageClasses": {"tidemark": None},
    "snapshots": {"class": {"create": False}},
    "groupSnapshots": {"class": {"create": False}},
    "crds": {"install": False},
}
"""The first release has the classes and the definitions; agents and controllers find no node."""


class Release:
    """helm for the release `lab` in the test's namespace."""

    def __init__(self, cluster: Cluster, namespace: str, directory: Path) -> None:
        self._cluster, self._namespace, self._directory = cluster, namespace, directory

    def __call__(self, *words: object) -> str:
        return self._cluster.helm(*words, f"--namespace={self._namespace}")

    def values(self, **more: Any) -> str:
        path = self._directory / "values.json"
        path.write_text(json.dumps({**VALUES, **NOWHERE, **more}))
        return f"--values={path}"

    def install(self) -> None:
        self("install", "lab", CHART, self.values())

    def upgrade(self, **more: Any) -> None:
        self("upgrade", "lab", CHART, self.values(**more))

    def status(self) -> tuple[str, int]:
        """What helm thinks of it: its status, and its revision."""
        release_status = json.loads(self("status", "lab", "--output=json"))
        return release_status["info"]["status"], release_status["version"]


@pytest.fixture
def release(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[Release]:
    made = Release(cluster, kubectl.namespace, tmp_path)
    try:
        yield made
    finally:
        # What it keeps on purpose, and what a failure left.
        for volume in kubectl.items("pv", "--selector=example.org/lab=true"):
            kubectl.delete("pv", volume["metadata"]["name"])
        try:
            made("uninstall", "lab", "--no-hooks", "--ignore-not-found")
        finally:
            kubectl.delete("csidriver", DRIVER)


def webhook(kubectl: Kubectl) -> tuple[int, str]:
    """Timeout and authority of the release's webhook."""
    (found,) = kubectl.get("mutatingwebhookconfiguration", WEBHOOK)["webhooks"]
    return found["timeoutSeconds"], found["clientConfig"].get("caBundle", "")


def volume(name: str) -> dict[str, Any]:
    """A volume of the driver, as the provisioner would write it; there is no disk behind it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"example.org/lab": "true"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": DRIVER, "volumeHandle": f"node1:default:{name}"},
        },
    }


def test_upgrade_and_rollback_leave_the_authority_of_the_webhook(release: Release, kubectl: Kubectl) -> None:
    release.install()
    assert webhook(kubectl) == (2, "")
    # As the controller does when it has made it.
    # Kubernetes puts it into a new namespace a moment later.
    authority = kubectl.until(bool, "configmap", "kube-root-ca.crt")["data"]["ca.crt"]
    patch = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": _base64(authority)}]
    kubectl("patch", "mutatingwebhookconfiguration", WEBHOOK, "--type=json", "--patch", json.dumps(patch))
    release.upgrade(webhook={"timeoutSeconds": 3})
    assert webhook(kubectl) == (3, _base64(authority))
    release("rollback", "lab", 1)
    assert webhook(kubectl) == (2, _base64(authority))


def test_a_second_operator_is_refused(release: Release) -> None:
    """It would call a run over, and a rollback failed, in which its own driver has no part."""
    with pytest.raises(RigError, match=r"release tidemark in namespace \S+ reconciles .* controller\.operator=false"):
        release("install", "lab", CHART, release.values(controller={**NOWHERE["controller"], "operator": True}))


def test_the_pool_image_is_not_begun_again_elsewhere_and_never_shrinks(release: Release) -> None:
    """Elsewhere every disk would be missing, and every deletion would succeed."""
    release.install()
    elsewhere = {"poolImage": {"directory": "/srv/elsewhere"}}
    with pytest.raises(RigError, match=r"poolImage\.directory .* cannot be changed .* /srv/elsewhere/pool\.img"):
        release.upgrade(**elsewhere)
    with pytest.raises(RigError, match=r"poolImage\.size of DaemonSet \S+ cannot become 500M: it is 4Gi"):
        release.upgrade(poolImage={"size": "500M"})
    release.upgrade(poolImage={"size": "4.5Gi"})
    assert release.status() == ("deployed", 2)


def test_an_uninstallation_is_refused_while_volumes_exist_and_can_be_forced(release: Release, kubectl: Kubectl) -> None:
    release.install()
    kubectl.create(volume("lab-1"), volume("lab-2"))
    with pytest.raises(RigError) as refused:
        release("uninstall", "lab")
    message = str(refused.value)
    assert f"2 PersistentVolumes of {DRIVER} (lab-1, lab-2)" in message
    assert kubectl.find("deployment", "lab-tidemark-controller")
    assert kubectl.find("csidriver", DRIVER)

    # The message says how to undo it: helm takes the refusal for an uninstallation that has begun.
    words = message[message.index("helm rollback") :].partition("`")[0].split()
    assert words == ["helm", "rollback", "lab", "1", "--namespace", kubectl.namespace]
    release("rollback", "lab", 1)
    release.upgrade(webhook={"timeoutSeconds": 3})
    assert release.status() == ("deployed", 3)

    release.upgrade(uninstall={"force": True})
    kept = release("uninstall", "lab")
    assert f"[CSIDriver] {DRIVER}" in kept
    assert not kubectl.find("deployment", "lab-tidemark-controller")
    assert kubectl.find("csidriver", DRIVER), "pods that use a volume need it"

    release.install()  # takes over what was kept
    assert release.status() == ("deployed", 1)
    kubectl.delete("pv", "lab-1", "lab-2")
    release("uninstall", "lab")
    assert not kubectl.find("deployment", "lab-tidemark-controller")
    assert not kubectl.find("job", "lab-tidemark-uninstall-check")


@pytest.mark.parametrize("values", ["everything", "groups", "least"])
def test_the_api_server_would_take_it(cluster: Cluster, kubectl: Kubectl, values: str) -> None:
    """What a schema cannot tell: expressions that compile, names and numbers that are allowed."""
    path = TREE / "tests" / "chart" / "values" / f"{values}.yaml"
    text = cluster.helm(*("template", "lab", CHART, f"--namespace={kubectl.namespace}", f"--values={path}", *SERVED))
    documents = [one for one in yaml.safe_load_all(text) if one and one["kind"] not in NOT_SERVED]
    assert len(documents) > 10
    for document in documents:
        if document["kind"] == "CSIDriver" or document["kind"].endswith("Class"):
            document["metadata"]["name"] += ".lab"  # those of the release that is there may not be changed
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--filename=-", stdin=listed)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()

"""What a cluster has before Tidemark is installed: the CRDs of snapshots, and the snapshot-controller."""

from typing import Any

from rig.images import versions
from rig.kubectl import Kubectl
from rig.paths import programs

NAME = "snapshot-controller"


def install(kubectl: Kubectl) -> None:
    """Install them; the controller's pod starts in its own time."""
    crds = programs() / "crd"
    kubectl("apply", "--server-side", f"--filename={crds}")
    kubectl.within("kube-system").apply(*_documents())


def _documents() -> list[dict[str, Any]]:
    metadata = {"name": NAME, "namespace": "kube-system"}
    container = {
        "name": NAME,
        "image": f"registry.k8s.io/sig-storage/{NAME}:{versions()[NAME]}",
        "args": ["--leader-election=false", "--feature-gates=CSIVolumeGroupSnapshot=true", "--v=2"],
    }
    template = {
        "metadata": {"labels": {"app": NAME}},
        "spec": {
            "serviceAccountName": NAME,
            "containers": [container],
            "tolerations": [{"operator": "Exists"}],
            # Scenarios switch the last node off, and expect that snapshots go on.
            "nodeSelector": {"kubernetes.io/hostname": "node1"},
        },
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            # Its rights are the add-on's own affair, and not what is tested here.
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": NAME}}, "template": template},
        },
    ]

"""The objects that scenarios are made of, as a user would write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rig.images import BUSYBOX

Document = dict[str, Any]
CLASS = "tidemark"
"""The chart's StorageClass, VolumeSnapshotClass and VolumeGroupSnapshotClass."""
SNAPSHOT_API = "snapshot.storage.k8s.io/v1"
ROLLBACK_API = "tidemark.dev/v1alpha1"
GROUP_API = "groupsnapshot.storage.k8s.io/v1"


def claim(
    name: str,
    size: str = "128Mi",
    *,
    snapshot: str = "",
    clone: str = "",
    mode: str = "ReadWriteOnce",
    block: bool = False,
    storage_class: str = CLASS,
    labels: Mapping[str, str] | None = None,
) -> Document:
    """A claim: empty, or with the content of a snapshot or of another claim."""
    spec: Document = {
        "accessModes": [mode],
        "storageClassName": storage_class,
        "resources": {"requests": {"storage": size}},
        "volumeMode": "Block" if block else "Filesystem",
    }
    if snapshot:
        spec["dataSource"] = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}
    if clone:
        spec["dataSource"] = {"kind": "PersistentVolumeClaim", "name": clone}
    metadata = {"name": name, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def snapshot(name: str, of: str) -> Document:
    spec = {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": of}}
    return {"apiVersion": SNAPSHOT_API, "kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec}


def rollback(name: str, of: str, to: str, **spec: Any) -> Document:
    """The disk of the claim `of` goes back to the snapshot `to`; `spec` has whatever else is asked for."""
    spec = {"claimName": of, "snapshotName": to} | spec
    return {"apiVersion": ROLLBACK_API, "kind": "VolumeRollback", "metadata": {"name": name}, "spec": spec}


def group_snapshot(name: str, labels: Mapping[str, str]) -> Document:
    spec = {"volumeGroupSnapshotClassName": CLASS, "source": {"selector": {"matchLabels": dict(labels)}}}
    return {"apiVersion": GROUP_API, "kind": "VolumeGroupSnapshot", "metadata": {"name": name}, "spec": spec}


def pod(
    name: str,
    claims: Mapping[str, str] | Sequence[str] = (),
    *,
    script: str = "",
    devices: Mapping[str, str] | None = None,
    node: str = "",
    image: str = BUSYBOX,
    **spec: Any,
) -> Document:
    """A pod with a shell, which does nothing, or runs `script`.

    `claims`: where each is mounted -> its name; of a list, each is mounted at /NAME. `devices`: path -> claim, for raw
    block. `node` sets a node selector, so that the scheduler still has its say. `spec` goes into the pod's.
    """
    mounted = dict(claims) if isinstance(claims, Mapping) else {f"/{each}": each for each in claims}
    devices = devices or {}
    volumes = [
        {"name": each, "persistentVolumeClaim": {"claimName": each}}
        for each in dict.fromkeys([*mounted.values(), *devices.values()])
    ]
    container: Document = {
        "name": "main",
        "image": image,
        "command": ["sh", "-ec", script or "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"],
        "volumeMounts": [{"name": each, "mountPath": path} for path, each in mounted.items()],
        "volumeDevices": [{"name": each, "devicePath": path} for path, each in devices.items()],
    }
    content: Document = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5}
    if node:
        content["nodeSelector"] = {"kubernetes.io/hostname": node}
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": content | spec}


def storage_class(name: str, *, immediate: bool = False, parameters: Mapping[str, str] | None = None) -> Document:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "csi.tidemark.dev",
        **({"parameters": dict(parameters)} if parameters else {}),
        "allowVolumeExpansion": True,
        "volumeBindingMode": "Immediate" if immediate else "WaitForFirstConsumer",
    }

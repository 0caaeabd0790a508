"""Claims, snapshots and volumes as a cluster has them, in an API in memory."""

from __future__ import annotations

from typing import Any

from csi_driver.domain.routing import TOPOLOGY_KEY
from csi_driver.kube.resources import NODES, PODS, PVCS, PVS, SNAPSHOT_CONTENTS, SNAPSHOTS, STORAGE_CLASSES
from csi_driver.operator.installation import SELECTED_NODE
from support.fake_api import FakeApi, Object

DRIVER = "csi.tidemark.dev"
NS = "app"
HASH = "0123456789abcdef0123456789abcdef"


def handle(owner: str, number: int = 0) -> str:
    return f"{owner}:default:{number:032x}"


class Objects:
    """Puts objects; names say what they are."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.cls("tidemark")
        for name in ("n-1", "n-2", "n-3"):
            self.node(name)

    def cls(self, name: str, driver: str = DRIVER, mode: str = "WaitForFirstConsumer", **parameters: str) -> None:
        body = {"metadata": {"name": name}, "provisioner": driver, "volumeBindingMode": mode, "parameters": parameters}
        self.fake.put(STORAGE_CLASSES, body)

    def node(self, name: str, owner: str = "", ready: bool = True, cordoned: bool = False) -> None:
        body = {"metadata": {"name": name, "labels": {TOPOLOGY_KEY: owner or name}}}
        body["spec"] = {"unschedulable": True} if cordoned else {}
        body["status"] = {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]}
        self.fake.put(NODES, body)

    def volume(self, name: str, owner: str, driver: str = DRIVER) -> None:
        self.fake.put(
            PVS, {"metadata": {"name": name}, "spec": {"csi": {"driver": driver, "volumeHandle": handle(owner)}}}
        )

    def bound(self, name: str, owner: str, driver: str = DRIVER, **more: Any) -> None:
        """A claim with its volume."""
        self.volume(f"pv-{name}", owner, driver)
        self.put(claim(name, volume=f"pv-{name}", **more))

    def put(self, body: Object) -> None:
        self.fake.put(PVCS, body, NS)

    def snapshot(self, name: str, owner: str = "", of: str = "", driver: str = DRIVER, cut: bool = True) -> None:
        """A snapshot with its content on `owner`, or one that is not bound yet."""
        body: Object = {"metadata": {"name": name}, "spec": {"source": {"persistentVolumeClaimName": of}}}
        if owner:
            body["status"] = {"boundVolumeSnapshotContentName": f"content-{name}"}
            spec = {"driver": driver, "source": {"volumeHandle": handle(owner)}}
            status = {"snapshotHandle": handle(owner, 1)} if cut else {}
            self.fake.put(SNAPSHOT_CONTENTS, {"metadata": {"name": f"content-{name}"}, "spec": spec, "status": status})
        self.fake.put(SNAPSHOTS, body, NS)

    def pod(self, name: str, *claims: str, says: str = "", since: str = "2026-01-01T00:00:00Z", **more: Any) -> None:
        """A pod that has no node."""
        volumes = [{"name": one, "persistentVolumeClaim": {"claimName": one}} for one in claims]
        body: Object = {"metadata": {"name": name}, "spec": {"volumes": volumes + more.get("volumes", [])}}
        if says:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            body["status"] = {"conditions": [condition | {"message": says, "lastTransitionTime": since}]}
        self.fake.put(PODS, body, NS)

    def selected(self, name: str) -> str | None:
        found = self.fake.get(PVCS, name, NS)
        assert found is not None
        return (found["metadata"].get("annotations") or {}).get(SELECTED_NODE)

    def unselect(self, name: str, node: str | None = None) -> None:
        """What the provisioner does where a node has no room, or the scheduler when it chooses."""
        self.fake.change(PVCS, name, {"metadata": {"annotations": {SELECTED_NODE: node}}}, NS)


def claim(
    name: str,
    snapshot: str = "",
    clone: str = "",
    cls: str = "tidemark",
    volume: str = "",
    selected: str = "",
    size: str = "1Gi",
) -> Object:
    """A claim, made of a snapshot, of a claim, or of nothing."""
    spec: Object = {"storageClassName": cls, "resources": {"requests": {"storage": size}}}
    if snapshot:
        spec["dataSourceRef"] = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}
    if clone:
        spec["dataSource"] = {"kind": "PersistentVolumeClaim", "name": clone}
    if volume:
        spec["volumeName"] = volume
    metadata: Object = {"name": name, "namespace": NS}
    if selected:
        metadata["annotations"] = {SELECTED_NODE: selected}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Bound" if volume else "Pending"}}

"""The volume and the snapshot that a VolumeRollback refers to, resolved from objects that were just read from the API.

Names alone decide nothing: each link from PVC to volume and from snapshot to handle is checked in both directions and by UID, so
that nobody reaches a volume or a snapshot outside their namespace through an object that was re-pointed. Whether the snapshot
is one of that volume, the agent says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_driver.operator.rollback.resource import RollbackSpec

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResolvedReferences:
    """The volume and the snapshot, by handle, and the name of the PersistentVolume."""

    volume_id: str
    snapshot_id: str
    pv_name: str


@dataclass(frozen=True, slots=True)
class UnresolvedReference:
    """Why a reference cannot be resolved. `final`: time alone does not change it."""

    reason: str
    message: str
    final: bool = True


@dataclass(frozen=True, slots=True)
class ReferencedObjects:
    """The objects that a VolumeRollback names; None: it does not exist."""

    pvc: Object | None = None
    pv: Object | None = None
    snapshot: Object | None = None
    content: Object | None = None


def resolve(spec: RollbackSpec, objects: ReferencedObjects, driver: str) -> ResolvedReferences | UnresolvedReference:
    """Resolve both references, or return the first problem."""
    volume_id = volume_handle_of(spec, objects, driver)
    if isinstance(volume_id, UnresolvedReference):
        return volume_id
    snapshot_id = _snapshot_handle(spec, objects.snapshot, objects.content, driver)
    if isinstance(snapshot_id, UnresolvedReference):
        return snapshot_id
    return ResolvedReferences(volume_id, snapshot_id, objects.pv["metadata"]["name"] if objects.pv else "")


def volume_handle_of(spec: RollbackSpec, objects: ReferencedObjects, driver: str) -> str | UnresolvedReference:
    """Return the handle of the PVC's volume, or the first problem."""
    pvc, pv = objects.pvc, objects.pv
    shown = f"PVC {spec.pvc_key}"
    if pvc is None:
        return UnresolvedReference("ClaimNotFound", f"waiting for {shown} to be created", final=False)
    if _terminating(pvc):
        return UnresolvedReference("ClaimTerminating", f"{shown} is being deleted")
    if _status(pvc).get("phase") != "Bound" or not pvc["spec"].get("volumeName"):
        phase = _status(pvc).get("phase", "not bound")
        return UnresolvedReference("ClaimNotBound", f"waiting for {shown} to be bound ({phase})", final=False)
    pv_name = pvc["spec"]["volumeName"]
    if pv is None:
        return UnresolvedReference("VolumeNotFound", f"PersistentVolume {pv_name} of {shown} does not exist")
    claim_ref = pv["spec"].get("claimRef") or {}
    if (claim_ref.get("namespace"), claim_ref.get("name"), claim_ref.get("uid")) != (
        spec.namespace,
        spec.pvc,
        _uid(pvc),
    ):
        return UnresolvedReference(
            "ClaimMisbound",
            f"PersistentVolume {pv_name} does not name {shown} in its claimRef (by namespace, name and UID), but "
            f"{claim_ref.get('namespace', '')}/{claim_ref.get('name', '')}",
        )
    if _terminating(pv):
        return UnresolvedReference("VolumeTerminating", f"PersistentVolume {pv_name} of {shown} is being deleted")
    csi = pv["spec"].get("csi") or {}
    if csi.get("driver") != driver:
        return UnresolvedReference(
            "WrongDriver",
            f"PersistentVolume {pv_name} of {shown} belongs to {csi.get('driver') or 'no CSI driver'}, not to {driver}; only "
            "volumes of this driver can be rolled back",
        )
    return str(csi["volumeHandle"])


def _snapshot_handle(
    spec: RollbackSpec, snapshot: Object | None, content: Object | None, driver: str
) -> str | UnresolvedReference:
    shown = f"VolumeSnapshot {spec.namespace}/{spec.snapshot}"
    if snapshot is None:
        return UnresolvedReference("SnapshotNotFound", f"waiting for {shown} to be created", final=False)
    if _terminating(snapshot):
        return UnresolvedReference("SnapshotTerminating", f"{shown} is being deleted; use another one")
    status = _status(snapshot)
    content_name = status.get("boundVolumeSnapshotContentName")
    if not content_name or not status.get("readyToUse"):
        error = (status.get("error") or {}).get("message")
        why = f" ({error})" if error else ""
        return UnresolvedReference("SnapshotNotReady", f"waiting for {shown} to be ready{why}", final=False)
    if content is None:
        return UnresolvedReference(
            "SnapshotContentMissing", f"VolumeSnapshotContent {content_name} of {shown} does not exist"
        )
    ref = content["spec"].get("volumeSnapshotRef") or {}
    if (ref.get("namespace"), ref.get("name"), ref.get("uid")) != (spec.namespace, spec.snapshot, _uid(snapshot)):
        return UnresolvedReference(
            "SnapshotContentMisbound",
            f"VolumeSnapshotContent {content_name} does not name {shown} in its volumeSnapshotRef (by namespace, name and UID), "
            f"but {ref.get('namespace', '')}/{ref.get('name', '')}",
        )
    if content["spec"].get("driver") != driver:
        return UnresolvedReference(
            "WrongDriver",
            f"{shown} was taken by {content['spec'].get('driver')}, not by {driver}; it cannot be used for this rollback",
        )
    handle = _status(content).get("snapshotHandle")
    if not handle:
        return UnresolvedReference("SnapshotNotReady", f"waiting for {shown} to be taken", final=False)
    return str(handle)


def _terminating(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def _uid(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def _status(obj: Object) -> Mapping[str, Any]:
    return obj.get("status") or {}

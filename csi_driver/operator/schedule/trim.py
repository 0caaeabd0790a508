"""What the copies of the cluster's objects hold for schedules: of thousands, only the fields that somebody reads."""

from collections.abc import Mapping
from typing import Any

from csi_driver.operator.schedule.naming import CLAIM, MEMBERS, NODE, SCHEDULE, SCHEDULED_FOR, VOLUME
from csi_driver.operator.schedule.observed import GROUP_IN_CREATION, SNAPSHOT_IN_CREATION

Object = dict[str, Any]

_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels")
_OURS = (SCHEDULE, SCHEDULED_FOR, CLAIM, VOLUME, NODE, MEMBERS)


def keep_claim(claim: Object) -> Object:
    """Of a PersistentVolumeClaim: who it is, its volume, and what it is restored from."""
    return {
        "metadata": _some(claim["metadata"], _IDENTITY),
        "spec": _some(claim.get("spec"), ("volumeName", "dataSource", "dataSourceRef")),
        "status": _some(claim.get("status"), ("phase",)),
    }


def keep_volume(volume: Object) -> Object:
    """Of a PersistentVolume: its handle, and the claim that it belongs to."""
    spec = volume.get("spec") or {}
    return {
        "metadata": _some(volume["metadata"], ("name", "uid", "resourceVersion")),
        "spec": {
            "csi": _some(spec.get("csi"), ("driver", "volumeHandle")),
            "claimRef": _some(spec.get("claimRef"), ("namespace", "name", "uid")),
        },
    }


def keep_snapshot(snapshot: Object) -> Object:
    """Of a VolumeSnapshot: who it is, whose it is, its source, and how far it is."""
    meta = snapshot["metadata"]
    return {
        "metadata": _some(meta, (*_IDENTITY, "ownerReferences"))
        | {"annotations": _some(meta.get("annotations"), _OURS)},
        "spec": _some(snapshot.get("spec"), ("source",)),
        "status": _some(snapshot.get("status"), ("readyToUse", "error", "boundVolumeSnapshotContentName")),
    }


def keep_content(content: Object) -> Object:
    """Of a VolumeSnapshotContent: what it binds, and whether the snapshotter still waits for the driver."""
    meta, spec, status = content["metadata"], content.get("spec") or {}, content.get("status") or {}
    return {
        "metadata": _some(meta, ("name", "resourceVersion"))
        | {"annotations": _some(meta.get("annotations"), (SNAPSHOT_IN_CREATION,))},
        "spec": {
            "driver": spec.get("driver"),
            "source": spec.get("source"),
            "volumeSnapshotRef": _some(spec.get("volumeSnapshotRef"), ("namespace", "name")),
        },
        "status": _some(status, ("snapshotHandle",)),
    }


def keep_group(group: Object) -> Object:
    """Of a VolumeGroupSnapshot: as of a VolumeSnapshot."""
    meta = group["metadata"]
    return {
        "metadata": _some(meta, _IDENTITY) | {"annotations": _some(meta.get("annotations"), _OURS)},
        "status": _some(group.get("status"), ("readyToUse", "error", "boundVolumeGroupSnapshotContentName")),
    }


def keep_group_content(content: Object) -> Object:
    """Of a VolumeGroupSnapshotContent: whether the snapshotter still waits for the driver."""
    meta = content["metadata"]
    return {
        "metadata": _some(meta, ("name", "resourceVersion"))
        | {"annotations": _some(meta.get("annotations"), (GROUP_IN_CREATION,))}
    }


def keep_rollback(rollback: Object) -> Object:
    """Of a VolumeRollback: the snapshot that it goes back to, and whether it is over."""
    return {
        "metadata": _some(rollback["metadata"], ("name", "namespace", "uid", "resourceVersion")),
        "spec": _some(rollback.get("spec"), ("snapshotName",)),
        "status": _some(rollback.get("status"), ("phase",)),
    }


def _some(found: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Object:
    return {key: found[key] for key in keys if key in found} if found else {}

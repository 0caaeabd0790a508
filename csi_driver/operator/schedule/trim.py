"""The fields of cached objects that schedules read. There are thousands of objects: the other fields are dropped."""

from collections.abc import Mapping
from typing import Any

from csi_driver.operator.schedule.naming import CLAIM, MEMBERS, NODE, SCHEDULE, SCHEDULED_FOR, VOLUME
from csi_driver.operator.schedule.objects import GROUP_IN_CREATION, SNAPSHOT_IN_CREATION

Object = dict[str, Any]

_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels")
_OURS = (SCHEDULE, SCHEDULED_FOR, CLAIM, VOLUME, NODE, MEMBERS)


def trim_pvc(pvc: Object) -> Object:
    """Keep of a PersistentVolumeClaim: identity, volume, and what it is restored from."""
    return {
        "metadata": _some(pvc["metadata"], _IDENTITY),
        "spec": _some(pvc.get("spec"), ("volumeName", "dataSource", "dataSourceRef")),
        "status": _some(pvc.get("status"), ("phase",)),
    }


def trim_volume(volume: Object) -> Object:
    """Keep of a PersistentVolume: its handle, and the PVC that it belongs to."""
    spec = volume.get("spec") or {}
    return {
        "metadata": _some(volume["metadata"], ("name", "uid", "resourceVersion")),
        "spec": {
            "csi": _some(spec.get("csi"), ("driver", "volumeHandle")),
            "claimRef": _some(spec.get("claimRef"), ("namespace", "name", "uid")),
        },
    }


def trim_snapshot(snapshot: Object) -> Object:
    """Keep of a VolumeSnapshot: identity, owner, source, and state."""
    meta = snapshot["metadata"]
    return {
        "metadata": _some(meta, (*_IDENTITY, "ownerReferences"))
        | {"annotations": _some(meta.get("annotations"), _OURS)},
        "spec": _some(snapshot.get("spec"), ("source",)),
        "status": _some(snapshot.get("status"), ("readyToUse", "error", "boundVolumeSnapshotContentName")),
    }


def trim_content(content: Object) -> Object:
    """Keep of a VolumeSnapshotContent: what it binds, and whether the snapshotter still waits for the driver."""
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


def trim_group(group: Object) -> Object:
    """Keep of a VolumeGroupSnapshot: as of a VolumeSnapshot."""
    meta = group["metadata"]
    return {
        "metadata": _some(meta, _IDENTITY) | {"annotations": _some(meta.get("annotations"), _OURS)},
        "status": _some(group.get("status"), ("readyToUse", "error", "boundVolumeGroupSnapshotContentName")),
    }


def trim_group_content(content: Object) -> Object:
    """Keep of a VolumeGroupSnapshotContent: whether the snapshotter still waits for the driver."""
    meta = content["metadata"]
    return {
        "metadata": _some(meta, ("name", "resourceVersion"))
        | {"annotations": _some(meta.get("annotations"), (GROUP_IN_CREATION,))}
    }


def trim_rollback(rollback: Object) -> Object:
    """Keep of a VolumeRollback: its snapshot, and its phase."""
    return {
        "metadata": _some(rollback["metadata"], ("name", "namespace", "uid", "resourceVersion")),
        "spec": _some(rollback.get("spec"), ("snapshotName",)),
        "status": _some(rollback.get("status"), ("phase",)),
    }


def _some(fields: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Object:
    return {key: fields[key] for key in keys if key in fields} if fields else {}

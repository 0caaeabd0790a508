"""Safety snapshots: their class and name, which still miss nothing, and which have expired."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from csi_driver.domain.timestamps import parse_optional_timestamp
from csi_driver.operator.labels import KEEP_LABEL
from csi_driver.operator.rollback.references import UnresolvedReference
from csi_driver.operator.rollback.resource import RollbackSpec

SAFETY_LABEL = "tidemark.dev/safety"
"""On a safety snapshot; its value is the UID of its VolumeRollback."""

VOLUME_ANNOTATION = "tidemark.dev/disk"
"""On a safety snapshot: the handle of its volume. A PVC may be bound to another volume later; a handle does not change."""

ROLLBACK_ANNOTATION = "tidemark.dev/rollback"
"""On a safety snapshot: the name of the VolumeRollback."""

_DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"

Object = Mapping[str, Any]


def choose_class(spec: RollbackSpec, classes: Iterable[Object], driver: str) -> str | UnresolvedReference:
    """Return the class of the safety snapshot: the one that the spec names, else the driver's default."""
    of_driver = [snapshot_class for snapshot_class in classes if snapshot_class.get("driver") == driver]
    name = spec.snapshot_class
    if name:
        if any(snapshot_class["metadata"]["name"] == name for snapshot_class in of_driver):
            return name
        return UnresolvedReference(
            "SnapshotClassNotFound",
            f"VolumeSnapshotClass {name} for the safety snapshot does not exist, or is not one of {driver}",
        )
    defaults = sorted(snapshot_class["metadata"]["name"] for snapshot_class in of_driver if _is_default(snapshot_class))
    if len(defaults) == 1:
        return str(defaults[0])
    problem = (
        f"{driver} has {len(defaults)} default VolumeSnapshotClasses ({', '.join(defaults)})"
        if defaults
        else f"{driver} has no default VolumeSnapshotClass"
    )
    return UnresolvedReference(
        "NoDefaultSnapshotClass",
        f"{problem} for the safety snapshot; set volumeSnapshotClassName, or safetySnapshot: false",
    )


def safety_name(uid: str, number: int) -> str:
    """Return the name of a rollback's safety snapshot; each time that the hold expired there is a new one."""
    return f"safety-{uid}" if number == 1 else f"safety-{uid}-{number}"


def safety_snapshot(spec: RollbackSpec, volume_id: str, class_name: str, number: int) -> dict[str, Any]:
    """Return the VolumeSnapshot to create. It has no ownerReferences: it outlives the rollback, which it can undo."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": safety_name(spec.uid, number),
            "namespace": spec.namespace,
            "labels": {SAFETY_LABEL: spec.uid},
            "annotations": {VOLUME_ANNOTATION: volume_id, ROLLBACK_ANNOTATION: spec.name},
        },
        "spec": {"volumeSnapshotClassName": class_name, "source": {"persistentVolumeClaimName": spec.pvc}},
    }


def snapshots_of_rollback(spec: RollbackSpec, safety_snapshots: Iterable[Object]) -> list[Object]:
    """Return the safety snapshots of one rollback in any state, oldest first."""
    own = [
        snapshot
        for snapshot in safety_snapshots
        if _labels(snapshot).get(SAFETY_LABEL) == spec.uid and number_of(spec.uid, snapshot)
    ]
    return sorted(own, key=lambda snapshot: number_of(spec.uid, snapshot))


def number_of(uid: str, snapshot: Object) -> int:
    """Return its number among a rollback's safety snapshots, from 1; 0: it is none of them."""
    match = re.fullmatch(
        rf"safety-{re.escape(uid)}(?:-([2-9]|[1-9][0-9]{{1,5}}))?", snapshot["metadata"]["name"], re.ASCII
    )
    return int(match[1] or 1) if match else 0


def expired_snapshots(
    spec: RollbackSpec, volume_id: str, safety_snapshots: Iterable[Object], needed: Collection[str]
) -> list[Object]:
    """Return the safety snapshots of a volume beyond the newest `keep_safety`; the newest is never among them.

    Only ready ones are counted; one that never became ready expires once a newer one is ready. Left alone: those that an
    unfinished rollback or a restore reads (`needed`, by name), those labelled to be kept, those being deleted.
    """
    of_volume = [
        snapshot
        for snapshot in safety_snapshots
        if SAFETY_LABEL in _labels(snapshot) and _annotations(snapshot).get(VOLUME_ANNOTATION) == volume_id
    ]
    expired = []
    ready = 0
    for snapshot in sorted(of_volume, key=_age, reverse=True):
        metadata = snapshot["metadata"]
        if metadata.get("deletionTimestamp"):
            continue
        is_ready = bool((snapshot.get("status") or {}).get("readyToUse"))
        surplus = ready >= max(1, spec.keep_safety) if is_ready else ready > 0
        ready += is_ready
        if surplus and metadata["name"] not in needed and KEEP_LABEL not in _labels(snapshot):
            expired.append(snapshot)
    return expired


def _age(snapshot: Object) -> tuple[float, float, int, str]:
    metadata = snapshot["metadata"]
    created = parse_optional_timestamp(metadata["creationTimestamp"])
    taken = parse_optional_timestamp((snapshot.get("status") or {}).get("creationTime"))
    return created, taken, number_of(_labels(snapshot).get(SAFETY_LABEL, ""), snapshot), metadata["name"]


def _labels(obj: Object) -> Mapping[str, str]:
    return obj["metadata"].get("labels") or {}


def _annotations(obj: Object) -> Mapping[str, str]:
    return obj["metadata"].get("annotations") or {}


def _is_default(snapshot_class: Object) -> bool:
    return _annotations(snapshot_class).get(_DEFAULT_CLASS) == "true"

"""Safety snapshots: in which class, under which name, whether one still holds all, and which are surplus."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from csi_driver.operator.labels import KEEP_LABEL
from csi_driver.operator.rollback.references import UnresolvedReference
from csi_driver.operator.rollback.resource import RollbackSpec, seconds

SAFETY_LABEL = "tidemark.dev/safety"
"""On a safety snapshot; its value is the UID of the VolumeRollback that had it made."""

DISK_ANNOTATION = "tidemark.dev/disk"
"""On a safety snapshot: the handle of its disk. A claim's name may come to mean another disk, a handle does not."""

ROLLBACK_ANNOTATION = "tidemark.dev/rollback"
"""On a safety snapshot: the name of the VolumeRollback."""

_DEFAULT_CLASS = "snapshot.storage.kubernetes.io/is-default-class"

Object = Mapping[str, Any]


def choose_class(wish: RollbackSpec, classes: Iterable[Object], driver: str) -> str | UnresolvedReference:
    """The class that the safety snapshot is made in: the one named, else the driver's default."""
    ours = [c for c in classes if c.get("driver") == driver]
    named = wish.snapshot_class
    if named:
        if any(c["metadata"]["name"] == named for c in ours):
            return named
        return UnresolvedReference(
            "SnapshotClassNotFound",
            f"VolumeSnapshotClass {named} for the safety snapshot does not exist, or is not one of {driver}",
        )
    defaults = sorted(c["metadata"]["name"] for c in ours if _is_default(c))
    if len(defaults) == 1:
        return str(defaults[0])
    found = (
        f"{driver} has {len(defaults)} default VolumeSnapshotClasses ({', '.join(defaults)})"
        if defaults
        else (f"{driver} has no default VolumeSnapshotClass")
    )
    return UnresolvedReference(
        "NoDefaultSnapshotClass",
        f"{found} for the safety snapshot: name one in volumeSnapshotClassName, or decline the safety snapshot",
    )


def safety_name(uid: str, number: int) -> str:
    """The name of a rollback's safety snapshot; each time that the hold lapsed there is a new one."""
    return f"safety-{uid}" if number == 1 else f"safety-{uid}-{number}"


def safety_snapshot(wish: RollbackSpec, volume_id: str, class_name: str, number: int) -> dict[str, Any]:
    """The VolumeSnapshot to create. Without ownerReferences: it outlives the rollback, it is the way back from it."""
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": safety_name(wish.uid, number),
            "namespace": wish.namespace,
            "labels": {SAFETY_LABEL: wish.uid},
            "annotations": {DISK_ANNOTATION: volume_id, ROLLBACK_ANNOTATION: wish.name},
        },
        "spec": {"volumeSnapshotClassName": class_name, "source": {"persistentVolumeClaimName": wish.claim}},
    }


def snapshots_of_rollback(wish: RollbackSpec, safeties: Iterable[Object]) -> list[Object]:
    """The safety snapshots of one rollback, oldest first, whatever state they are in."""
    found = [s for s in safeties if _labels(s).get(SAFETY_LABEL) == wish.uid and number_of(wish.uid, s)]
    return sorted(found, key=lambda s: number_of(wish.uid, s))


def number_of(uid: str, snapshot: Object) -> int:
    """Which of a rollback's safety snapshots it is, from 1; 0: none of them."""
    match = re.fullmatch(
        rf"safety-{re.escape(uid)}(?:-([2-9]|[1-9][0-9]{{1,5}}))?", snapshot["metadata"]["name"], re.ASCII
    )
    return int(match[1] or 1) if match else 0


def expired_snapshots(
    wish: RollbackSpec, volume_id: str, safeties: Iterable[Object], needed: Collection[str]
) -> list[Object]:
    """The safety snapshots of a disk beyond the newest `keep`; the newest is never among them.

    Only ready ones are counted; one that never became ready goes once a newer one is ready. Left alone: those that a
    rollback in progress goes back to or made, or a restore reads (`needed`, by name), those labelled to be kept, those on
    their way out.
    """
    of_disk = [
        s
        for s in safeties
        if SAFETY_LABEL in _labels(s) and (s["metadata"].get("annotations") or {}).get(DISK_ANNOTATION) == volume_id
    ]
    found = []
    ready = 0
    for snapshot in sorted(of_disk, key=_age, reverse=True):
        meta = snapshot["metadata"]
        kept = ready < max(1, wish.keep)
        is_ready = bool((snapshot.get("status") or {}).get("readyToUse"))
        if meta.get("deletionTimestamp"):
            continue
        spare = not kept if is_ready else ready > 0
        ready += is_ready
        if spare and meta["name"] not in needed and KEEP_LABEL not in _labels(snapshot):
            found.append(snapshot)
    return found


def _age(snapshot: Object) -> tuple[float, float, int, str]:
    meta = snapshot["metadata"]
    created = seconds(meta["creationTimestamp"])
    cut = seconds((snapshot.get("status") or {}).get("creationTime"))
    return created, cut, number_of(_labels(snapshot).get(SAFETY_LABEL, ""), snapshot), meta["name"]


def _labels(item: Object) -> Mapping[str, str]:
    return item["metadata"].get("labels") or {}


def _is_default(item: Object) -> bool:
    return bool((item["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true")

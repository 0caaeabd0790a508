"""Reads the API's documents as the values that plans are made of."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from csi_driver.domain.ids import parse
from csi_driver.domain.timestamps import parse_timestamp
from csi_driver.kube.resources import GROUP_SNAPSHOTS, PVCS, ROLLBACKS, SNAPSHOTS, Kind
from csi_driver.operator.labels import KEEP_LABEL
from csi_driver.operator.schedule.naming import (
    CLAIM,
    MEMBERS,
    NODE,
    SCHEDULE,
    SCHEDULED_FOR,
    VOLUME,
    group_name,
    schedule_label,
    snapshot_name,
)
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetPvc

Object = Mapping[str, Any]

ObjectKey = tuple[str, str]
"""Namespace and name of an object."""

KINDS: Mapping[str, Kind] = {"snapshot": SNAPSHOTS, "group": GROUP_SNAPSHOTS}
"""The kinds that a schedule creates."""

SNAPSHOT_IN_CREATION = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
GROUP_IN_CREATION = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created"
"""Annotations of the snapshotter on a content, from before it calls the driver until a final answer: until then an error in the status
is not final, and the snapshot may still become ready."""

FINAL_PHASES = ("Completed", "Failed")
"""Phases of a VolumeRollback that no longer reads its snapshot."""


def read_pvc(pvc: Object, volume: Object | None, driver: str) -> TargetPvc:
    """Read a PVC. `volume` is the PersistentVolume that it names, or None if there is none."""
    meta = pvc["metadata"]
    name, created = meta["name"], parse_timestamp(meta.get("creationTimestamp")) or 0
    csi = ((volume or {}).get("spec") or {}).get("csi") or {}
    owner = ((volume or {}).get("spec") or {}).get("claimRef") or {}
    if meta.get("deletionTimestamp"):
        refusal = "it is being deleted"
    elif (pvc.get("status") or {}).get("phase") != "Bound":
        refusal = "it is not bound"
    elif volume is None or owner.get("uid") != meta.get("uid"):
        refusal = "its PersistentVolume does not exist or belongs to another PVC"
    elif csi.get("driver") != driver:
        refusal = f"its driver is {csi.get('driver') or 'none'}, not {driver}"
    else:
        handle = csi.get("volumeHandle", "")
        return TargetPvc(name, created, handle, owner_of(handle))
    return TargetPvc(name, created, refusal=refusal)


def owner_of(handle: str) -> str:
    """Return the owner that a volume handle names, or '' for a handle of another driver."""
    parsed = parse(handle)
    return parsed.owner if parsed else ""


def source_of(content: Object | None) -> str:
    """Return the handle of the volume of a VolumeSnapshotContent, or '' for an imported one."""
    return str((((content or {}).get("spec") or {}).get("source") or {}).get("volumeHandle") or "")


def read_snapshot(
    snapshot: Object, content: Object | None, schedule: str, in_use: frozenset[str]
) -> OwnedSnapshot | None:
    """Read a VolumeSnapshot; None if the schedule did not create it. Labels are easily copied, so the name must match, too."""
    meta = snapshot["metadata"]
    annotations = meta.get("annotations") or {}
    instant, pvc = parse_timestamp(annotations.get(SCHEDULED_FOR)), annotations.get(CLAIM, "")
    if not _is_of(meta, schedule) or instant is None or meta["name"] != snapshot_name(schedule, pvc, instant):
        return None
    status = snapshot.get("status") or {}
    state = _state(status, _annotated(content, SNAPSHOT_IN_CREATION))
    # The content names the volume: the PVC may have been replaced before the snapshot was bound. A ready snapshot whose content is not
    # cached yet has no known volume: it is neither deleted nor counted when others are.
    intended = "" if state == "ready" and content is None else annotations.get(VOLUME, "")
    handle = source_of(content) or intended
    protected = KEEP_LABEL in (meta.get("labels") or {}) or meta["name"] in in_use
    return _owned("snapshot", meta, instant, ((pvc, handle),), owner_of(handle), state, status, protected)


def read_group(
    group: Object,
    content: Object | None,
    members: Iterable[tuple[Object, str]],
    schedule: str,
    in_use: frozenset[str],
) -> OwnedSnapshot | None:
    """Read a VolumeGroupSnapshot; None if the schedule did not create it. `members`: its snapshots, each with the volume's handle.

    Until it is ready its volumes are the intended ones, then those of the members.
    """
    meta = group["metadata"]
    annotations = meta.get("annotations") or {}
    instant, node = parse_timestamp(annotations.get(SCHEDULED_FOR)), annotations.get(NODE, "")
    if not _is_of(meta, schedule) or instant is None or meta["name"] != group_name(schedule, node, instant):
        return None
    status = group.get("status") or {}
    state = _state(status, _annotated(content, GROUP_IN_CREATION))
    snapshots = list(members)
    volumes = tuple(sorted(_intended(annotations.get(MEMBERS, "")).items()))
    if state == "ready" and snapshots:
        volumes = tuple(sorted((_pvc_of(snapshot), handle) for snapshot, handle in snapshots if handle))
    protected = KEEP_LABEL in (meta.get("labels") or {}) or any(
        KEEP_LABEL in (snapshot["metadata"].get("labels") or {}) or snapshot["metadata"]["name"] in in_use
        for snapshot, _ in snapshots
    )
    return _owned("group", meta, instant, volumes, node, state, status, protected)


def restore_source(pvc: Object) -> str | None:
    """Return the snapshot that a PVC which is not bound yet is restored from."""
    if (pvc.get("status") or {}).get("phase") == "Bound":
        return None
    spec = pvc.get("spec") or {}
    for source in (spec.get("dataSourceRef"), spec.get("dataSource")):
        if source and source.get("kind") == "VolumeSnapshot":
            return str(source.get("name", ""))
    return None


def rolled_back_to(rollback: Object) -> str | None:
    """Return the snapshot of a VolumeRollback that is not over."""
    if (rollback.get("status") or {}).get("phase") in FINAL_PHASES:
        return None
    return (rollback.get("spec") or {}).get("snapshotName")


CONSUMERS: Mapping[Kind, Callable[[Object], str | None]] = {PVCS: restore_source, ROLLBACKS: rolled_back_to}
"""The kinds that read a snapshot of their namespace, and how to get its name."""


def _owned(
    kind: Literal["snapshot", "group"],
    meta: Object,
    instant: int,
    volumes: tuple[tuple[str, str], ...],
    node: str,
    state: str,
    status: Object,
    protected: bool,
) -> OwnedSnapshot:
    return OwnedSnapshot(
        name=meta["name"],
        instant=instant,
        series=frozenset(handle for _, handle in volumes if handle or kind == "group"),
        ready=state == "ready",
        failed=state == "failed",
        protected=protected,
        kind=kind,
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        volumes=volumes,
        node=node,
        in_progress=state == "in progress",
        deleting=bool(meta.get("deletionTimestamp")),
        error=(status.get("error") or {}).get("message", ""),
    )


def _is_of(meta: Object, schedule: str) -> bool:
    label = (meta.get("labels") or {}).get(SCHEDULE)
    named = (meta.get("annotations") or {}).get(SCHEDULE)
    return named == schedule and label == schedule_label(meta.get("namespace", ""), schedule)


def _state(status: Object, in_creation: bool) -> Literal["ready", "failed", "in progress"]:
    if status.get("readyToUse"):
        return "ready"
    return "failed" if status.get("error") and not in_creation else "in progress"


def _annotated(content: Object | None, key: str) -> bool:
    return key in (((content or {}).get("metadata") or {}).get("annotations") or {})


def _pvc_of(snapshot: Object) -> str:
    return str(((snapshot.get("spec") or {}).get("source") or {}).get("persistentVolumeClaimName") or "")


def _intended(text: str) -> dict[str, str]:
    try:
        members = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(pvc): str(handle) for pvc, handle in members.items()} if isinstance(members, dict) else {}

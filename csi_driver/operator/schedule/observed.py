"""What was observed, read from the API's documents once, as values that decisions are made of."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from csi_driver.domain.ids import parse
from csi_driver.domain.retention import SnapshotRecord
from csi_driver.domain.timestamps import parse_instant
from csi_driver.kube.resources import GROUP_SNAPSHOTS, PVCS, ROLLBACKS, SNAPSHOTS, Kind
from csi_driver.operator.schedule.naming import (
    CLAIM,
    KEEP,
    MEMBERS,
    NODE,
    SCHEDULE,
    SCHEDULED_FOR,
    VOLUME,
    group_name,
    schedule_label,
    snapshot_name,
)

Object = Mapping[str, Any]

Place = tuple[str, str]
"""Namespace and name of an object."""

KINDS: Mapping[str, Kind] = {"snapshot": SNAPSHOTS, "group": GROUP_SNAPSHOTS}
"""What a schedule makes."""

SNAPSHOT_IN_CREATION = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
GROUP_IN_CREATION = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created"
"""Annotations of the snapshotter on a content, from before it asks the driver until a final answer: while one is there, an
error in the status is not the last word, and the snapshot may yet be made."""

OVER = ("Completed", "Failed")
"""Phases of a VolumeRollback that reads its snapshot no more."""


@dataclass(frozen=True, slots=True)
class TargetClaim:
    """A claim that matches. `refusal` says why no snapshot can be made of it; then it has no handle."""

    name: str
    created: int
    handle: str = ""
    node: str = ""
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class OwnedSnapshot:
    """A snapshot or a group that this schedule made. `disks` are (claim, handle) pairs, more than one in a group."""

    kind: Literal["snapshot", "group"]
    unit: SnapshotRecord
    uid: str
    version: str
    disks: tuple[tuple[str, str], ...]
    node: str
    busy: bool
    """Whether it may still become ready, or is on its way: nothing else is begun for its disks meanwhile."""
    going: bool
    """Whether it is being deleted already: it counts for nothing any more."""
    error: str = ""

    @property
    def name(self) -> str:
        """Its name in the API."""
        return self.unit.name

    @property
    def instant(self) -> int:
        """The nominal time that it was made for."""
        return self.unit.instant


def read_claim(claim: Object, volume: Object | None, driver: str) -> TargetClaim:
    """A claim and the PersistentVolume that it names, or None where there is none."""
    meta = claim["metadata"]
    name, created = meta["name"], parse_instant(meta.get("creationTimestamp")) or 0
    csi = ((volume or {}).get("spec") or {}).get("csi") or {}
    owner = ((volume or {}).get("spec") or {}).get("claimRef") or {}
    if meta.get("deletionTimestamp"):
        refusal = "it is being deleted"
    elif (claim.get("status") or {}).get("phase") != "Bound":
        refusal = "it is not bound"
    elif volume is None or owner.get("uid") != meta.get("uid"):
        refusal = "its PersistentVolume is not there or belongs to another claim"
    elif csi.get("driver") != driver:
        refusal = f"its driver is {csi.get('driver') or 'none'}, not {driver}"
    else:
        handle = csi.get("volumeHandle", "")
        return TargetClaim(name, created, handle, node_of(handle))
    return TargetClaim(name, created, refusal=refusal)


def node_of(handle: str) -> str:
    """The owner that a volume handle names; empty for a handle that is not ours."""
    parsed = parse(handle)
    return parsed.owner if parsed else ""


def source_of(content: Object | None) -> str:
    """The handle of the disk that a VolumeSnapshotContent was cut of; empty for one that was imported."""
    return str((((content or {}).get("spec") or {}).get("source") or {}).get("volumeHandle") or "")


def read_snapshot(
    snapshot: Object, content: Object | None, schedule: str, in_use: frozenset[str]
) -> OwnedSnapshot | None:
    """A VolumeSnapshot that the named schedule made, or None: labels alone are easily copied, the name tells as well."""
    meta = snapshot["metadata"]
    said = meta.get("annotations") or {}
    instant, claim, handle = parse_instant(said.get(SCHEDULED_FOR)), said.get(CLAIM, ""), said.get(VOLUME, "")
    if not _is_of(meta, schedule) or instant is None or meta["name"] != snapshot_name(schedule, claim, instant):
        return None
    status = snapshot.get("status") or {}
    state = _state(status, _annotated(content, SNAPSHOT_IN_CREATION))
    # Whose disk it is, its content says, once there is one: the claim may have been replaced before it was bound. One that
    # is ready, and whose content is not seen yet, is nobody's: it neither goes nor lets another go.
    handle = source_of(content) or ("" if state == "ready" and content is None else handle)
    unit = SnapshotRecord(
        meta["name"],
        instant,
        frozenset([handle] if handle else []),
        ready=state == "ready",
        failed=state == "failed",
        kept=KEEP in (meta.get("labels") or {}) or meta["name"] in in_use,
    )
    return _made("snapshot", meta, unit, ((claim, handle),), node_of(handle), state, status)


def read_group(
    group: Object,
    content: Object | None,
    members: Iterable[tuple[Object, str]],
    schedule: str,
    in_use: frozenset[str],
) -> OwnedSnapshot | None:
    """A VolumeGroupSnapshot that the named schedule made, or None. `members`: its snapshots, each with its disk's handle.

    Before it is ready the members are those that were meant; then those that are there.
    """
    meta = group["metadata"]
    said = meta.get("annotations") or {}
    instant, node = parse_instant(said.get(SCHEDULED_FOR)), said.get(NODE, "")
    if not _is_of(meta, schedule) or instant is None or meta["name"] != group_name(schedule, node, instant):
        return None
    status = group.get("status") or {}
    state = _state(status, _annotated(content, GROUP_IN_CREATION))
    there = list(members)
    disks = tuple(sorted(_meant(said.get(MEMBERS, "")).items()))
    if state == "ready" and there:
        disks = tuple(sorted((_claim_of(snapshot), handle) for snapshot, handle in there if handle))
    kept = any(
        KEEP in (snapshot["metadata"].get("labels") or {}) or snapshot["metadata"]["name"] in in_use
        for snapshot, _ in there
    )
    unit = SnapshotRecord(
        meta["name"],
        instant,
        frozenset(handle for _, handle in disks),
        ready=state == "ready",
        failed=state == "failed",
        kept=kept or KEEP in (meta.get("labels") or {}),
    )
    return _made("group", meta, unit, disks, node, state, status)


def restore_source(claim: Object) -> str | None:
    """The snapshot that a claim which is not bound yet is to be made from."""
    if (claim.get("status") or {}).get("phase") == "Bound":
        return None
    spec = claim.get("spec") or {}
    for source in (spec.get("dataSourceRef"), spec.get("dataSource")):
        if source and source.get("kind") == "VolumeSnapshot":
            return str(source.get("name", ""))
    return None


def rolled_back_to(rollback: Object) -> str | None:
    """The snapshot that a VolumeRollback which is not over goes back to."""
    if (rollback.get("status") or {}).get("phase") in OVER:
        return None
    return (rollback.get("spec") or {}).get("snapshotName")


CONSUMERS: Mapping[Kind, Callable[[Object], str | None]] = {PVCS: restore_source, ROLLBACKS: rolled_back_to}
"""What reads a snapshot of its namespace, and how the snapshot's name is read from it."""


def _made(
    kind: Literal["snapshot", "group"],
    meta: Object,
    unit: SnapshotRecord,
    disks: tuple[tuple[str, str], ...],
    node: str,
    state: str,
    status: Object,
) -> OwnedSnapshot:
    return OwnedSnapshot(
        kind,
        unit,
        meta.get("uid", ""),
        meta.get("resourceVersion", ""),
        disks,
        node,
        busy=state == "busy",
        going=bool(meta.get("deletionTimestamp")),
        error=(status.get("error") or {}).get("message", ""),
    )


def _is_of(meta: Object, schedule: str) -> bool:
    label = (meta.get("labels") or {}).get(SCHEDULE)
    named = (meta.get("annotations") or {}).get(SCHEDULE)
    return named == schedule and label == schedule_label(meta.get("namespace", ""), schedule)


def _state(status: Object, in_creation: bool) -> Literal["ready", "failed", "busy"]:
    if status.get("readyToUse"):
        return "ready"
    return "failed" if status.get("error") and not in_creation else "busy"


def _annotated(content: Object | None, key: str) -> bool:
    return key in (((content or {}).get("metadata") or {}).get("annotations") or {})


def _claim_of(snapshot: Object) -> str:
    return str(((snapshot.get("spec") or {}).get("source") or {}).get("persistentVolumeClaimName") or "")


def _meant(text: str) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(claim): str(handle) for claim, handle in found.items()} if isinstance(found, dict) else {}

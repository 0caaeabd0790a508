"""Documents and observations for the tests of rollbacks: one that is about to succeed, to be spoilt by each test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from csi_driver.domain.errors import DriverError
from csi_driver.domain.model import CompletedRollback, Hold
from csi_driver.operator.rollback.actions import Action, ObservedRollback
from csi_driver.operator.rollback.planner import next_action
from csi_driver.operator.rollback.references import ReferencedObjects, ResolvedReferences
from csi_driver.operator.rollback.resource import Phase, RollbackSpec, RollbackStatus
from csi_driver.operator.rollback.safety_snapshots import SAFETY_LABEL, safety_snapshot
from csi_driver.service.agents import VolumeDescription
from csi_driver.service.holds import HOLD_SECONDS

DRIVER = "csi.tidemark.dev"
NAMESPACE = "shop"
UID = "0b1c2d3e-0000-4000-8000-000000000001"
CREATED = 1_800_000_000.0
SINCE = 1_800_000_100_000_000_000
SPEC = RollbackSpec(NAMESPACE, "back", UID, "v1", "s1", CREATED)
TARGET = ResolvedReferences("n-1:default:aaaa", "n-1:default:bbbb", "pvc-1")
VOLUME = VolumeDescription(TARGET.volume_id, "uid-of-v1", {TARGET.snapshot_id: SINCE - 10**12})


def held_by(holder: str, since: int) -> Hold:
    return Hold(holder, since + HOLD_SECONDS * 10**9, since)


MINE = held_by(SPEC.holder, SINCE)
SAFETY_ID = "n-1:default:cccc"


def claim(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "v1", "namespace": NAMESPACE, "uid": "uid-claim"},
        "spec": {"volumeName": "pvc-1"},
        "status": {"phase": "Bound"},
    } | more


def volume(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "pvc-1", "uid": "uid-pv"},
        "spec": {
            "claimRef": {"namespace": NAMESPACE, "name": "v1", "uid": "uid-claim"},
            "csi": {"driver": DRIVER, "volumeHandle": TARGET.volume_id},
        },
    } | more


def snapshot(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "s1", "namespace": NAMESPACE, "uid": "uid-snapshot"},
        "spec": {"source": {"persistentVolumeClaimName": "v1"}},
        "status": {"readyToUse": True, "boundVolumeSnapshotContentName": "content-1"},
    } | more


def content(**more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "content-1", "uid": "uid-content"},
        "spec": {
            "driver": DRIVER,
            "volumeSnapshotRef": {"namespace": NAMESPACE, "name": "s1", "uid": "uid-snapshot"},
        },
        "status": {"readyToUse": True, "snapshotHandle": TARGET.snapshot_id},
    } | more


def objects(**more: Any) -> ReferencedObjects:
    return replace(ReferencedObjects(claim(), volume(), snapshot(), content()), **more)


def snapshot_class(name: str = "tidemark", default: bool = True, driver: str = DRIVER) -> dict[str, Any]:
    mark = {"snapshot.storage.kubernetes.io/is-default-class": "true"} if default else {}
    return {"metadata": {"name": name, "annotations": mark}, "driver": driver}


def safety(number: int = 1, ready: bool = True, **meta: Any) -> dict[str, Any]:
    made = safety_snapshot(SPEC, TARGET.volume_id, "tidemark", number)
    made["metadata"] |= {"uid": f"uid-safety-{number}", "creationTimestamp": "2027-01-15T08:00:00Z"} | meta
    made["status"] = {"readyToUse": ready}
    return made


def earlier_safety(second: int, uid: str, **more: Any) -> dict[str, Any]:
    """A safety snapshot of another rollback of the same disk."""
    made = safety()
    made["metadata"] |= {
        "name": f"safety-{uid}",
        "labels": {SAFETY_LABEL: uid},
        "creationTimestamp": f"2027-01-15T07:00:{second:02}Z",
    }
    made["metadata"] |= more
    return made


def pod(
    name: str = "web-1", claim_name: str = "v1", owner: tuple[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": NAMESPACE}
    if owner:
        meta["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": True}]
    spec = {"nodeName": "n-1", "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": claim_name}}]}
    made: dict[str, Any] = {"metadata": meta, "spec": spec, "status": {"phase": "Running"}}
    for part, fields in more.items():
        made[part] = made.get(part, {}) | fields
    return made


READY = ObservedRollback(
    spec=SPEC,
    status=RollbackStatus(
        Phase.WAITING, "VolumeReleased", "", CREATED, volume_id=TARGET.volume_id, pv_name="pvc-1", has_finalizer=True
    ),
    now=CREATED + 5,
    driver=DRIVER,
    target=TARGET,
    completed={},
    volume=VOLUME,
    pv=volume(),
    classes=[snapshot_class()],
)
"""Free, recorded and guarded: the next thing is the hold."""

HELD = replace(READY, volume=replace(VOLUME, hold=MINE), since_renewal=1.0)

WITH_SAFETY = replace(
    HELD,
    volume=replace(VOLUME, hold=MINE, snapshots={**VOLUME.snapshots, SAFETY_ID: SINCE + 1}),
    safety_snapshots=[safety()],
    safety_handles={f"safety-{UID}": SAFETY_ID},
)

ROLLING = replace(WITH_SAFETY, status=replace(READY.status, phase=Phase.ROLLING, rolling_back_at=CREATED + 4))


def observed(base: ObservedRollback, **changes: Any) -> ObservedRollback:
    """An observation with changes; those of its status, spec and volume by `status_phase=...` and the like."""
    parts: dict[str, dict[str, Any]] = {"status": {}, "spec": {}, "volume": {}}
    plain = {}
    for key, value in changes.items():
        part, _, field = key.partition("_")
        if part in parts and field:
            parts[part][field] = value
        else:
            plain[key] = value
    for part, fields in parts.items():
        if fields:
            plain[part] = replace(getattr(base, part), **fields)
    return replace(base, **plain)


def next_of(base: ObservedRollback, **changes: Any) -> Action:
    return next_action(observed(base, **changes))


def done(at: int = SINCE + 5) -> tuple[CompletedRollback, ...]:
    return (CompletedRollback(UID, TARGET.snapshot_id, at, SAFETY_ID),)


def refusal(kind: type[DriverError], text: str = "words of the agent") -> DriverError:
    return kind(text)

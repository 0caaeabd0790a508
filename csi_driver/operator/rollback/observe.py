"""Observes one VolumeRollback: reads objects from the API, never from a cache, and then the volume from its agent."""

from dataclasses import dataclass
from typing import Any

from csi_driver.domain.errors import Damaged, DriverError, NotFound
from csi_driver.kube.client import Api, Object, Objects
from csi_driver.kube.resources import PODS, PVCS, PVS, ROLLBACKS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS
from csi_driver.operator.rollback.actions import ObservedRollback
from csi_driver.operator.rollback.completed import CompletionRecord, read_completed
from csi_driver.operator.rollback.pods_using_claim import pods_using
from csi_driver.operator.rollback.references import (
    ReferencedObjects,
    ResolvedReferences,
    UnresolvedReference,
    resolve,
    volume_handle_of,
)
from csi_driver.operator.rollback.resource import (
    Phase,
    RollbackSpec,
    RollbackStatus,
    parse_spec,
    parse_status,
    unfinished,
)
from csi_driver.operator.rollback.safety_snapshots import SAFETY_LABEL, snapshots_of_rollback
from csi_driver.operator.schedule.objects import restore_source
from csi_driver.service.agents import RollbackAgents, VolumeDescription


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What only this process knows. It is never needed, but it spares calls and reports a rejection.

    `since_renewal`: seconds since it renewed the hold. `rejection`: the agent's final answer to Rollback.
    """

    since_renewal: float = float("inf")
    rejection: DriverError | None = None


async def observe(
    api: Api, agents: RollbackAgents, rollback: Object, driver: str, now: float, process: ProcessState
) -> ObservedRollback:
    """Read everything that the next action depends on. Raises the errors of the API; those of the agent are values.

    The agent is asked last: what the API showed as ready is in its answer.
    """
    spec, status = parse_spec(rollback), parse_status(rollback)
    objects = await _objects(api, spec)
    target = resolve(spec, objects, driver)
    pv, completed = await _pv(api, spec, status, objects, driver)
    safety_snapshots = await api.list_served(SNAPSHOTS, spec.namespace, SAFETY_LABEL)
    volume = await _volume(agents, status, target)
    held = isinstance(volume, VolumeDescription) and volume.hold is not None and volume.hold.holder == spec.holder
    waits = isinstance(target, ResolvedReferences) and not held
    pods = pods_using(await api.list_served(PODS, spec.namespace), spec.pvc) if waits else []
    cleanup = status.phase is Phase.COMPLETED and status.has_finalizer
    return ObservedRollback(
        spec=spec,
        status=status,
        now=now,
        driver=driver,
        target=target,
        completed=completed,
        volume=volume,
        pv=pv,
        pods=pods,
        classes=await api.list_served(SNAPSHOT_CLASSES) if spec.safety else [],
        safety_snapshots=safety_snapshots,
        safety_handles=await _safety_handles(api, spec, safety_snapshots),
        needed_snapshots=await _needed_snapshots(api, spec) if cleanup else (),
        rejection=process.rejection,
        since_renewal=process.since_renewal,
    )


async def _objects(api: Api, spec: RollbackSpec) -> ReferencedObjects:
    pvc = await api.get(PVCS, spec.pvc, spec.namespace)
    pv_name = (pvc or {}).get("spec", {}).get("volumeName")
    pv = await api.get(PVS, pv_name) if pv_name else None
    snapshot = await api.get(SNAPSHOTS, spec.snapshot, spec.namespace)
    content_name = _content_name(snapshot)
    content = await api.get(SNAPSHOT_CONTENTS, content_name) if content_name else None
    return ReferencedObjects(pvc, pv, snapshot, content)


async def _pv(
    api: Api, spec: RollbackSpec, status: RollbackStatus, objects: ReferencedObjects, driver: str
) -> tuple[Object | None, dict[str, CompletionRecord] | UnresolvedReference]:
    """Return the volume's PersistentVolume and the completed rollbacks that it names.

    Before a volume was recorded it is the PVC's; afterwards that of the volume that may be held, whatever became of the PVC.
    """
    volume_id = volume_handle_of(spec, objects, driver)
    pv: Any = objects.pv
    if not isinstance(volume_id, UnresolvedReference) and status.volume_id in ("", volume_id):
        return pv, _completed(pv)
    if not status.pv_name:
        return None, {}
    pv = await api.get(PVS, status.pv_name)
    same = pv is not None and (pv["spec"].get("csi") or {}).get("volumeHandle") == status.volume_id
    return (pv, _completed(pv)) if same else (None, {})


def _completed(pv: Object | None) -> dict[str, CompletionRecord] | UnresolvedReference:
    try:
        return read_completed(pv)
    except Damaged as error:
        return UnresolvedReference("CompletedRollbacksUnreadable", str(error), final=False)


async def _volume(
    agents: RollbackAgents, status: RollbackStatus, target: ResolvedReferences | UnresolvedReference
) -> VolumeDescription | DriverError:
    """Ask the agent for the volume that may be held, else for the target; return the error if it cannot tell."""
    volume_id = status.volume_id if status.has_finalizer else ""
    if not volume_id:
        if isinstance(target, UnresolvedReference):
            return NotFound(target.message)
        volume_id = target.volume_id
    try:
        return await agents.describe_volume(volume_id)
    except DriverError as error:
        return error


async def _needed_snapshots(api: Api, spec: RollbackSpec) -> set[str]:
    """Return the names of VolumeSnapshots that a restore, or another unfinished rollback, reads or has had created."""
    names = {name for pvc in await api.list(PVCS, spec.namespace) if (name := restore_source(pvc))}
    for other in await api.list_served(ROLLBACKS, spec.namespace):
        if other["metadata"]["uid"] != spec.uid and unfinished(other):
            names.add((other.get("spec") or {}).get("snapshotName", ""))
            names.add((other.get("status") or {}).get("safetySnapshotName", ""))
    return names


async def _safety_handles(api: Api, spec: RollbackSpec, safety_snapshots: Objects) -> dict[str, str]:
    """Return the handle of each ready safety snapshot of this rollback, through a content that refers back to it."""
    handles = {}
    for snapshot in snapshots_of_rollback(spec, safety_snapshots):
        content_name = _content_name(snapshot)
        content = await api.get(SNAPSHOT_CONTENTS, content_name) if content_name else None
        ref = (content or {}).get("spec", {}).get("volumeSnapshotRef") or {}
        handle = ((content or {}).get("status") or {}).get("snapshotHandle")
        if handle and ref.get("uid") == snapshot["metadata"]["uid"]:
            handles[snapshot["metadata"]["name"]] = handle
    return handles


def _content_name(snapshot: Any) -> str:
    return str(((snapshot or {}).get("status") or {}).get("boundVolumeSnapshotContentName") or "")

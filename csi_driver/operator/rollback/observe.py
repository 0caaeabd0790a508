"""What is there now for one VolumeRollback: read from the API, never from a copy, and then from the disk's agent."""

from dataclasses import dataclass
from typing import Any

from csi_driver.domain.errors import Damaged, DriverError, NotFound
from csi_driver.kube.client import Api, Object
from csi_driver.kube.client import Objects as Listed
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
    read_progress,
    unfinished,
)
from csi_driver.operator.rollback.safety_snapshots import SAFETY_LABEL, snapshots_of_rollback
from csi_driver.operator.schedule.observed import restore_source
from csi_driver.service.agents import RollbackAgents, VolumeDescription


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What one process knows beside: never needed, but it saves calls and tells a refusal.

    `renewed`: seconds since it renewed the hold. `refused`: the agent's final no to Rollback.
    """

    renewed: float = float("inf")
    refused: DriverError | None = None


async def observe(
    api: Api, agents: RollbackAgents, rollback: Object, driver: str, now: float, memory: ProcessState
) -> ObservedRollback:
    """Everything that a decision needs. The agent is asked last: what the API showed as ready is in its answer.

    Raises Unavailable where the API does not answer.
    """
    wish, progress = parse_spec(rollback), read_progress(rollback)
    objects = await _objects(api, wish)
    target = resolve(wish, objects, driver)
    volume, spent = await _volume(api, wish, progress, objects, driver)
    safeties = await api.list_served(SNAPSHOTS, wish.namespace, SAFETY_LABEL)
    disk = await _disk(agents, progress, target)
    held = isinstance(disk, VolumeDescription) and disk.hold is not None and disk.hold.holder == wish.holder
    waits = isinstance(target, ResolvedReferences) and not held
    pods = pods_using(await api.list_served(PODS, wish.namespace), wish.claim) if waits else []
    return ObservedRollback(
        wish=wish,
        progress=progress,
        now=now,
        driver=driver,
        target=target,
        spent=spent,
        disk=disk,
        volume=volume,
        pods=pods,
        classes=await api.list_served(SNAPSHOT_CLASSES) if wish.safety else [],
        safeties=safeties,
        handles=await _handles(api, wish, safeties),
        needed=await _needed(api, wish) if progress.phase is Phase.COMPLETED and progress.guarded else (),
        refused=memory.refused,
        renewed=memory.renewed,
    )


async def _objects(api: Api, wish: RollbackSpec) -> ReferencedObjects:
    claim = await api.get(PVCS, wish.claim, wish.namespace)
    volume_name = (claim or {}).get("spec", {}).get("volumeName")
    volume = await api.get(PVS, volume_name) if volume_name else None
    snapshot = await api.get(SNAPSHOTS, wish.snapshot, wish.namespace)
    content_name = _bound(snapshot)
    content = await api.get(SNAPSHOT_CONTENTS, content_name) if content_name else None
    return ReferencedObjects(claim, volume, snapshot, content)


async def _volume(
    api: Api, wish: RollbackSpec, progress: RollbackStatus, objects: ReferencedObjects, driver: str
) -> tuple[Object | None, dict[str, CompletionRecord] | UnresolvedReference]:
    """The disk's PersistentVolume and the names that are spent on it.

    Before anything was recorded it is the claim's; afterwards that of the disk that may be held, whatever became of the
    claim meanwhile.
    """
    disk = volume_handle_of(wish, objects, driver)
    volume: Any = objects.volume
    if not isinstance(disk, UnresolvedReference) and progress.volume_id in ("", disk):
        return volume, _spent(volume)
    if not progress.volume_name:
        return None, {}
    volume = await api.get(PVS, progress.volume_name)
    same = volume is not None and (volume["spec"].get("csi") or {}).get("volumeHandle") == progress.volume_id
    return (volume, _spent(volume)) if same else (None, {})


def _spent(volume: Object | None) -> dict[str, CompletionRecord] | UnresolvedReference:
    try:
        return read_completed(volume)
    except Damaged as error:
        return UnresolvedReference("SpentNamesUnreadable", str(error), final=False)


async def _disk(
    agents: RollbackAgents, progress: RollbackStatus, target: ResolvedReferences | UnresolvedReference
) -> VolumeDescription | DriverError:
    """The disk that may be held, else the one that is meant; or why it cannot be looked at."""
    volume_id = progress.volume_id if progress.guarded else ""
    if not volume_id:
        if isinstance(target, UnresolvedReference):
            return NotFound(target.message)
        volume_id = target.volume_id
    try:
        return await agents.describe_volume(volume_id)
    except DriverError as error:
        return error


async def _needed(api: Api, wish: RollbackSpec) -> set[str]:
    """Names of the VolumeSnapshots that other rollbacks, not ended yet, go back to or have had made, or a restore reads."""
    names = {name for claim in await api.list(PVCS, wish.namespace) if (name := restore_source(claim))}
    for other in await api.list_served(ROLLBACKS, wish.namespace):
        if other["metadata"]["uid"] != wish.uid and unfinished(other):
            spec, status = other.get("spec") or {}, other.get("status") or {}
            names |= {spec.get("snapshotName", ""), status.get("safetySnapshotName", "")}
    return names


async def _handles(api: Api, wish: RollbackSpec, safeties: Listed) -> dict[str, str]:
    """The handle of each ready safety snapshot of this rollback, through a content that names it in return."""
    handles = {}
    for snapshot in snapshots_of_rollback(wish, safeties):
        name = _bound(snapshot)
        content = await api.get(SNAPSHOT_CONTENTS, name) if name else None
        ref = (content or {}).get("spec", {}).get("volumeSnapshotRef") or {}
        handle = ((content or {}).get("status") or {}).get("snapshotHandle")
        if handle and ref.get("uid") == snapshot["metadata"]["uid"]:
            handles[snapshot["metadata"]["name"]] = handle
    return handles


def _bound(snapshot: Any) -> str:
    return str(((snapshot or {}).get("status") or {}).get("boundVolumeSnapshotContentName") or "")

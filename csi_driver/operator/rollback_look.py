"""What is there now for one VolumeRollback: read from the API, never from a copy, and then from the disk's agent."""

from dataclasses import dataclass
from typing import Any

from csi_driver.domain.errors import Damaged, DriverError, NotFound
from csi_driver.kube.api import Api, Object
from csi_driver.kube.api import Objects as Listed
from csi_driver.kube.kinds import CLAIMS, CONTENTS, PODS, ROLLBACKS, SNAPSHOT_CLASSES, SNAPSHOTS, VOLUMES
from csi_driver.operator.rollback_actions import Seen
from csi_driver.operator.rollback_safety import SAFETY_LABEL, own
from csi_driver.operator.rollback_spent import Spent, read_spent
from csi_driver.operator.rollback_users import users
from csi_driver.operator.rollback_who import Objects, Target, Trouble, disk_of, resolve
from csi_driver.operator.rollback_wish import Phase, Progress, Wish, read_progress, read_wish, unfinished
from csi_driver.operator.schedule_facts import restored_from
from csi_driver.service.disks import Disk, Disks


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process knows beside: never needed, but it saves calls and tells a refusal.

    `renewed`: seconds since it renewed the hold. `refused`: the agent's final no to Rollback.
    """

    renewed: float = float("inf")
    refused: DriverError | None = None


async def look(api: Api, disks: Disks, rollback: Object, driver: str, now: float, memory: Memory) -> Seen:
    """Everything that a decision needs. The agent is asked last: what the API showed as ready is in its answer.

    Raises Unavailable where the API does not answer.
    """
    wish, progress = read_wish(rollback), read_progress(rollback)
    objects = await _objects(api, wish)
    target = resolve(wish, objects, driver)
    volume, spent = await _volume(api, wish, progress, objects, driver)
    safeties = await api.list_served(SNAPSHOTS, wish.namespace, SAFETY_LABEL)
    disk = await _disk(disks, progress, target)
    held = isinstance(disk, Disk) and disk.held is not None and disk.held.holder == wish.holder
    waits = isinstance(target, Target) and not held
    pods = users(await api.list_served(PODS, wish.namespace), wish.claim) if waits else []
    return Seen(
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


async def _objects(api: Api, wish: Wish) -> Objects:
    claim = await api.get(CLAIMS, wish.claim, wish.namespace)
    volume_name = (claim or {}).get("spec", {}).get("volumeName")
    volume = await api.get(VOLUMES, volume_name) if volume_name else None
    snapshot = await api.get(SNAPSHOTS, wish.snapshot, wish.namespace)
    content_name = _bound(snapshot)
    content = await api.get(CONTENTS, content_name) if content_name else None
    return Objects(claim, volume, snapshot, content)


async def _volume(
    api: Api, wish: Wish, progress: Progress, objects: Objects, driver: str
) -> tuple[Object | None, dict[str, Spent] | Trouble]:
    """The disk's PersistentVolume and the names that are spent on it.

    Before anything was recorded it is the claim's; afterwards that of the disk that may be held, whatever became of the
    claim meanwhile.
    """
    disk = disk_of(wish, objects, driver)
    volume: Any = objects.volume
    if not isinstance(disk, Trouble) and progress.volume_id in ("", disk):
        return volume, _spent(volume)
    if not progress.volume_name:
        return None, {}
    volume = await api.get(VOLUMES, progress.volume_name)
    same = volume is not None and (volume["spec"].get("csi") or {}).get("volumeHandle") == progress.volume_id
    return (volume, _spent(volume)) if same else (None, {})


def _spent(volume: Object | None) -> dict[str, Spent] | Trouble:
    try:
        return read_spent(volume)
    except Damaged as error:
        return Trouble("SpentNamesUnreadable", str(error), final=False)


async def _disk(disks: Disks, progress: Progress, target: Target | Trouble) -> Disk | DriverError:
    """The disk that may be held, else the one that is meant; or why it cannot be looked at."""
    volume_id = progress.volume_id if progress.guarded else ""
    if not volume_id:
        if isinstance(target, Trouble):
            return NotFound(target.message)
        volume_id = target.volume_id
    try:
        return await disks.look(volume_id)
    except DriverError as error:
        return error


async def _needed(api: Api, wish: Wish) -> set[str]:
    """Names of the VolumeSnapshots that other rollbacks, not ended yet, go back to or have had made, or a restore reads."""
    names = {name for claim in await api.list(CLAIMS, wish.namespace) if (name := restored_from(claim))}
    for other in await api.list_served(ROLLBACKS, wish.namespace):
        if other["metadata"]["uid"] != wish.uid and unfinished(other):
            spec, status = other.get("spec") or {}, other.get("status") or {}
            names |= {spec.get("snapshotName", ""), status.get("safetySnapshotName", "")}
    return names


async def _handles(api: Api, wish: Wish, safeties: Listed) -> dict[str, str]:
    """The handle of each ready safety snapshot of this rollback, through a content that names it in return."""
    handles = {}
    for snapshot in own(wish, safeties):
        name = _bound(snapshot)
        content = await api.get(CONTENTS, name) if name else None
        ref = (content or {}).get("spec", {}).get("volumeSnapshotRef") or {}
        handle = ((content or {}).get("status") or {}).get("snapshotHandle")
        if handle and ref.get("uid") == snapshot["metadata"]["uid"]:
            handles[snapshot["metadata"]["name"]] = handle
    return handles


def _bound(snapshot: Any) -> str:
    return str(((snapshot or {}).get("status") or {}).get("boundVolumeSnapshotContentName") or "")

"""Who is who: which disk and which snapshot a VolumeRollback means, from objects that were just read from the API.

Names alone decide nothing here: each link from claim to disk and from snapshot to its handle is checked in both
directions and by UID, so that nobody reaches a disk or a snapshot outside their namespace by an object that was
re-pointed. Whether the snapshot is one of that disk is the agent's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_driver.operator.rollback.resource import RollbackSpec

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResolvedReferences:
    """The disk and the snapshot that are meant, by handle."""

    volume_id: str
    snapshot_id: str
    volume_name: str
    """The PersistentVolume's."""


@dataclass(frozen=True, slots=True)
class UnresolvedReference:
    """Why there is no going on. `final`: time alone does not change it."""

    reason: str
    message: str
    final: bool = True


@dataclass(frozen=True, slots=True)
class ReferencedObjects:
    """What the names in a VolumeRollback lead to; None: there is no such object."""

    claim: Object | None = None
    volume: Object | None = None
    snapshot: Object | None = None
    content: Object | None = None


def resolve(wish: RollbackSpec, objects: ReferencedObjects, driver: str) -> ResolvedReferences | UnresolvedReference:
    """The target, or the first thing that is not as it must be."""
    disk = volume_handle_of(wish, objects, driver)
    if isinstance(disk, UnresolvedReference):
        return disk
    cut = _snapshot_handle(wish, objects.snapshot, objects.content, driver)
    if isinstance(cut, UnresolvedReference):
        return cut
    return ResolvedReferences(disk, cut, objects.volume["metadata"]["name"] if objects.volume else "")


def volume_handle_of(wish: RollbackSpec, objects: ReferencedObjects, driver: str) -> str | UnresolvedReference:
    """The handle of the claim's disk, or what is not as it must be."""
    claim, volume = objects.claim, objects.volume
    named = f"claim {wish.namespace}/{wish.claim}"
    if claim is None:
        return UnresolvedReference("ClaimNotFound", f"{named} does not exist: it is waited for", final=False)
    if _terminating(claim):
        return UnresolvedReference("ClaimTerminating", f"{named} is being deleted: nothing is rolled back under it")
    if _status(claim).get("phase") != "Bound" or not claim["spec"].get("volumeName"):
        phase = _status(claim).get("phase", "not bound")
        return UnresolvedReference("ClaimNotBound", f"{named} has no disk yet ({phase}): it is waited for", final=False)
    volume_name = claim["spec"]["volumeName"]
    if volume is None:
        return UnresolvedReference("VolumeNotFound", f"PersistentVolume {volume_name} of {named} does not exist")
    ref = volume["spec"].get("claimRef") or {}
    if (ref.get("namespace"), ref.get("name"), ref.get("uid")) != (wish.namespace, wish.claim, _uid(claim)):
        return UnresolvedReference(
            "VolumeOfAnotherClaim",
            f"PersistentVolume {volume_name} does not name {named} as its claim (by namespace, name and UID), but "
            f"{ref.get('namespace', '')}/{ref.get('name', '')}: it is not that claim's disk",
        )
    if _terminating(volume):
        return UnresolvedReference("VolumeTerminating", f"PersistentVolume {volume_name} of {named} is being deleted")
    csi = volume["spec"].get("csi") or {}
    if csi.get("driver") != driver:
        return UnresolvedReference(
            "AnotherDriver",
            f"PersistentVolume {volume_name} of {named} belongs to {csi.get('driver') or 'no CSI driver'}, not to {driver}: "
            "only disks of this driver can be rolled back",
        )
    return str(csi["volumeHandle"])


def _snapshot_handle(
    wish: RollbackSpec, snapshot: Object | None, content: Object | None, driver: str
) -> str | UnresolvedReference:
    named = f"VolumeSnapshot {wish.namespace}/{wish.snapshot}"
    if snapshot is None:
        return UnresolvedReference("SnapshotNotFound", f"{named} does not exist: it is waited for", final=False)
    if _terminating(snapshot):
        return UnresolvedReference("SnapshotTerminating", f"{named} is being deleted: use another one")
    status = _status(snapshot)
    content_name = status.get("boundVolumeSnapshotContentName")
    if not content_name or not status.get("readyToUse"):
        error = (status.get("error") or {}).get("message")
        why = f" ({error})" if error else ""
        return UnresolvedReference("SnapshotNotReady", f"{named} is not ready{why}: it is waited for", final=False)
    if content is None:
        return UnresolvedReference("ContentNotFound", f"VolumeSnapshotContent {content_name} of {named} does not exist")
    ref = content["spec"].get("volumeSnapshotRef") or {}
    if (ref.get("namespace"), ref.get("name"), ref.get("uid")) != (wish.namespace, wish.snapshot, _uid(snapshot)):
        return UnresolvedReference(
            "ContentOfAnotherSnapshot",
            f"VolumeSnapshotContent {content_name} does not name {named} as its snapshot (by namespace, name and UID), "
            f"but {ref.get('namespace', '')}/{ref.get('name', '')}: it is not that snapshot's content",
        )
    if content["spec"].get("driver") != driver:
        return UnresolvedReference(
            "AnotherDriver",
            f"{named} was taken by {content['spec'].get('driver')}, not by {driver}: it is no way back here",
        )
    handle = _status(content).get("snapshotHandle")
    if not handle:
        return UnresolvedReference(
            "SnapshotNotReady", f"{named} has no snapshot on a disk yet: it is waited for", final=False
        )
    return str(handle)


def _terminating(item: Object) -> bool:
    return bool(item["metadata"].get("deletionTimestamp"))


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])


def _status(item: Object) -> Mapping[str, Any]:
    return item.get("status") or {}

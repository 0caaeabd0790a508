"""Deletes snapshots of a schedule, each only after the API itself has confirmed what the plan rested on."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from csi_driver.domain.errors import NotFound
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, PVS, SCHEDULES, SNAPSHOTS
from csi_driver.operator.labels import KEEP_LABEL
from csi_driver.operator.schedule.metrics import ScheduleMetrics
from csi_driver.operator.schedule.objects import CONSUMERS, KINDS, ObjectKey
from csi_driver.operator.schedule.plan import SnapshotToDelete
from csi_driver.operator.schedule.resource import Spec

Object = dict[str, Any]

BATCH_SIZE = 50
"""Deletions before the API is asked again: about a second's work. In a second a person may change their mind."""


class CacheView(Protocol):
    """What the informers show of a schedule's snapshots."""

    def consumer_namespaces(self, spec: Spec, names: Collection[str]) -> Collection[str]:
        """Return the namespaces from which some of these may be read."""
        ...

    def protected_names(self, spec: Spec, read: Collection[ObjectKey]) -> Collection[str]:
        """Return what must not be deleted while the snapshots at these places are being read."""
        ...


class SnapshotPruner:
    """The only code that deletes snapshots of schedules."""

    def __init__(self, api: Api, events: Events, metrics: ScheduleMetrics, cache: CacheView) -> None:
        self._api = api
        self._events = events
        self._metrics = metrics
        self._cache = cache

    async def prune(self, spec: Spec, deletions: Sequence[SnapshotToDelete], schedule: Object) -> None:
        """Delete the first of these. The informers show them go, the schedule is reconciled, and a new plan has the rest.

        What the API rejects is reported by an event and stays to be done. Raises Unavailable, and Conflict if what a deletion rested on
        has changed.
        """
        deleted = 0
        for begin in range(0, len(deletions), BATCH_SIZE):
            batch = deletions[begin : begin + BATCH_SIZE]
            for deletion in await self._confirmed(spec, batch, schedule):
                try:
                    deleted += await self._delete(spec, deletion)
                except ApiRejected as error:
                    await self._warn(schedule, f"{deletion.name}: {error}")
            if deleted >= BATCH_SIZE:
                return

    async def _confirmed(
        self, spec: Spec, deletions: Sequence[SnapshotToDelete], schedule: Object
    ) -> Sequence[SnapshotToDelete]:
        """Return the deletions that the API's current state permits.

        The preconditions of a deletion cover the snapshot alone: not its schedule's spec, not who has begun to read it, and not whether
        a younger snapshot still exists.
        """
        try:
            current = await self._api.get(SCHEDULES, spec.name, spec.namespace)
            if current is None or _spec_identity(current) != _spec_identity(schedule):
                raise Conflict(f"schedule {spec.namespace}/{spec.name} has changed since its deletions were planned")
            if current["metadata"].get("deletionTimestamp"):
                return ()  # its snapshots outlive it, and a finalizer may keep it for long
            await self._confirm_retained(spec, deletions)
            read = [
                (namespace, name)
                for namespace in self._cache.consumer_namespaces(spec, {deletion.name for deletion in deletions})
                for kind, snapshot_of in CONSUMERS.items()
                for obj in await self._api.list(kind, namespace)
                if (name := snapshot_of(obj))
            ]
        except (ApiRejected, NotFound) as error:
            await self._warn(schedule, f"cannot list the PVCs and rollbacks that use these snapshots: {error}")
            return ()
        protected = self._cache.protected_names(spec, read)
        return [deletion for deletion in deletions if deletion.name not in protected]

    async def _confirm_retained(self, spec: Spec, deletions: Sequence[SnapshotToDelete]) -> None:
        """A snapshot that is deleted because a younger one exists must not be the last one of its volume in truth."""
        for retained in {retained for deletion in deletions for retained in deletion.retained}:
            current = await self._api.get(KINDS[retained.kind], retained.name, spec.namespace)
            meta = (current or {}).get("metadata") or {}
            if meta.get("uid") != retained.uid or meta.get("deletionTimestamp"):
                raise Conflict(f"{spec.namespace}/{retained.name} was to be retained, and no longer exists")

    async def _delete(self, spec: Spec, deletion: SnapshotToDelete) -> bool:
        if deletion.kind == "group" and await self._any_member_kept(spec, deletion):
            return False
        if deletion.reason == "pvc" and await self._any_pvc_exists(spec, deletion):
            return False
        try:
            existed = await self._api.delete(
                KINDS[deletion.kind], deletion.name, spec.namespace, deletion.uid, deletion.version
            )
        except Conflict:
            return False  # it has changed: the next plan decides about it
        if existed:
            self._metrics.snapshot_deleted(spec.namespace, spec.name)
        return existed

    async def _any_member_kept(self, spec: Spec, deletion: SnapshotToDelete) -> bool:
        """A label on a member does not change the group, so no precondition covers it: ask for the members."""
        kept = await self._api.list(SNAPSHOTS, spec.namespace, labels=KEEP_LABEL)
        return any(
            owner.get("uid") == deletion.uid
            for snapshot in kept
            for owner in snapshot["metadata"].get("ownerReferences") or []
        )

    async def _any_pvc_exists(self, spec: Spec, deletion: SnapshotToDelete) -> bool:
        """Ask the API whether a PVC is gone: a cache that lags must not cost a volume all its snapshots."""
        for name, handle in deletion.volumes:
            pvc = await self._api.get(PVCS, name, spec.namespace)
            volume_name = ((pvc or {}).get("spec") or {}).get("volumeName") or ""
            if pvc is None:
                continue
            if not volume_name:
                return True  # its volume is not known yet: perhaps this one again
            volume = await self._api.get(PVS, volume_name)
            if volume is None or ((volume.get("spec") or {}).get("csi") or {}).get("volumeHandle") == handle:
                return True
        return False

    async def _warn(self, schedule: Object, message: str) -> None:
        await self._events.emit(schedule, "Warning", "DeleteFailed", message)


def _spec_identity(schedule: Object) -> tuple[Any, ...]:
    """Which schedule it is and what its spec is; not its status, which the controller writes."""
    meta = schedule["metadata"]
    return meta.get("uid"), meta.get("generation"), bool(meta.get("deletionTimestamp"))

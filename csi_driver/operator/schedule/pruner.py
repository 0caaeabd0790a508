"""Deleting snapshots of a schedule: each only after the API itself has confirmed what the decision rested on."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from csi_driver.domain.errors import NotFound
from csi_driver.kube.client import Api
from csi_driver.kube.errors import ApiRejected, Conflict
from csi_driver.kube.events import Events
from csi_driver.kube.resources import PVCS, PVS, SCHEDULES, SNAPSHOTS
from csi_driver.operator.schedule.metrics import ScheduleObserver
from csi_driver.operator.schedule.naming import KEEP
from csi_driver.operator.schedule.observed import CONSUMERS, KINDS, Place
from csi_driver.operator.schedule.planner import SnapshotToDelete
from csi_driver.operator.schedule.resource import Spec

Object = dict[str, Any]

AT_ONCE = 50
"""Deleted before the API is asked again: about a second's work. In a second a person may change their mind."""


class CacheView(Protocol):
    """What the mirrors show of the snapshots that a schedule has made."""

    def readers_of(self, spec: Spec, names: Collection[str]) -> Collection[str]:
        """The namespaces from which some of these may be read."""
        ...

    def kept(self, spec: Spec, read: Collection[Place]) -> Collection[str]:
        """What must stay while the snapshots at these places are being read."""
        ...


class SnapshotPruner:
    """The few lines that delete."""

    def __init__(self, api: Api, events: Events, observer: ScheduleObserver, shown: CacheView) -> None:
        self._api = api
        self._events = events
        self._observer = observer
        self._shown = shown

    async def carry_out(self, spec: Spec, removals: Sequence[SnapshotToDelete], schedule: Object) -> None:
        """Delete the first of these; once they are seen to go, the schedule is looked at again, and the rest decided on anew.

        What the API refuses is told and stays to be done. Raises Unavailable, and Conflict where something was to be deleted
        by what is not so any more.
        """
        deleted = 0
        for begin in range(0, len(removals), AT_ONCE):
            some = removals[begin : begin + AT_ONCE]
            for removal in await self._confirmed(spec, some, schedule):
                try:
                    deleted += await self._remove(spec, removal)
                except ApiRejected as error:
                    await self._events.emit(schedule, "Warning", "NotDeleted", f"{removal.name}: {error}")
            if deleted >= AT_ONCE:
                return

    async def _confirmed(
        self, spec: Spec, removals: Sequence[SnapshotToDelete], schedule: Object
    ) -> Sequence[SnapshotToDelete]:
        """What of this may go by what the API itself says now. The preconditions of a deletion cover the snapshot alone:
        neither what its schedule has come to want, nor who has begun to read it, nor whether a younger one still stands.
        """
        try:
            found = await self._api.get(SCHEDULES, spec.name, spec.namespace)
            if found is None or _spec_identity(found) != _spec_identity(schedule):
                raise Conflict(f"schedule {spec.namespace}/{spec.name} has changed since its removals were decided on")
            if found["metadata"].get("deletionTimestamp"):
                return ()  # what it has made outlives it, and a finalizer may keep it for long
            await self._confirm_what_stays(spec, removals)
            read = [
                (namespace, name)
                for namespace in self._shown.readers_of(spec, {removal.name for removal in removals})
                for kind, snapshot_of in CONSUMERS.items()
                for obj in await self._api.list(kind, namespace)
                if (name := snapshot_of(obj))
            ]
        except (ApiRejected, NotFound) as error:
            await self._events.emit(schedule, "Warning", "NotDeleted", f"what is in use cannot be asked: {error}")
            return ()
        stays = self._shown.kept(spec, read)
        return [removal for removal in removals if removal.name not in stays]

    async def _confirm_what_stays(self, spec: Spec, removals: Sequence[SnapshotToDelete]) -> None:
        """A snapshot that goes because a younger one is there must not be the last of its disk in truth."""
        for stay in {stay for removal in removals for stay in removal.stays}:
            found = await self._api.get(KINDS[stay.kind], stay.name, spec.namespace)
            meta = (found or {}).get("metadata") or {}
            if meta.get("uid") != stay.uid or meta.get("deletionTimestamp"):
                raise Conflict(f"{spec.namespace}/{stay.name} was to stay, and is gone")

    async def _remove(self, spec: Spec, removal: SnapshotToDelete) -> bool:
        if removal.kind == "group" and await self._any_member_kept(spec, removal):
            return False
        if removal.why == "claim" and await self._any_claim_lives(spec, removal):
            return False
        try:
            there = await self._api.delete(
                KINDS[removal.kind], removal.name, spec.namespace, removal.uid, removal.version
            )
        except Conflict:
            return False  # it has changed: whether it goes is decided anew
        if there:
            self._observer.deleted(spec.namespace, spec.name)
        return there

    async def _any_member_kept(self, spec: Spec, removal: SnapshotToDelete) -> bool:
        """A label on a member does not change the group, so that no precondition covers it: look once more."""
        kept = await self._api.list(SNAPSHOTS, spec.namespace, labels=KEEP)
        return any(
            owner.get("uid") == removal.uid
            for snapshot in kept
            for owner in snapshot["metadata"].get("ownerReferences") or []
        )

    async def _any_claim_lives(self, spec: Spec, removal: SnapshotToDelete) -> bool:
        """That a claim is gone is asked of the API itself: a copy that lags must not cost a disk all its snapshots."""
        for name, handle in removal.disks:
            claim = await self._api.get(PVCS, name, spec.namespace)
            volume = ((claim or {}).get("spec") or {}).get("volumeName") or ""
            if claim is None:
                continue
            if not volume:
                return True  # which disk it gets is not known yet: perhaps this one again
            found = await self._api.get(PVS, volume)
            if found is None or ((found.get("spec") or {}).get("csi") or {}).get("volumeHandle") == handle:
                return True
        return False


def _spec_identity(schedule: Object) -> tuple[Any, ...]:
    """Which schedule it is and what it wants; not its status, which is written here."""
    meta = schedule["metadata"]
    return meta.get("uid"), meta.get("generation"), bool(meta.get("deletionTimestamp"))

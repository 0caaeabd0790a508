"""What a decision about a schedule does in the cluster. Every step may be repeated: names are derived, changes conditional."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from csi_driver.domain.errors import AlreadyExists, NotFound
from csi_driver.kube.api import Api
from csi_driver.kube.errors import Conflict, Refused
from csi_driver.kube.events import Events
from csi_driver.kube.kinds import CLAIMS, GROUP_SNAPSHOTS, SCHEDULES, SNAPSHOTS, VOLUMES, Kind
from csi_driver.operator.schedule_decide import Decision, Remove
from csi_driver.operator.schedule_facts import READERS
from csi_driver.operator.schedule_make import Label, Make
from csi_driver.operator.schedule_names import GROUP, KEEP, SCHEDULE
from csi_driver.operator.schedule_spec import Spec

Object = dict[str, Any]

KINDS: Mapping[str, Kind] = {"snapshot": SNAPSHOTS, "group": GROUP_SNAPSHOTS}

Kept = Callable[[Spec, Collection[str]], Collection[str]]
"""What must stay of a schedule's own while the snapshots of these names are being read."""

ASSUMED_SECONDS = 60.0
"""For which what was created is taken to be there, although no watch has shown it yet."""


class ScheduleObserver(Protocol):
    """Figures of schedules, each by namespace and name."""

    def made(self, namespace: str, name: str) -> None:
        """A snapshot or a group was created."""
        ...

    def failed(self, namespace: str, name: str) -> None:
        """One was found to have failed."""
        ...

    def deleted(self, namespace: str, name: str) -> None:
        """One was deleted."""
        ...

    def late(self, namespace: str, name: str, since: int | None) -> None:
        """Since when a run is missing (Unix time); None where none is."""
        ...

    def gone(self, namespace: str, name: str) -> None:
        """The schedule is not there any more."""
        ...


class Assumed:
    """What was just created and may not be seen yet: so that it is neither made twice nor left out of a count."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[Make, float]] = {}

    def add(self, namespace: str, make: Make) -> None:
        """Count it from now on."""
        self._made[namespace, make.name] = (make, time.monotonic() + ASSUMED_SECONDS)

    def drop(self, namespace: str, make: Make) -> None:
        """It was not made after all, or is seen."""
        self._made.pop((namespace, make.name), None)

    def unseen(self, seen: Mapping[Kind, Any]) -> dict[tuple[str, str], Make]:
        """All that no mirror in `seen` shows yet."""
        now = time.monotonic()
        for (namespace, name), (make, until) in list(self._made.items()):
            if until < now or seen[KINDS[make.kind]].get(name, namespace) is not None:
                del self._made[namespace, name]
        return {place: make for place, (make, _) in self._made.items()}


class Acts:
    """The few lines that change the cluster, which has these `kinds`."""

    def __init__(
        self,
        api: Api,
        kinds: Collection[Kind],
        events: Events,
        observer: ScheduleObserver,
        assumed: Assumed,
    ) -> None:
        self._api = api
        self._readers = {kind: read for kind, read in READERS.items() if kind in kinds}
        self._events = events
        self._observer = observer
        self._assumed = assumed

    async def carry_out(self, spec: Spec, decision: Decision, schedule: Object, kept: Kept) -> Mapping[str, Any]:
        """Label, make, delete; the status to write then. What the API refuses is told and stays to be done; Unavailable is
        raised, and Conflict where something was to be deleted for a schedule that has changed.
        """
        refused = await self._unlabelled(spec, decision, schedule)
        left = [make for make in decision.makes if make not in refused]
        for make in left:
            self._assumed.add(spec.namespace, make)
        try:
            while left:
                make = left[0]
                try:
                    await self._make(spec, make, schedule)
                except (Refused, NotFound) as error:
                    refused.append(make)
                    self._assumed.drop(spec.namespace, make)
                    await self._events.emit(schedule, "Warning", "NotMade", f"{', '.join(make.claims[:5])}: {error}")
                left.pop(0)
        finally:
            for make in left:
                self._assumed.drop(spec.namespace, make)
        for removal in await self._confirmed(spec, decision.removals, schedule, kept):
            try:
                await self._remove(spec, removal)
            except Refused as error:
                await self._events.emit(schedule, "Warning", "NotDeleted", f"{removal.name}: {error}")
        return still_waiting(decision.status, refused)

    async def write(self, schedule: Object, status: Mapping[str, Any]) -> Object:
        """Write the status if it is another one. Raises Conflict where the schedule was changed since."""
        before = schedule.get("status") or {}
        patch: Object = {key: value for key, value in status.items() if before.get(key) != value}
        patch |= {key: None for key in before if key not in status}
        if not patch:
            return schedule
        meta = schedule["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
        return await self._api.patch(SCHEDULES, meta["name"], body, meta["namespace"], "status")

    async def unlabel(self, namespace: str, claim: str, labels: Sequence[str]) -> None:
        """Take labels off a claim."""
        try:
            await self._api.patch(CLAIMS, claim, {"metadata": {"labels": dict.fromkeys(labels)}}, namespace)
        except NotFound:
            return

    async def _unlabelled(self, spec: Spec, decision: Decision, schedule: Object) -> list[Make]:
        """Label; returns the groups that must not be made now: a claim would be missing in it, or be in it by mistake."""
        groups = [make for make in decision.makes if make.kind == "group"]
        wrong: set[str] = set()
        for label in decision.labels:
            try:
                await self._label(spec, label)
            except Refused as error:
                # Which group a label that stays belongs to is not known here: none is made then.
                wrong |= {label.node} if label.node else {make.node for make in groups}
                await self._events.emit(schedule, "Warning", "NotLabelled", f"{label.claim}: {error}")
        return [make for make in groups if make.node in wrong]

    async def _label(self, spec: Spec, label: Label) -> None:
        if not label.node:
            await self.unlabel(spec.namespace, label.claim, [GROUP + spec.name])
            return
        try:
            await self._api.patch(
                CLAIMS, label.claim, {"metadata": {"labels": {GROUP + spec.name: label.node}}}, spec.namespace
            )
        except NotFound:
            return  # the group is made of the claims that are there

    async def _make(self, spec: Spec, make: Make, schedule: Object) -> None:
        try:
            await self._api.create(KINDS[make.kind], dict(make.body), spec.namespace)
        except AlreadyExists:
            found = await self._api.get(KINDS[make.kind], make.name, spec.namespace)
            if found and (found["metadata"].get("labels") or {}).get(SCHEDULE) != spec.label:
                await self._events.emit(
                    schedule, "Warning", "NameTaken", f"{make.name} is there and not this schedule's"
                )
            return
        self._observer.made(spec.namespace, spec.name)

    async def _confirmed(
        self, spec: Spec, removals: Sequence[Remove], schedule: Object, kept: Kept
    ) -> Sequence[Remove]:
        """What of this may go by what the API itself says now. The preconditions of a deletion cover the snapshot alone:
        neither what its schedule has come to want, nor who has begun to read it.
        """
        if not removals:
            return ()
        try:
            found = await self._api.get(SCHEDULES, spec.name, spec.namespace)
            if found is None or _wish(found) != _wish(schedule):
                raise Conflict(f"schedule {spec.namespace}/{spec.name} has changed since its removals were decided on")
            read: set[str] = set()
            for kind, snapshot_of in self._readers.items():
                read |= {name for obj in await self._api.list(kind, spec.namespace) if (name := snapshot_of(obj))}
        except (Refused, NotFound) as error:
            await self._events.emit(schedule, "Warning", "NotDeleted", f"what is in use cannot be asked: {error}")
            return ()
        if found["metadata"].get("deletionTimestamp"):
            return ()  # what it has made outlives it, and a finalizer may keep it for long
        stays = kept(spec, read)
        return [removal for removal in removals if removal.name not in stays]

    async def _remove(self, spec: Spec, removal: Remove) -> None:
        if removal.kind == "group" and await self._any_member_kept(spec, removal):
            return
        if removal.why == "claim" and await self._any_claim_lives(spec, removal):
            return
        try:
            there = await self._api.delete(
                KINDS[removal.kind], removal.name, spec.namespace, removal.uid, removal.version
            )
        except Conflict:
            return  # it has changed: whether it goes is decided anew
        if there:
            self._observer.deleted(spec.namespace, spec.name)

    async def _any_member_kept(self, spec: Spec, removal: Remove) -> bool:
        """A label on a member does not change the group, so that no precondition covers it: look once more."""
        kept = await self._api.list(SNAPSHOTS, spec.namespace, labels=KEEP)
        return any(
            owner.get("uid") == removal.uid
            for snapshot in kept
            for owner in snapshot["metadata"].get("ownerReferences") or []
        )

    async def _any_claim_lives(self, spec: Spec, removal: Remove) -> bool:
        """That a claim is gone is asked of the API itself: a copy that lags must not cost a disk all its snapshots."""
        for name, handle in removal.disks:
            claim = await self._api.get(CLAIMS, name, spec.namespace)
            volume = ((claim or {}).get("spec") or {}).get("volumeName") or ""
            if claim is None:
                continue
            if not volume:
                return True  # which disk it gets is not known yet: perhaps this one again
            found = await self._api.get(VOLUMES, volume)
            if found is None or ((found.get("spec") or {}).get("csi") or {}).get("volumeHandle") == handle:
                return True
        return False


def _wish(schedule: Object) -> tuple[Any, ...]:
    """Which schedule it is and what it wants; not its status, which is written here."""
    meta = schedule["metadata"]
    return meta.get("uid"), meta.get("generation"), bool(meta.get("deletionTimestamp"))


def still_waiting(status: Mapping[str, Any], refused: Sequence[Make]) -> Mapping[str, Any]:
    """The status where some of what was to be made was not."""
    if not refused or "run" not in status:
        return status
    run = status["run"]
    names = {make.name for make in refused}
    return {
        **status,
        "run": {
            **run,
            "waiting": [*run["waiting"], *(claim for make in refused for claim in make.claims)],
            "making": [name for name in run["making"] if name not in names],
        },
    }

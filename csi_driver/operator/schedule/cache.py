"""The cluster as schedules see it: cached objects, indexed so that the reconciliation of a schedule reads only its own."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import (
    GROUP_CONTENTS,
    GROUP_SNAPSHOTS,
    PVCS,
    PVS,
    ROLLBACKS,
    SCHEDULES,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    Kind,
)
from csi_driver.kube.selectors import selects
from csi_driver.operator.schedule import trim
from csi_driver.operator.schedule.naming import GROUP, SCHEDULE
from csi_driver.operator.schedule.objects import (
    CONSUMERS,
    ObjectKey,
    read_group,
    read_pvc,
    read_snapshot,
    source_of,
)
from csi_driver.operator.schedule.observed import OwnedSnapshot, TargetPvc
from csi_driver.operator.schedule.resource import Spec

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a schedule."""

TRIMMERS: dict[Kind, Callable[[Object], Object]] = {
    SCHEDULES: lambda schedule: schedule,
    PVCS: trim.trim_pvc,
    PVS: trim.trim_volume,
    SNAPSHOTS: trim.trim_snapshot,
    SNAPSHOT_CONTENTS: trim.trim_content,
    GROUP_SNAPSHOTS: trim.trim_group,
    GROUP_CONTENTS: trim.trim_group_content,
    ROLLBACKS: trim.trim_rollback,
}
"""What an informer for a ScheduleCache must keep of each kind."""

OPTIONAL = (GROUP_SNAPSHOTS, GROUP_CONTENTS)
"""Kinds that a cluster may not serve."""


class ScheduleCache:
    """Indexes informers of all these kinds. Calls `changed` with the schedules that a change may concern."""

    def __init__(
        self, informers: Mapping[Kind, Informer], driver: str, changed: Callable[[Iterable[Key]], None] = lambda _: None
    ) -> None:
        self._informers = informers
        self._driver = driver
        self._changed = changed
        self._schedules: dict[str, dict[str, Object]] = defaultdict(dict)
        self._pvcs: dict[str, dict[str, Object]] = defaultdict(dict)
        # By namespace first, then label or UID: a manifest that is copied to another namespace has the same ones.
        self._snapshots: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._groups: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._members: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._contents: dict[str, set[str]] = defaultdict(set)
        self._of_handle: dict[str, set[str]] = defaultdict(set)
        self._reads: dict[str, dict[tuple[Kind, str], str]] = defaultdict(dict)
        self._bound_handles: dict[str, frozenset[str]] = {}
        self._unready: dict[tuple[Kind, ObjectKey], Object] = {}
        indexes: dict[Kind, Callable[[Object | None, Object | None], None]] = {
            SCHEDULES: self._schedule,
            PVCS: self._pvc,
            PVS: self._volume,
            SNAPSHOTS: self._snapshot,
            SNAPSHOT_CONTENTS: self._content,
            GROUP_SNAPSHOTS: self._group,
            ROLLBACKS: self._rollback,
        }
        self._unsubscribe = [informers[kind].subscribe(index) for kind, index in indexes.items() if kind in informers]

    def close(self) -> None:
        """Stop following the informers."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    @property
    def groups_served(self) -> bool:
        """Whether the cluster serves group snapshots."""
        return GROUP_SNAPSHOTS in self._informers

    def keys(self) -> list[Key]:
        """Return all schedules."""
        return [(namespace, name) for namespace, schedules in self._schedules.items() for name in schedules]

    def schedule(self, key: Key) -> Object | None:
        """Return a schedule as the informer has it."""
        return self._schedules[key[0]].get(key[1]) if key[0] in self._schedules else None

    def pvcs(self, spec: Spec) -> list[TargetPvc]:
        """Return the PVCs that match, whether a snapshot of them can be taken or not."""
        return [self._read(obj) for obj in self._matching(spec)]

    def bound_handles(self, namespace: str) -> frozenset[str]:
        """Return the handles of the volumes of a namespace's PVCs; those of a terminating PVC too, until it is gone."""
        if namespace not in self._bound_handles:
            pvcs = self._pvcs.get(namespace, {}).values()
            self._bound_handles[namespace] = frozenset(filter(None, map(self._handle, pvcs)))
        return self._bound_handles[namespace]

    def pvcs_without_handle(self, namespace: str) -> frozenset[str]:
        """Return the PVCs that have no volume, or one that is not known yet: nothing may be concluded from them."""
        pvcs = self._pvcs.get(namespace, {})
        return frozenset(name for name, obj in pvcs.items() if not self._handle(obj))

    def owned_snapshots(self, spec: Spec, read: Iterable[ObjectKey] = ()) -> list[OwnedSnapshot]:
        """Return what the schedule created and still exists. `read`: snapshots in use that the informers may not show yet."""
        in_use, label = self._in_use(spec.namespace, read), (spec.namespace, spec.label)
        owned = [
            read_snapshot(obj, self._content_of(obj), spec.name, in_use)
            for obj in self._snapshots.get(label, {}).values()
        ]
        owned += [self._read_group(obj, spec.name, in_use) for obj in self._groups.get(label, {}).values()]
        return [snapshot for snapshot in owned if snapshot is not None]

    def protected_names(self, spec: Spec, read: Iterable[ObjectKey]) -> frozenset[str]:
        """Return what no rule may delete of it; see `owned_snapshots`."""
        return frozenset(snapshot.name for snapshot in self.owned_snapshots(spec, read) if snapshot.protected)

    def consumer_namespaces(self, spec: Spec, names: Collection[str]) -> frozenset[str]:
        """Return the namespaces from which some of its snapshots may be read: its own, and where they have another name."""
        own = spec.namespace
        members = [
            name
            for obj in self._groups.get((own, spec.label), {}).values()
            if obj["metadata"]["name"] in names
            for name in self._members.get((own, obj["metadata"].get("uid", "")), {})
        ]
        return frozenset(
            {own, *(namespace for name in [*names, *members] for namespace, _ in self._aliases(own, name))}
        )

    def snapshot_count(self, handle: str) -> int:
        """Return the number of snapshots of a volume, whoever created them."""
        return len(self._contents.get(handle, ()))

    def labelled(self, spec: Spec) -> dict[str, str]:
        """Return the PVCs that carry the schedule's group label, and its value."""
        key = GROUP + spec.name
        values = {}
        for name, obj in self._pvcs.get(spec.namespace, {}).items():
            value = (obj["metadata"].get("labels") or {}).get(key)
            if value is not None:
                values[name] = value
        return values

    def stale_group_labels(self) -> Iterator[tuple[ObjectKey, list[str]]]:
        """Yield PVCs with labels of grouped schedules that no longer exist, and those labels."""
        for namespace, pvcs in self._pvcs.items():
            for name, obj in pvcs.items():
                stale = [
                    label
                    for label in obj["metadata"].get("labels") or {}
                    if label.startswith(GROUP) and label.removeprefix(GROUP) not in self._schedules.get(namespace, {})
                ]
                if stale:
                    yield (namespace, name), stale

    def in_flight(self) -> dict[ObjectKey, str]:
        """Return what schedules created and is still in progress: place and node."""
        in_flight: dict[ObjectKey, str] = {}
        for (kind, key), obj in self._unready.items():
            name = (obj["metadata"].get("annotations") or {}).get(SCHEDULE, "")
            if kind == SNAPSHOTS:
                snapshot = read_snapshot(obj, self._content_of(obj), name, frozenset())
            else:
                snapshot = self._read_group(obj, name, frozenset())
            if snapshot is not None and snapshot.in_progress and not snapshot.deleting:
                in_flight[key] = snapshot.node
        return in_flight

    # ---- reading

    def _matching(self, spec: Spec) -> Iterator[Object]:
        pvcs = self._pvcs.get(spec.namespace, {})
        if spec.claim_name:
            if spec.claim_name in pvcs:
                yield pvcs[spec.claim_name]
        elif spec.selector is not None:
            for obj in pvcs.values():
                if selects(spec.selector, obj["metadata"].get("labels") or {}):
                    yield obj

    def _read(self, pvc: Object) -> TargetPvc:
        name = (pvc.get("spec") or {}).get("volumeName") or ""
        return read_pvc(pvc, self._informers[PVS].get(name) if name else None, self._driver)

    def _handle(self, pvc: Object) -> str:
        name = (pvc.get("spec") or {}).get("volumeName") or ""
        volume = self._informers[PVS].get(name) if name else None
        return ((volume or {}).get("spec") or {}).get("csi", {}).get("volumeHandle") or ""

    def _content_of(self, snapshot: Object) -> Object | None:
        name = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName")
        return self._informers[SNAPSHOT_CONTENTS].get(name) if name else None

    def _read_group(self, group: Object, schedule: str, in_use: frozenset[str]) -> OwnedSnapshot | None:
        name = (group.get("status") or {}).get("boundVolumeGroupSnapshotContentName")
        content = self._informers[GROUP_CONTENTS].get(name) if name else None
        namespace, uid = _key(group)[0], group["metadata"].get("uid", "")
        members = [(obj, source_of(self._content_of(obj))) for obj in self._members.get((namespace, uid), {}).values()]
        return read_group(group, content, members, schedule, in_use)

    def _in_use(self, namespace: str, read: Iterable[ObjectKey]) -> frozenset[str]:
        """Return the names of a namespace's snapshots that a restore or a rollback is reading, in any namespace and by any name."""
        reads = {(where, name) for where, names in self._reads.items() for name in names.values()}
        return frozenset(name for key in reads.union(read) for where, name in self._aliases(*key) if where == namespace)

    def _aliases(self, namespace: str, snapshot: str) -> set[ObjectKey]:
        """Return all VolumeSnapshots of the same snapshot, in any namespace, this one included."""
        contents = (
            self._informers[SNAPSHOT_CONTENTS].get(name)
            for handle in self._handles(namespace, snapshot)
            for name in self._of_handle.get(handle, ())
        )
        return {(namespace, snapshot), *(_bound(content) for content in contents if content)}

    def _handles(self, namespace: str, snapshot: str) -> list[str]:
        obj = self._informers[SNAPSHOTS].get(snapshot, namespace)
        content = self._content_of(obj) if obj else None
        return [handle] if content and (handle := _snapshot_handle(content)) else []

    # ---- indexes

    def _schedule(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _key(new or old)
        _index(self._schedules[namespace], name, new)
        if old is None or new is None or _identity(old) != _identity(new):
            self._changed([(namespace, name)])

    def _pvc(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _key(new or old)
        _index(self._pvcs[namespace], name, new)
        self._note_consumer(PVCS, namespace, name, new)
        self._changed_in(namespace)

    def _rollback(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _key(new or old)
        self._note_consumer(ROLLBACKS, namespace, name, new)
        self._changed_in(namespace)

    def _note_consumer(self, kind: Kind, namespace: str, name: str, new: Object | None) -> None:
        _index(self._reads[namespace], (kind, name), CONSUMERS[kind](new) if new is not None else None)

    def _volume(self, old: Object | None, new: Object | None) -> None:
        owner = ((new or old or {}).get("spec") or {}).get("claimRef") or {}
        if owner.get("namespace"):
            self._changed_in(owner["namespace"])

    def _snapshot(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _key(new or old)
        for obj, value in ((old, None), (new, new)):
            if obj is None:
                continue
            if label := (obj["metadata"].get("labels") or {}).get(SCHEDULE):
                _index(self._snapshots[namespace, label], name, value)
            for owner in obj["metadata"].get("ownerReferences") or []:
                if owner.get("kind") == "VolumeGroupSnapshot":
                    group = (namespace, owner["uid"])
                    _index(self._members[group], name, value)
                    if not self._members[group]:
                        del self._members[group]
        self._note_unready(SNAPSHOTS, (namespace, name), new)
        self._notify_schedule_of(new or old, namespace)

    def _group(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _key(new or old)
        for obj, value in ((old, None), (new, new)):
            if obj is not None and (label := (obj["metadata"].get("labels") or {}).get(SCHEDULE)):
                _index(self._groups[namespace, label], name, value)
        self._note_unready(GROUP_SNAPSHOTS, (namespace, name), new)
        self._notify_schedule_of(new or old, namespace)

    def _content(self, old: Object | None, new: Object | None) -> None:
        for obj, add in ((old, False), (new, True)):
            if obj is None or (obj.get("spec") or {}).get("driver") != self._driver:
                continue
            for index, handle in ((self._contents, source_of(obj)), (self._of_handle, _snapshot_handle(obj))):
                if handle and add:
                    index[handle].add(obj["metadata"]["name"])
                elif handle:
                    _discard(index, handle, obj["metadata"]["name"])
        namespace, name = _bound(new or old or {})
        if (snapshot := self._informers[SNAPSHOTS].get(name, namespace)) is not None:
            self._notify_schedule_of(snapshot, namespace)

    def _note_unready(self, kind: Kind, key: ObjectKey, new: Object | None) -> None:
        ours = new is not None and SCHEDULE in (new["metadata"].get("labels") or {})
        unready = ours and not ((new or {}).get("status") or {}).get("readyToUse")
        _index(self._unready, (kind, key), new if unready else None)

    def _notify_schedule_of(self, obj: Object | None, namespace: str) -> None:
        meta = (obj or {}).get("metadata") or {}
        if name := (meta.get("annotations") or {}).get(SCHEDULE):
            self._changed([(namespace, name)])
        elif meta.get("ownerReferences"):
            for owner in meta["ownerReferences"]:
                group = (
                    self._informers[GROUP_SNAPSHOTS].get(owner.get("name", ""), namespace)
                    if self.groups_served
                    else None
                )
                self._notify_schedule_of(group, namespace)

    def _changed_in(self, namespace: str) -> None:
        self._bound_handles.pop(namespace, None)
        self._changed([(namespace, name) for name in self._schedules.get(namespace, {})])


def count_by_node(in_flight: dict[ObjectKey, str]) -> Counter[str]:
    """Return how many are in flight on each node."""
    return Counter(in_flight.values())


def _index(index: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        index.pop(key, None)
    else:
        index[key] = value


def _discard(index: dict[str, set[str]], key: str, name: str) -> None:
    """Remove a name, and the key with the last one: handles and UIDs never come again, and would pile up."""
    names = index.get(key, set())
    names.discard(name)
    if not names:
        index.pop(key, None)


def _key(obj: Object | None) -> ObjectKey:
    meta = (obj or {})["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _identity(schedule: Object) -> tuple[Any, ...]:
    """What of a schedule the controller does not write."""
    meta = schedule["metadata"]
    return meta.get("uid"), meta.get("generation"), schedule.get("spec")


def _snapshot_handle(content: Object) -> str:
    handle = (content.get("status") or {}).get("snapshotHandle")
    return str(handle or ((content.get("spec") or {}).get("source") or {}).get("snapshotHandle") or "")


def _bound(content: Object) -> ObjectKey:
    bound = (content.get("spec") or {}).get("volumeSnapshotRef") or {}
    return bound.get("namespace", ""), bound.get("name", "")

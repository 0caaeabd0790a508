"""The cluster as schedules see it: copies of its objects, indexed so that a look at one schedule reads only its own."""

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
from csi_driver.operator.schedule import trim as keep
from csi_driver.operator.schedule.naming import GROUP, SCHEDULE
from csi_driver.operator.schedule.observed import (
    CONSUMERS,
    OwnedSnapshot,
    Place,
    TargetClaim,
    read_claim,
    read_group,
    read_snapshot,
    source_of,
)
from csi_driver.operator.schedule.resource import Spec

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a schedule."""

TRIMMERS: dict[Kind, Callable[[Object], Object]] = {
    SCHEDULES: lambda schedule: schedule,
    PVCS: keep.keep_claim,
    PVS: keep.keep_volume,
    SNAPSHOTS: keep.keep_snapshot,
    SNAPSHOT_CONTENTS: keep.keep_content,
    GROUP_SNAPSHOTS: keep.keep_group,
    GROUP_CONTENTS: keep.keep_group_content,
    ROLLBACKS: keep.keep_rollback,
}
"""What a mirror for a View must keep of each kind."""

OPTIONAL = (GROUP_SNAPSHOTS, GROUP_CONTENTS)
"""Kinds that a cluster may not serve."""


class ScheduleCache:
    """Reads mirrors of all these kinds. `changed` is called with the schedules that a change may concern."""

    def __init__(
        self, mirrors: Mapping[Kind, Informer], driver: str, changed: Callable[[Iterable[Key]], None] = lambda _: None
    ) -> None:
        self._mirrors = mirrors
        self._driver = driver
        self._changed = changed
        self._schedules: dict[str, dict[str, Object]] = defaultdict(dict)
        self._claims: dict[str, dict[str, Object]] = defaultdict(dict)
        # By namespace first, and label or UID then: a manifest that is copied to another namespace says the same of itself.
        self._snapshots: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._groups: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._members: dict[tuple[str, str], dict[str, Object]] = defaultdict(dict)
        self._contents: dict[str, set[str]] = defaultdict(set)
        self._of_handle: dict[str, set[str]] = defaultdict(set)
        self._reads: dict[str, dict[tuple[Kind, str], str]] = defaultdict(dict)
        self._living: dict[str, frozenset[str]] = {}
        self._unready: dict[tuple[Kind, Place], Object] = {}
        indexes: dict[Kind, Callable[[Object | None, Object | None], None]] = {
            SCHEDULES: self._schedule,
            PVCS: self._claim,
            PVS: self._volume,
            SNAPSHOTS: self._snapshot,
            SNAPSHOT_CONTENTS: self._content,
            GROUP_SNAPSHOTS: self._group,
            ROLLBACKS: self._rollback,
        }
        self._ends = [mirrors[kind].subscribe(index) for kind, index in indexes.items() if kind in mirrors]

    def close(self) -> None:
        """Follow the mirrors no more."""
        for end in self._ends:
            end()

    @property
    def groups_served(self) -> bool:
        """Whether the cluster knows group snapshots."""
        return GROUP_SNAPSHOTS in self._mirrors

    def keys(self) -> list[Key]:
        """All schedules."""
        return [(namespace, name) for namespace, found in self._schedules.items() for name in found]

    def schedule(self, key: Key) -> Object | None:
        """One schedule as it was seen last."""
        return self._schedules[key[0]].get(key[1]) if key[0] in self._schedules else None

    def claims(self, spec: Spec) -> list[TargetClaim]:
        """The claims that match, whether a snapshot of them can be made or not."""
        return [self._read(obj) for obj in self._matching(spec)]

    def living(self, namespace: str) -> frozenset[str]:
        """Handles of the disks that claims of a namespace have; those of a terminating claim too, until it is gone."""
        if namespace not in self._living:
            claims = self._claims.get(namespace, {}).values()
            self._living[namespace] = frozenset(filter(None, map(self._handle, claims)))
        return self._living[namespace]

    def unsure(self, namespace: str) -> frozenset[str]:
        """Claims that have no disk, or one that is not known yet: nothing may be concluded of them."""
        claims = self._claims.get(namespace, {})
        return frozenset(name for name, obj in claims.items() if not self._handle(obj))

    def made(self, spec: Spec, read: Iterable[Place] = ()) -> list[OwnedSnapshot]:
        """What the schedule has made and is still there. `read`: snapshots in use of which the mirrors may not know yet."""
        in_use, label = self._in_use(spec.namespace, read), (spec.namespace, spec.label)
        found = [
            read_snapshot(obj, self._content_of(obj), spec.name, in_use)
            for obj in self._snapshots.get(label, {}).values()
        ]
        found += [self._read_group(obj, spec.name, in_use) for obj in self._groups.get(label, {}).values()]
        return [one for one in found if one is not None]

    def kept(self, spec: Spec, read: Iterable[Place]) -> frozenset[str]:
        """What must stay of it, whatever the rules say; see `made`."""
        return frozenset(one.name for one in self.made(spec, read) if one.unit.kept)

    def readers_of(self, spec: Spec, names: Collection[str]) -> frozenset[str]:
        """The namespaces from which some of what it has made may be read: its own, and where it has another name."""
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

    def used(self, handle: str) -> int:
        """How many snapshots there are of a disk, whoever made them."""
        return len(self._contents.get(handle, ()))

    def labelled(self, spec: Spec) -> dict[str, str]:
        """The claims that carry the schedule's group label, and its value."""
        key = GROUP + spec.name
        found = {}
        for name, obj in self._claims.get(spec.namespace, {}).items():
            value = (obj["metadata"].get("labels") or {}).get(key)
            if value is not None:
                found[name] = value
        return found

    def stale_group_labels(self) -> Iterator[tuple[Place, list[str]]]:
        """Claims with labels of grouped schedules that are gone, and those labels."""
        for namespace, claims in self._claims.items():
            for name, obj in claims.items():
                stale = [
                    label
                    for label in obj["metadata"].get("labels") or {}
                    if label.startswith(GROUP) and label.removeprefix(GROUP) not in self._schedules.get(namespace, {})
                ]
                if stale:
                    yield (namespace, name), stale

    def in_flight(self) -> dict[Place, str]:
        """What schedules have made and is still on its way: place and node."""
        flying: dict[Place, str] = {}
        for (kind, place), obj in self._unready.items():
            name = (obj["metadata"].get("annotations") or {}).get(SCHEDULE, "")
            if kind == SNAPSHOTS:
                one = read_snapshot(obj, self._content_of(obj), name, frozenset())
            else:
                one = self._read_group(obj, name, frozenset())
            if one is not None and one.busy and not one.going:
                flying[place] = one.node
        return flying

    # ---- reading

    def _matching(self, spec: Spec) -> Iterator[Object]:
        claims = self._claims.get(spec.namespace, {})
        if spec.claim:
            if spec.claim in claims:
                yield claims[spec.claim]
        elif spec.selector is not None:
            for obj in claims.values():
                if selects(spec.selector, obj["metadata"].get("labels") or {}):
                    yield obj

    def _read(self, claim: Object) -> TargetClaim:
        name = (claim.get("spec") or {}).get("volumeName") or ""
        return read_claim(claim, self._mirrors[PVS].get(name) if name else None, self._driver)

    def _handle(self, claim: Object) -> str:
        name = (claim.get("spec") or {}).get("volumeName") or ""
        volume = self._mirrors[PVS].get(name) if name else None
        return ((volume or {}).get("spec") or {}).get("csi", {}).get("volumeHandle") or ""

    def _content_of(self, snapshot: Object) -> Object | None:
        name = (snapshot.get("status") or {}).get("boundVolumeSnapshotContentName")
        return self._mirrors[SNAPSHOT_CONTENTS].get(name) if name else None

    def _read_group(self, group: Object, schedule: str, in_use: frozenset[str]) -> OwnedSnapshot | None:
        name = (group.get("status") or {}).get("boundVolumeGroupSnapshotContentName")
        content = self._mirrors[GROUP_CONTENTS].get(name) if name else None
        namespace, uid = _place(group)[0], group["metadata"].get("uid", "")
        members = [(obj, source_of(self._content_of(obj))) for obj in self._members.get((namespace, uid), {}).values()]
        return read_group(group, content, members, schedule, in_use)

    def _in_use(self, namespace: str, read: Iterable[Place]) -> frozenset[str]:
        """Names of a namespace's snapshots that a restore or a rollback anywhere is reading, by whatever name it knows them."""
        reads = {(where, name) for where, names in self._reads.items() for name in names.values()}
        return frozenset(
            name for place in reads.union(read) for where, name in self._aliases(*place) if where == namespace
        )

    def _aliases(self, namespace: str, snapshot: str) -> set[Place]:
        """All VolumeSnapshots of what one is a name of, in any namespace, and that one."""
        contents = (
            self._mirrors[SNAPSHOT_CONTENTS].get(name)
            for handle in self._handles(namespace, snapshot)
            for name in self._of_handle.get(handle, ())
        )
        return {(namespace, snapshot), *(_bound(content) for content in contents if content)}

    def _handles(self, namespace: str, snapshot: str) -> list[str]:
        obj = self._mirrors[SNAPSHOTS].get(snapshot, namespace)
        content = self._content_of(obj) if obj else None
        return [handle] if content and (handle := _snapshot_handle(content)) else []

    # ---- indexes

    def _schedule(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _place(new or old)
        _index(self._schedules[namespace], name, new)
        if old is None or new is None or _asked(old) != _asked(new):
            self._changed([(namespace, name)])

    def _claim(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _place(new or old)
        _index(self._claims[namespace], name, new)
        self._reader(PVCS, namespace, name, new)
        self._changed_in(namespace)

    def _rollback(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _place(new or old)
        self._reader(ROLLBACKS, namespace, name, new)
        self._changed_in(namespace)

    def _reader(self, kind: Kind, namespace: str, name: str, new: Object | None) -> None:
        _index(self._reads[namespace], (kind, name), CONSUMERS[kind](new) if new is not None else None)

    def _volume(self, old: Object | None, new: Object | None) -> None:
        owner = ((new or old or {}).get("spec") or {}).get("claimRef") or {}
        if owner.get("namespace"):
            self._changed_in(owner["namespace"])

    def _snapshot(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _place(new or old)
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
        self._tell_schedule_of(new or old, namespace)

    def _group(self, old: Object | None, new: Object | None) -> None:
        namespace, name = _place(new or old)
        for obj, value in ((old, None), (new, new)):
            if obj is not None and (label := (obj["metadata"].get("labels") or {}).get(SCHEDULE)):
                _index(self._groups[namespace, label], name, value)
        self._note_unready(GROUP_SNAPSHOTS, (namespace, name), new)
        self._tell_schedule_of(new or old, namespace)

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
        if (snapshot := self._mirrors[SNAPSHOTS].get(name, namespace)) is not None:
            self._tell_schedule_of(snapshot, namespace)

    def _note_unready(self, kind: Kind, place: Place, new: Object | None) -> None:
        ours = new is not None and SCHEDULE in (new["metadata"].get("labels") or {})
        unready = ours and not ((new or {}).get("status") or {}).get("readyToUse")
        _index(self._unready, (kind, place), new if unready else None)

    def _tell_schedule_of(self, obj: Object | None, namespace: str) -> None:
        meta = (obj or {}).get("metadata") or {}
        if name := (meta.get("annotations") or {}).get(SCHEDULE):
            self._changed([(namespace, name)])
        elif meta.get("ownerReferences"):
            for owner in meta["ownerReferences"]:
                group = (
                    self._mirrors[GROUP_SNAPSHOTS].get(owner.get("name", ""), namespace) if self.groups_served else None
                )
                self._tell_schedule_of(group, namespace)

    def _changed_in(self, namespace: str) -> None:
        self._living.pop(namespace, None)
        self._changed([(namespace, name) for name in self._schedules.get(namespace, {})])


def flying_by_node(flying: dict[Place, str]) -> Counter[str]:
    """How many are in flight on each node."""
    return Counter(flying.values())


def _index(index: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        index.pop(key, None)
    else:
        index[key] = value


def _discard(index: dict[str, set[str]], key: str, name: str) -> None:
    """Take a name away, and with the last one its key: handles and UIDs never come again, and would pile up."""
    found = index.get(key, set())
    found.discard(name)
    if not found:
        index.pop(key, None)


def _place(obj: Object | None) -> Place:
    meta = (obj or {})["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _asked(schedule: Object) -> tuple[Any, ...]:
    """What of a schedule is not written by ourselves."""
    meta = schedule["metadata"]
    return meta.get("uid"), meta.get("generation"), schedule.get("spec")


def _snapshot_handle(content: Object) -> str:
    said = (content.get("status") or {}).get("snapshotHandle")
    return str(said or ((content.get("spec") or {}).get("source") or {}).get("snapshotHandle") or "")


def _bound(content: Object) -> Place:
    bound = (content.get("spec") or {}).get("volumeSnapshotRef") or {}
    return bound.get("namespace", ""), bound.get("name", "")

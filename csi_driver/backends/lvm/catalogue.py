"""What the logical volumes of a pool are, by their names and tags alone: pure, from one report of `lvs` and the tags of the group.

Of all logical volumes of one kind and hash that may be seen, the one with the highest generation is the object. A lower one, a
draft, and a member of a group that does not exist are trash: a crash left them. What a check makes and keeps is its own (checks.py). What no crash leaves is never trash: a logical
volume that has our name and no tag of ours lost it by somebody's hand, and holds data.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from csi_driver.backends.base import PoolContents
from csi_driver.backends.lvm.names import CHECK, KEPT, MEMBER, LvName, member_tag, parse
from csi_driver.domain.errors import Damaged
from csi_driver.domain.ids import ObjectId
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.records import load_group, load_snapshot, load_volume
from csi_driver.host.lvm.reports import LogicalVolume
from csi_driver.host.lvm.tags import DRAFT, Tagged, from_tags, records_of

_WAY_OUT = "look at its tags (lvs -o +lv_tags), and put them back or rename it"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The objects of a pool, with the names of the logical volumes that hold them, by hash.

    `groups`: the generation of each group's members. `trash`: names of what is to be removed, lower generations first, so that
    what is left after a crash in between never becomes the object again.
    """

    contents: PoolContents
    volumes: Mapping[str, str] = field(default_factory=dict)
    snapshots: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    trash: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    """An object that has a record of its own."""

    lv: LogicalVolume
    name: LvName
    record: bytes


def read(owner: str, pool: str, vg: str, report: Sequence[LogicalVolume], group_tags: Iterable[str]) -> Catalogue:
    """Return the objects of a pool. `group_tags`: all tags of the volume group `vg`.

    Raises Damaged, naming the logical volume that contradicts itself.
    """
    groups = {tagged.hash: tagged for tagged in _groups(group_tags, vg)}
    of_tag = {member_tag(tagged.hash, tagged.generation): tagged.hash for tagged in groups.values()}
    objects: dict[tuple[str, str], _Held] = {}
    members: dict[str, dict[str, LogicalVolume]] = {digest: {} for digest in groups}
    trash: list[LvName] = []
    for lv, name in ours(report):
        if CHECK in lv.tags:
            continue
        tags = [tag for tag in lv.tags if tag.startswith(MEMBER)]
        if DRAFT in lv.tags or (tags and tags[0] not in of_tag):
            trash.append(name)
        elif tags:
            members[of_tag[tags[0]]][name.hash] = lv
        else:
            held = _Held(lv, name, _record(lv, name, vg))
            low, high = sorted([held, objects.get((name.kind, name.hash), held)], key=lambda h: h.name.generation)
            if low is not high and not any(tag.startswith(KEPT) for tag in low.lv.tags):
                trash.append(low.name)
            objects[name.kind, name.hash] = high
    contents = _loaded(objects.values(), groups, members)
    hashes = [held.name.hash for held in objects.values() if held.name.kind == "volume"]
    hashes += [held.name.hash for held in objects.values() if held.name.kind == "snapshot"]
    items: list[Volume | Snapshot | GroupSnapshot] = [*contents.volumes, *contents.snapshots, *contents.groups]
    for item, digest in zip(items, [*hashes, *groups], strict=True):
        if item.id != ObjectId(owner, pool, digest):
            raise Damaged(f"volume group {vg} holds the record of {item.id} as that of {digest}: {_WAY_OUT}")
    names = {
        kind: {digest: held.lv.name for (k, digest), held in objects.items() if k == kind}
        for kind in ("volume", "snapshot")
    }
    of_members = {digest: lv.name for found in members.values() for digest, lv in found.items()}
    return Catalogue(
        contents,
        names["volume"],
        names["snapshot"] | of_members,
        {digest: tagged.generation for digest, tagged in groups.items()},
        tuple(map(str, sorted(trash, key=lambda name: (name.hash, name.generation)))),
    )


def ours(report: Iterable[LogicalVolume]) -> list[tuple[LogicalVolume, LvName]]:
    """Return the logical volumes that are objects, with their parsed names. All others are somebody else's."""
    return [(lv, name) for lv in report if (name := parse(lv.name)) is not None]


def _groups(tags: Iterable[str], vg: str) -> list[Tagged]:
    found = records_of(tags, vg)
    for tagged in found:
        if tagged.kind != "group":
            raise Damaged(f"volume group {vg} has the record of {tagged.kind}.{tagged.hash} in its tags: {_WAY_OUT}")
    newest = {tagged.hash: tagged for tagged in sorted(found, key=lambda tagged: tagged.generation)}
    return list(newest.values())


def _record(lv: LogicalVolume, name: LvName, vg: str) -> bytes:
    tagged = from_tags(lv.tags, f"{vg}/{lv.name}")
    if tagged is None:
        raise Damaged(f"logical volume {vg}/{lv.name} has lost its record, and may hold data: {_WAY_OUT}")
    if (tagged.kind, tagged.hash, tagged.generation) != (name.kind, name.hash, name.generation):
        whose = f"{tagged.kind}.{tagged.hash}.{tagged.generation}"
        raise Damaged(f"logical volume {vg}/{lv.name} has the record of {whose}: {_WAY_OUT}")
    return tagged.record


def _loaded(
    objects: Iterable[_Held], groups: Mapping[str, Tagged], members: Mapping[str, Mapping[str, LogicalVolume]]
) -> PoolContents:
    found = list(objects)
    return PoolContents(
        tuple(load_volume(held.record, held.lv.size) for held in found if held.name.kind == "volume"),
        tuple(load_snapshot(held.record, held.lv.size) for held in found if held.name.kind == "snapshot"),
        tuple(
            load_group(tagged.record, {member: lv.size for member, lv in members[digest].items()})
            for digest, tagged in groups.items()
        ),
    )

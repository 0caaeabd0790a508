"""Snapshots, group snapshots and clones of a pool of logical volumes: thin volumes that are reserved empty, and take over what
their sources hold at one moment by messages to the thin pool.

lvm makes and shows them, before and after the moment. At the moment itself it does nothing: it would suspend a device without a
deadline, and leave it suspended if it was killed. The reservation has the thin id and the size; the messages `delete` and
`create_snap` put the source's content behind that id, in 2 to 7 ms whatever the source holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csi_driver.backends.base import Draft, Moment, Target
from csi_driver.backends.block_access import FAST_TIMEOUT
from csi_driver.backends.freeze_session import MountedVolume
from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.names import Kind, LvName, member_tag
from csi_driver.backends.lvm.table import Table
from csi_driver.backends.snapshots import filled
from csi_driver.backends.volume_helpers import VolumeHelpers
from csi_driver.domain.errors import Precondition
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.records import dump_group, dump_snapshot, dump_volume
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.fs import mountinfo
from csi_driver.host.lvm.tags import DRAFT, to_tags


@dataclass(slots=True)
class Reservation:
    """The reserved logical volumes of a draft, by the hashes of the volumes whose content they are to take.

    `shown`: tags of the volume group that were, or may have been, added to show them.
    """

    names: dict[str, LvName]
    shown: tuple[str, ...] = ()


class ThinClones:
    """Reserves thin volumes, fills them (the SnapshotTechnology of the pool) and shows them. `pool_uuid` is known after `open`."""

    suspends = True

    def __init__(self, table: Table, changes: Changes, jobs: VolumeHelpers) -> None:
        self._table = table
        self._changes = changes
        self._jobs = jobs
        self.pool_uuid = ""

    async def prepare(self, target: Target, sources: Sequence[Volume]) -> Draft[Target]:
        """Reserve an empty thin volume for each source: one command of lvm each. Raises DriverError; then nothing is left."""
        for source in sources:
            refuse_thick(source)
        names: list[LvName]
        tags: list[str]
        names, tags = self._reserved(target)
        place = Reservation({source.id.hash: name for source, name in zip(sources, names, strict=True)})
        draft = Draft(target, tuple(sources), place)
        try:
            for source, name in zip(sources, names, strict=True):
                size = target.size if isinstance(target, Volume) else source.size
                await self._changes.create(name, size, tags, read_only=not isinstance(target, Volume))
            await self._changes.learn_ids([*map(str, names), *(self._table.of(source).name for source in sources)])
        except BaseException:
            await self.abandon(draft)
            raise
        return draft

    def _reserved(self, target: Volume | Snapshot | GroupSnapshot) -> tuple[list[LvName], list[str]]:
        """Return the names of what is to be made, and the tags by which nobody sees it before it is published."""
        if isinstance(target, GroupSnapshot):
            names = self._table.next_names("snapshot", [member.id.hash for member in target.members])
            return names, [member_tag(target.id.hash, names[0].generation)]
        kind: Kind = "volume" if isinstance(target, Volume) else "snapshot"
        return self._table.next_names(kind, [target.id.hash]), [DRAFT]

    async def publish(self, draft: Draft[Target], moment: Moment) -> Target:
        """Show a draft by one commit: the record of a volume or snapshot becomes its tags, that of a group the volume group's."""
        made = filled(draft, moment, [source.size for source in draft.sources])
        place: Reservation = draft.place
        names = list(place.names.values())
        if isinstance(made, GroupSnapshot):
            generation = names[0].generation
            place.shown = tuple(to_tags(dump_group(made), "group", made.id.hash, generation))
            await self._changes.tag_group(add=place.shown)
            self._table.groups[made.id.hash] = generation
        elif isinstance(made, Snapshot):
            await self._changes.retag(
                names[0], to_tags(dump_snapshot(made), "snapshot", made.id.hash, names[0].generation)
            )
        else:
            await self._changes.retag(names[0], to_tags(dump_volume(made), "volume", made.id.hash, names[0].generation))
        for name in names:
            self._table.show(name)
        return made

    async def abandon(self, draft: Draft[Any]) -> None:
        """Remove what was reserved, now or before the next change."""
        place: Reservation = draft.place
        await self._changes.discard([*map(str, place.names.values())], place.shown)

    async def take_idle(self, draft: Draft[Any], sources: Sequence[Volume]) -> None:
        """See SnapshotTechnology."""
        if sources:
            await self._jobs.run(sources, "perform", FAST_TIMEOUT, action=self.action(draft, sources))

    def action(self, draft: Draft[Any], sources: Sequence[Volume]) -> Mapping[str, Any]:
        """See SnapshotTechnology."""
        place: Reservation = draft.place
        messages = []
        for source in sources:
            reserved = self._table[str(place.names[source.id.hash])].thin_id
            messages += [f"delete {reserved}", f"create_snap {reserved} {self._table.of(source).thin_id}"]
        return {"kind": "thin_messages", "pool": self.pool_uuid, "messages": messages}

    async def member(self, volume: Volume, device: BlockDevice, mount: mountinfo.Mount | None) -> MountedVolume:
        """See SnapshotTechnology. Also what is frozen is suspended: the kernel asks for that of the origin of a `create_snap`."""
        return MountedVolume(volume, device, mount.point if mount else "", suspend=True)

    async def explain(self, volume: Volume) -> str:  # noqa: ARG002
        """See SnapshotTechnology."""
        return "is a thin volume, whose snapshot takes milliseconds: look for what keeps the pool's disks busy"


def refuse_thick(volume: Volume) -> None:
    """Raise Precondition for a volume of which neither snapshots nor clones can be made."""
    if volume.thick:
        raise Precondition(
            f"{volume.id} is thick, and in an LVM pool thick volumes have no snapshots, clones or rollbacks: copy its data to a "
            "volume of a class without provisioning=thick"
        )

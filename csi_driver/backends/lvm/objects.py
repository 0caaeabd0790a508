"""What is done to single objects of a pool of logical volumes: make, save, grow, replace and delete them, each in one commit."""

from collections.abc import Callable, Sequence

from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.clones import refuse_thick
from csi_driver.backends.lvm.names import Kind, parse
from csi_driver.backends.lvm.table import Table
from csi_driver.domain.errors import Damaged
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume
from csi_driver.domain.records import dump_volume
from csi_driver.host.lvm.tags import DRAFT, to_tags


class ThinObjects:
    """Makes and changes volumes. `trash`: takes the names of logical volumes that nobody sees any more."""

    def __init__(self, table: Table, changes: Changes, trash: Callable[[Sequence[str]], None]) -> None:
        self._table = table
        self._changes = changes
        self._trash = trash

    async def create(self, volume: Volume, source: Snapshot | None) -> None:
        """Make a volume, empty or with a snapshot's content. Raises DriverError; then nothing is left."""
        if self._table.named("volume", volume.id.hash):
            raise Damaged(f"{volume.id} exists already in the volume group")
        await self._make(volume, source)

    async def replace(self, volume: Volume, source: Snapshot | None) -> None:
        """Replace a volume's content and record, by nothing or a snapshot's content: the next generation appears in one commit."""
        refuse_thick(volume)
        old = self._table.of(volume).name
        await self._make(volume, source)
        self._trash([old])

    async def _make(self, volume: Volume, source: Snapshot | None) -> None:
        (name,) = self._table.next_names("volume", [volume.id.hash])
        record = to_tags(dump_volume(volume), "volume", name.hash, name.generation)
        try:
            if source is None:
                await self._changes.create(name, volume.size, record)
            elif (origin := self._table.of(source)).size == volume.size:
                await self._changes.clone(name, origin, record)
            else:
                # Its size is a second commit, so it is a draft until a third one.
                await self._changes.clone(name, origin, [DRAFT])
                await self._changes.extend(name, volume.size)
                await self._changes.retag(name, record)
        except BaseException:
            await self._changes.discard([str(name)])
            raise
        self._table.show(name)

    async def save(self, volume: Volume) -> None:
        """Replace a volume's record."""
        name = parse(self._table.of(volume).name)
        assert name is not None, "an object is found by its name"
        await self._changes.retag(name, to_tags(dump_volume(volume), "volume", name.hash, name.generation))

    async def expand(self, volume: Volume) -> None:
        """Make a volume larger, and its device with it."""
        lv = self._table.of(volume)
        if lv.size < volume.size:
            await self._changes.extend(lv.name, volume.size)

    async def delete(self, kind: Kind, digest: str) -> None:
        """Remove an object: the lower generations first, or one of them would be the object after a crash."""
        await self._changes.remove(self._table.generations(kind, digest))
        self._table.hide(kind, digest)

    async def delete_group(self, group: GroupSnapshot) -> None:
        """Remove a group by one commit; its members go after it, and at the next start if they cannot go now."""
        tags = [tag for tag in self._changes.group_tags if tag.startswith("tm.") and f".{group.id.hash}." in tag]
        await self._changes.tag_group(drop=tags)
        self._table.groups.pop(group.id.hash, None)
        names = [name for member in group.members for name in self._table.generations("snapshot", member.id.hash)]
        for member in group.members:
            self._table.hide("snapshot", member.id.hash)
        self._trash(names)

"""The logical volumes of a pool as this agent knows them: what the last report said, and every change since."""

from collections.abc import Iterable
from dataclasses import replace

from csi_driver.backends.lvm.catalogue import Catalogue, ours
from csi_driver.backends.lvm.names import Kind, LvName
from csi_driver.domain.errors import NotFound
from csi_driver.domain.model import Snapshot, Volume
from csi_driver.host.lvm.reports import LogicalVolume


class Table:
    """Names, tags and thin ids of logical volumes, and which of them is which object. Nothing here reads or changes anything."""

    def __init__(self) -> None:
        self._lvs: dict[str, LogicalVolume] = {}
        self._objects: dict[tuple[Kind, str], str] = {}
        self._highest: dict[tuple[Kind, str], int] = {}
        self.groups: dict[str, int] = {}
        """The generation of the members of each group, by its hash."""

    def load(self, report: Iterable[LogicalVolume]) -> None:
        """Take a report in place of what was known; which of them is which object stays."""
        self._lvs = {lv.name: lv for lv in report}
        for _, name in ours(self._lvs.values()):
            self._note(name)

    def adopt(self, catalogue: Catalogue) -> None:
        """Take over which logical volume is which object."""
        self._objects = {("volume", digest): name for digest, name in catalogue.volumes.items()}
        self._objects |= {("snapshot", digest): name for digest, name in catalogue.snapshots.items()}
        self.groups = dict(catalogue.groups)

    def __contains__(self, name: str) -> bool:
        return name in self._lvs

    def __getitem__(self, name: str) -> LogicalVolume:
        return self._lvs[name]

    def values(self) -> list[LogicalVolume]:
        """Return all logical volumes."""
        return list(self._lvs.values())

    def of(self, item: Volume | Snapshot) -> LogicalVolume:
        """Return the logical volume that holds an object. Raises NotFound."""
        kind: Kind = "volume" if isinstance(item, Volume) else "snapshot"
        name = self._objects.get((kind, item.id.hash), "")
        if name not in self._lvs:
            raise NotFound(f"{item.id} has no logical volume")
        return self._lvs[name]

    def named(self, kind: Kind, digest: str) -> str:
        """Return the name of the logical volume that is an object; empty: there is none."""
        return self._objects.get((kind, digest), "")

    def shown(self) -> list[str]:
        """Return the names of the logical volumes that are objects."""
        return list(self._objects.values())

    def generations(self, kind: Kind, digest: str) -> list[str]:
        """Return the names of all logical volumes of one hash, the lowest generation first."""
        found = [name for _, name in ours(self._lvs.values()) if (name.kind, name.hash) == (kind, digest)]
        return [str(name) for name in sorted(found, key=lambda name: name.generation)]

    def next_names(self, kind: Kind, digests: Iterable[str]) -> list[LvName]:
        """Return names that were never given out, all of one generation, which is higher than that of any of these hashes."""
        digests = list(digests)
        generation = 1 + max((self._highest.get((kind, digest), 0) for digest in digests), default=0)
        found = [LvName(kind, digest, generation) for digest in digests]
        for name in found:
            self._note(name)
        return found

    def put(self, lv: LogicalVolume) -> None:
        """Note a logical volume that was made or changed."""
        self._lvs[lv.name] = lv

    def drop(self, name: str) -> None:
        """Note that a logical volume was removed."""
        self._lvs.pop(name, None)
        self._objects = {key: held for key, held in self._objects.items() if held != name}

    def show(self, name: LvName) -> None:
        """Note that a logical volume is an object from now on."""
        self._objects[name.kind, name.hash] = str(name)

    def hide(self, kind: Kind, digest: str) -> None:
        """Note that an object is there no more, though its logical volume may be."""
        self._objects.pop((kind, digest), None)

    def learn(self, name: str, uuid: str = "", thin_id: int | None = None) -> None:
        """Note what only the kernel or a report tells of a logical volume that was made since the last one."""
        lv = self._lvs[name]
        self._lvs[name] = replace(lv, uuid=uuid or lv.uuid, thin_id=thin_id if thin_id is not None else lv.thin_id)

    def _note(self, name: LvName) -> None:
        key = (name.kind, name.hash)
        self._highest[key] = max(self._highest.get(key, 0), name.generation)

"""The bench that compares a real agent with the model, object by object, in everything that can be seen."""

import os
import subprocess
import time
from pathlib import Path

from model import KINDS, Cut, Disk, Group, Item, Nodes, capability, cut_of, grown, same
from model_bytes import read_device, read_files
from model_driven import Driven
from model_pool import SETTLE_SECONDS
from support.freezing import is_frozen

from csi_driver._pb import csi_pb2
from csi_driver.domain.model import SizeRange, Source
from csi_driver.host.fs import mountinfo
from csi_driver.rpc.clients.cli_client import Node


class Bench(Driven):
    """The bench. `run` and `restart` compare the two every time."""

    def check(self, loose: str = "", deep: bool = False) -> None:
        """Compare all that can be seen with the model. `deep`: also the file systems that are not mounted."""
        nodes = self.nodes()
        names = {item.id: item.name for item in self.world.values()}
        missing = [names[key] for key in names.keys() - nodes.keys()]
        more = [nodes[key].name for key in nodes.keys() - names.keys()]
        assert not missing, f"gone: {missing}"
        assert not more, f"not expected: {more}"
        for item in self.world.values():
            self._check_node(item, nodes[item.id], item.id == loose)
        if not loose:
            self._check_lists()
            self.pool.check(self.world)
        self._check_kernel(nodes, loose)
        items = [item for item in self.world.values() if not isinstance(item, Group) and (deep or not item.fs)]
        with self.pool.opened(items) as paths:
            for item, path in zip(items, paths, strict=True):
                self._check_content(item, path, nodes[item.id], item.id == loose)
                if deep and not item.fs and nodes[item.id].used_by and item.id != loose:
                    same(read_device(nodes[item.id].used_by[0]), item.content, f"{item.name!r} through its device")

    def safety_of(self, nodes: Nodes, disk_id: str) -> list[Cut]:
        """The safety snapshot of a rollback that was cut off before it happened."""
        disk = self.world.get(disk_id)
        if not isinstance(disk, Disk):
            return []
        mine = [n for n in nodes.values() if n.parent_id == disk_id and n.name.startswith("safety-")]
        made = [cut_of(disk, n.id, n.name, self.life()) for n in mine if n.id not in self.world]
        assert len(made) <= 1, f"more than one safety snapshot: {[cut.name for cut in made]}"
        self.counts["safety snapshots without their rollback"] += len(made)
        return made

    def _check_node(self, item: Item, node: Node, loose: bool) -> None:
        who = f"{type(item).__name__} {item.name!r}"
        life = (item.id, item.life)
        if not loose or life in self.seen:
            assert self.seen.setdefault(life, (node.uid, node.created)) == (node.uid, node.created), f"{who} is another"
        wanted: dict[str, object] = {"size": item.size, "name": item.name, "kind": KINDS[type(item)], "thick": False}
        if isinstance(item, Cut):
            wanted |= {"format": item.format, "parent_id": item.source[0], "group_id": item.group}
            wanted |= {"parent_uid": self.seen[item.source][0]}
        elif isinstance(item, Disk):
            rollbacks = tuple((r.name, r.snapshot_id, r.safety_id) for r in node.rollbacks)
            assert rollbacks == item.rollbacks, f"{who}: rollbacks {rollbacks}, expected {item.rollbacks}"
            wanted |= {"parent_id": item.parent[0], "parent_uid": self._parent_uid(item), "holder": item.holder}
            if not loose:
                wanted |= {"format": item.format}
                places = self.places(item.id, item.fs) if item.shown else []
                assert sorted(node.used_by) == places, f"{who}: seen at {node.used_by}, expected {places}"
                assert bool(node.device) == item.shown, f"{who}: device {node.device!r}, shown: {item.shown}"
        found = {key: getattr(node, key) for key in wanted}
        assert found == wanted, f"{who}: {found}, expected {wanted}"

    def _parent_uid(self, disk: Disk) -> str:
        # A clone knows the uid of the disk that it was made from for good, a restored one that of a snapshot that is there.
        parent = self.world.get(disk.parent[0])
        lives = parent is not None and parent.life == disk.parent[1]
        return self.seen[disk.parent][0] if disk.is_clone or lives else ""

    def _check_lists(self) -> None:
        disks = {i.id: i.size for i in self.world.values() if isinstance(i, Disk)}
        cuts = {i.id: (i.asked, i.source[0], i.group) for i in self.world.values() if isinstance(i, Cut)}
        volumes: list[csi_pb2.Volume] = []
        snapshots: list[csi_pb2.Snapshot] = []
        token = ""
        while True:
            page = self._csi.ListVolumes(csi_pb2.ListVolumesRequest(max_entries=4, starting_token=token), timeout=15)
            volumes += [entry.volume for entry in page.entries]
            if not (token := page.next_token):
                break
        while True:
            cut_page = self._csi.ListSnapshots(
                csi_pb2.ListSnapshotsRequest(max_entries=4, starting_token=token), timeout=15
            )
            snapshots += [entry.snapshot for entry in cut_page.entries]
            if not (token := cut_page.next_token):
                break
        assert len(volumes) == len(disks), "ListVolumes lists something twice, or too little"
        assert len(snapshots) == len(cuts), "ListSnapshots lists something twice, or too little"
        assert {v.volume_id: v.capacity_bytes for v in volumes} == disks
        found = {s.snapshot_id: (s.size_bytes, s.source_volume_id, s.group_snapshot_id) for s in snapshots}
        assert found == cuts
        assert all(s.ready_to_use for s in snapshots)
        (pool,) = self.client.pools()
        assert (pool.volumes, pool.snapshots, pool.committed) == (len(disks), len(cuts), sum(disks.values()))

    def _check_kernel(self, nodes: Nodes, loose: str) -> None:
        """Devices and mounts of what is published and of nothing else; sizes; nothing frozen."""
        disks = [item for item in self.world.values() if isinstance(item, Disk)]
        shown = {self.pool.key(disk): disk for disk in disks if disk.shown and disk.id != loose}
        free = {self.pool.key(disk) for disk in disks if disk.id == loose}
        slow = 0
        until = time.monotonic() + SETTLE_SECONDS
        while (devices := self.pool.devices()).keys() - free != shown.keys():
            slow = 1
            assert time.monotonic() < until, f"devices of {sorted(devices)}, expected {sorted(shown)}"
            time.sleep(0.02)
        self.counts["waits for devices"] += slow
        for key, disk in shown.items():
            size = int(Path(f"/sys/block/{devices[key]}/size").read_text()) * 512
            assert size == disk.size, f"{disk.name}: the device has {size} bytes, the disk {disk.size}"
        wanted = sorted(place for disk in shown.values() for place in self.places(disk.id, disk.fs))
        ignored = (self.staging(loose), self.target(loose)) if loose else ("?",)
        points = [m.point for m in mountinfo.read() if m.point.startswith(f"{self.root}/")]
        found = sorted(p for p in points if p != str(self.rig.pool) and not p.startswith(ignored))
        assert found == wanted, f"mounts at {found}, expected {wanted}"
        for disk in disks:
            for place in nodes[disk.id].used_by if disk.fs else ():
                assert not is_frozen(place), f"{disk.name} is frozen"

    def _check_content(self, item: Disk | Cut, path: Path, node: Node, loose: bool) -> None:
        who = f"{type(item).__name__} {item.name!r}"
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
        assert size == item.size, f"{who}: there are {size} bytes, not {item.size}"
        self.counts["contents compared"] += 1
        if not item.fs:
            same(path.read_bytes(), item.content, who)
        elif isinstance(item, Disk) and node.used_by:
            same(read_files(node.used_by[0]), item.content, who)
        elif item.format == "blank":
            # What is being formatted, for the first time or again, holds nobody's data.
            assert loose or self.pool.is_blank(path), f"{who} is blank and holds data"
        else:
            same(self._read_cold(path, item.fs), item.content, who)

    def _read_cold(self, path: Path, fs: str) -> dict[str, bytes]:
        """The files of a file system that nobody has mounted, read without changing a byte of it."""
        point = self.root / "looked"
        point.mkdir(exist_ok=True)
        options = self.pool.mount_options + {"xfs": "ro,norecovery,nouuid", "ext4": "ro,noload"}[fs]
        subprocess.run(["mount", "-t", fs, "-o", options, str(path), str(point)], check=True)
        try:
            return read_files(str(point))
        finally:
            subprocess.run(["umount", str(point)], check=True)
            until = time.monotonic() + SETTLE_SECONDS
            while str(path) in self.pool.devices() and time.monotonic() < until:
                time.sleep(0.005)

    def look(self, which: int, more: int) -> None:
        """Read an object as its user would: a disk through its device, a snapshot by restoring it (larger by `more`)."""
        # Reading a disk that was never staged would settle its format.
        seen = [i for i in self.world.values() if isinstance(i, Disk) and i.format != "blank" and not i.holder]
        items: list[Disk | Cut] = [*seen, *(i for i in self.world.values() if isinstance(i, Cut))]
        if not items:
            return
        item = items[which % len(items)]
        self.log(f"  look at {item.name!r} through a device")
        place, size, shown = item.id, item.size, isinstance(item, Disk) and item.shown
        if isinstance(item, Cut):
            size += more
            source = Source("snapshot", item.id)
            made = self.client.create_volume("look", SizeRange(size), [capability(item.fs)], source=source)
            assert made.size == size
            place = made.id
        if not shown:
            self.show(self.client, place, item.fs)
        found = read_files(self.target(place)) if item.fs else read_device(self.target(place))
        same(found, grown(item.content, size), f"{item.name!r} through a device")
        if not shown:
            self.hide(self.client, place)
        if isinstance(item, Cut):
            self.client.delete_volume(place)
        self.counts["looks through a device"] += 1
        self.check()

    def finish(self) -> None:
        """Delete everything, and find nothing left."""
        self.check(deep=True)
        for item in list(self.world.values()):
            if isinstance(item, Disk):
                if item.holder:
                    self.client.release(item.id, item.holder)
                if item.shown:
                    self.hide(self.client, item.id)
                self.client.delete_volume(item.id)
            elif isinstance(item, Group):
                self.client.delete_group(item.id)
            elif not item.group:
                self.client.delete_snapshot(item.id)
        self.world = {}
        self.check(deep=True)
        self.pool.wait_for_trash()
        self.steps = []

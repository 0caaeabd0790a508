"""The calls that the model test's steps are made of, each with what it does to the model."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine
from model import Content, Cut, Disk, Group, Item, Kill, Nodes, Op, World, capability, cut_of, drop, grown, id_of, put
from model_bench import Bench
from support.machine import CAP_SYS_RESOURCE, has_capability

from csi_driver.domain.model import SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client, CreatedVolume

DISK_NAMES, CUT_NAMES, GROUP_NAMES = 5, 6, 2
MOST_CUTS = 14
"""Above this no safety snapshots are made."""

KILLS: list[Kill] = [*[None] * 24, *(half / 2 for half in range(31)), *["seen"] * 8, *["early"] * 8]
"""Of the calls that change something; the numbers are milliseconds."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn for an action: numbers that choose, modulo what there is to choose from; a kill; more chance."""

    n: int
    m: int
    kill: Kill
    chance: random.Random

    @property
    def coin(self) -> bool:
        """Heads or tails, of a bit that chooses nothing else."""
        return bool(self.m & 32)


class Calls(RuleBasedStateMachine):
    """The calls that steps are made of; what a disk holds is the subclasses' part."""

    bench: ClassVar[Bench]
    kinds: ClassVar[tuple[str, ...]]

    def first_size(self, fs: str, number: int) -> int:
        raise NotImplementedError

    def growth(self, number: int) -> int:
        raise NotImplementedError

    def write(self, disk: Disk, chance: random.Random, lazy: bool) -> Content:
        """Write something to a disk that is shown, with or without an agent; returns what it holds then.

        Durably, unless `lazy`: then it is in the page cache, as a program leaves it that never calls fsync.
        """
        raise NotImplementedError

    # -- what there is

    @property
    def disks(self) -> list[Disk]:
        return [item for item in self.bench.world.values() if isinstance(item, Disk)]

    @property
    def cuts(self) -> list[Cut]:
        return [item for item in self.bench.world.values() if isinstance(item, Cut)]

    @property
    def groups(self) -> list[Group]:
        return [item for item in self.bench.world.values() if isinstance(item, Group)]

    def disk(self, number: int) -> Disk:
        return self.disks[number % len(self.disks)]

    def now(self, disk: Disk) -> Disk:
        """The disk as it is now."""
        found = self.bench.world[disk.id]
        assert isinstance(found, Disk)
        return found

    def own(self, disk: Disk) -> list[Cut]:
        """A disk's own snapshots."""
        return [cut for cut in self.cuts if cut.source == (disk.id, disk.life)]

    def pairs(self, own: bool) -> list[tuple[Disk, Cut]]:
        """Every disk with each of its own snapshots, or of the others."""
        return [(disk, cut) for disk in self.disks for cut in self.cuts if (cut in self.own(disk)) is own]

    def is_other_of_name(self, item_id: str, life: int) -> bool:
        """Whether an id is by now another object's."""
        now = self.bench.world.get(item_id)
        return now is not None and now.life != life

    def free_name(self, number: int) -> str:
        """The name of no disk that there is, often one that there was."""
        taken = {disk.name for disk in self.disks}
        free = [name for name in (f"disk{n}" for n in range(DISK_NAMES)) if name not in taken]
        return free[number % len(free)]

    def has_room(self) -> bool:
        return len(self.disks) < DISK_NAMES

    # -- calls

    def refused(self, code: str, call: Callable[[Client], Any]) -> None:
        self.bench.refused(code, call)

    def refused_rollback(self, code: str, disk: Disk, cut_id: str, name: str) -> None:
        self.refused(code, lambda client: client.roll_back(disk.id, cut_id, name))

    def remember(self, item: Item, call: Callable[[Client], Any], answer: Any) -> None:
        self.bench.answers[item.id, item.life] = (call, answer)

    def make(self, disk: Disk, kill: Kill, what: str, source: Source | None = None) -> None:
        """CreateVolume, of a size that is rounded up."""
        asked = SizeRange(disk.size - disk.odd)

        def call(client: Client) -> CreatedVolume:
            return client.create_volume(disk.name, asked, [capability(disk.fs)], source=source)

        def answer(made: CreatedVolume, _: Nodes) -> None:
            assert made == CreatedVolume(disk.id, disk.size)

        op = Op(what, disk, call, lambda nodes: disk.id in nodes, lambda world, _: put(world, disk), answer)
        self.remember(disk, call, self.bench.run(op, kill))

    def show(self, disk: Disk, kill: Kill = None) -> Disk:
        """Stage and publish; the first time settles a blank disk's format."""
        bench = self.bench
        shown = replace(disk, shown=True, format=(disk.fs or "raw") if disk.format == "blank" else disk.format)
        op = Op(
            f"show {disk.name!r}",
            disk,
            lambda client: bench.show(client, disk.id, disk.fs),
            lambda nodes: sorted(nodes[disk.id].used_by) == bench.places(disk.id, disk.fs),
            lambda world, _: put(world, shown),
            loose=disk.id,
            span=10.0,
        )
        if not disk.shown:
            bench.run(op, kill)
            assert not disk.fs or space_of(bench.target(disk.id)) > 0.7 * disk.size, "the file system has not grown"
        return self.now(disk)

    def hide(self, disk: Disk, kill: Kill = None) -> Disk:
        """Unpublish and unstage."""
        op = Op(
            f"hide {disk.name!r}",
            disk,
            lambda client: self.bench.hide(client, disk.id),
            lambda nodes: not nodes[disk.id].used_by and not nodes[disk.id].device,
            lambda world, _: put(world, replace(disk, shown=False)),
            loose=disk.id,
            span=3.0,
        )
        if disk.shown:
            self.bench.run(op, kill)
        return self.now(disk)

    def change(self, disk: Disk, chance: random.Random, lazy: bool = False) -> Disk:
        """Write to a disk that is shown."""
        self.bench.world = put(self.bench.world, replace(disk, content=self.write(disk, chance, lazy)))
        return self.now(disk)

    def grow(self, disk: Disk, number: int, kill: Kill) -> None:
        """ControllerExpandVolume, and NodeExpandVolume where the disk is in use."""
        size, target = disk.size + self.growth(number), self.bench.target(disk.id)
        odd = disk.odd if size == disk.size else 0
        # Without CAP_SYS_RESOURCE an ext4 grows at its next stage.
        online = disk.shown and (disk.fs != "ext4" or has_capability(CAP_SYS_RESOURCE))
        before = space_of(target) if online and disk.fs else 0

        def call(client: Client) -> Any:
            answered = client.expand_volume(disk.id, SizeRange(size))
            # A raw one follows by itself; to be told so does no harm.
            if online and (disk.fs or number % 3 == 0):
                assert client.grow(disk.id, target) == size
            return answered

        def answer(said: Any, _: Nodes) -> None:
            assert said == (size, bool(disk.fs))
            if before:
                assert space_of(target) - before > (size - disk.size) // 2, "the file system has not grown"

        op = Op(
            f"expand {disk.name!r}{' in use' if disk.shown else ''}",
            disk,
            call,
            lambda nodes: nodes[disk.id].size == size,
            lambda world, _: put(world, replace(disk, size=size, odd=odd, content=grown(disk.content, size))),
            answer,
            loose=disk.id if disk.shown else "",
            span=2.0 if disk.shown else 1.0,
        )
        self.bench.run(op, kill)

    def delete(self, disk: Disk, kill: Kill) -> None:
        op = Op(
            f"delete {disk.name!r}",
            disk,
            lambda client: client.delete_volume(disk.id),
            lambda nodes: disk.id not in nodes,
            lambda world, _: drop(world, disk.id),
        )
        self.bench.run(op, kill)

    def roll_back(self, disk: Disk, cut: Cut, draw: Draw, holder: str = "") -> None:
        """A rollback. Where the agent is killed, the disk is written to before the call is repeated."""
        name, life = f"rollback {self.bench.life()}", self.bench.life()
        skip = len(self.cuts) > MOST_CUTS or (not holder and draw.coin)

        def after(world: World, nodes: Nodes) -> World:
            rolled = nodes[disk.id].rollbacks[-1]
            assert (rolled.name, rolled.snapshot_id, bool(rolled.safety_id)) == (name, cut.id, not skip)
            old = world[disk.id]
            assert isinstance(old, Disk)
            done = (*old.rollbacks, (name, cut.id, rolled.safety_id))
            back = replace(old, content=grown(cut.content, old.size), format=cut.format, rollbacks=done)
            if skip:
                return put(world, back)
            return put(world, back, cut_of(old, rolled.safety_id, nodes[rolled.safety_id].name, life))

        def answer(rolled: Any, nodes: Nodes) -> None:
            node = nodes[disk.id].rollbacks[-1]
            said = (rolled.name, rolled.snapshot_id, rolled.at, rolled.safety_id)
            assert said == (node.name, node.snapshot_id, node.at, node.safety_id)

        def use(done: bool) -> None:
            # If it was done, this must outlive the call's repetition; if it was not, the safety snapshot must hold this too.
            if not holder and (done or draw.chance.random() < 0.7):
                used = self.change(self.show(self.now(disk)), draw.chance)
                if not done:
                    self.hide(used)

        op = Op(
            f"rollback of {disk.name!r} to {cut.name!r}",
            disk,
            lambda client: client.roll_back(disk.id, cut.id, name, holder=holder, skip_safety=skip),
            lambda nodes: any(rolled.name == name for rolled in nodes[disk.id].rollbacks),
            after,
            answer,
            loose=disk.id,
            then=use,
        )
        self.bench.run(op, draw.kill)

    def copy(self, source: Disk | Cut, draw: Draw) -> None:
        """A new disk from a snapshot or from a disk, as large or larger: then with a tail of zeroes."""
        name, size = self.free_name(draw.m), source.size + (self.growth(draw.m) if draw.coin else 0)
        disk = Disk(id_of("volume", name), name, self.bench.life(), source.fs, size, grown(source.content, size))
        disk = replace(disk, format=source.format, parent=(source.id, source.life), is_clone=isinstance(source, Disk))
        kind, what = (
            (Source("volume", source.id), "clone") if disk.is_clone else (Source("snapshot", source.id), "restore")
        )
        self.make(disk, draw.kill, f"{what} {name!r} of {source.name!r}", kind)


def space_of(point: str) -> int:
    """The size of a file system in bytes."""
    status = os.statvfs(point)
    return status.f_blocks * status.f_frsize

"""Random sequences of everything that a pool can do, and kills in the middle of it, against a plain model of bytes.

TIDEMARK_MODEL_EXAMPLES=N runs N random examples of each machine instead of the few that are the same every time;
TIDEMARK_MODEL_SEED=S repeats such a run, but for where its kills land.
"""

import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, rule
from model import (
    UNIT,
    Bench,
    Content,
    Cut,
    Disk,
    Group,
    Item,
    Kill,
    Nodes,
    Op,
    World,
    capability,
    cut_of,
    drop,
    grown,
    id_of,
    member_id,
    put,
    write_device,
    write_file,
    zero_device,
)

from csi_driver.domain.model import SizeRange, Source
from csi_driver.rpc.client import Client, Made

MIB = 1 << 20
CAP_SYS_RESOURCE = 24
DISK_NAMES, CUT_NAMES, GROUP_NAMES = 5, 6, 2
MOST_CUTS = 14
"""Above this no safety snapshots are made."""

KILLS: list[Kill] = [*[None] * 24, *(half / 2 for half in range(31)), *["seen"] * 8, *["early"] * 8]
"""Of the calls that change something; the numbers are milliseconds."""


SEED = st.integers(0, (1 << 64) - 1)


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


Method = Callable[["Machine", Draw], None]


@dataclass(frozen=True, slots=True)
class Action:
    """One kind of step, how often it is drawn, and when it can be."""

    do: Method
    weight: float
    possible: Callable[["Machine"], object]


ACTIONS: dict[str, Action] = {}


def action(weight: float, possible: Callable[["Machine"], object]) -> Callable[[Method], Method]:
    """Make a method one of the steps."""

    def enter(method: Method) -> Method:
        ACTIONS[method.__name__] = Action(method, weight, possible)
        return method

    return enter


class Machine(RuleBasedStateMachine):
    """All steps; what a disk holds is the subclasses' part."""

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

    def is_namesake(self, item_id: str, life: int) -> bool:
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

    def make(self, disk: Disk, kill: Kill, what: str, source: Source | None = None, odd: int = 0) -> None:
        """CreateVolume, of a size that is rounded up by `odd` bytes."""

        def call(client: Client) -> Made:
            return client.create_volume(disk.name, SizeRange(disk.size - odd), [capability(disk.fs)], source=source)

        def answer(made: Made, _: Nodes) -> None:
            assert made == Made(disk.id, disk.size)

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
            assert not disk.fs or _space(bench.target(disk.id)) > 0.7 * disk.size, "the file system has not grown"
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
        # Without CAP_SYS_RESOURCE an ext4 grows at its next stage.
        online = disk.shown and (disk.fs != "ext4" or _may_grow_ext4())
        before = _space(target) if online and disk.fs else 0

        def call(client: Client) -> Any:
            answered = client.expand_volume(disk.id, SizeRange(size))
            # A raw one follows by itself; to be told so does no harm.
            if online and (disk.fs or number % 3 == 0):
                assert client.grow(disk.id, target) == size
            return answered

        def answer(said: Any, _: Nodes) -> None:
            assert said == (size, bool(disk.fs))
            if before:
                assert _space(target) - before > (size - disk.size) // 2, "the file system has not grown"

        op = Op(
            f"expand {disk.name!r}{' in use' if disk.shown else ''}",
            disk,
            call,
            lambda nodes: nodes[disk.id].size == size,
            lambda world, _: put(world, replace(disk, size=size, content=grown(disk.content, size))),
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
        name, life = f"way back {self.bench.life()}", self.bench.life()
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

    # -- steps

    @action(2, has_room)
    def create(self, draw: Draw) -> None:
        fs, name = self.kinds[draw.m % len(self.kinds)], self.free_name(draw.n)
        size = self.first_size(fs, draw.m)
        disk = Disk(id_of("volume", name), name, self.bench.life(), fs, size, {} if fs else bytes(size))
        self.make(disk, draw.kill, f"create {name!r}", odd=draw.chance.choice([0, 1, 4095]))

    @action(2, lambda self: self.disks)
    def publish(self, draw: Draw) -> None:
        self.show(self.disk(draw.n), draw.kill)

    @action(2, lambda self: any(disk.shown for disk in self.disks))
    def unpublish(self, draw: Draw) -> None:
        shown = [disk for disk in self.disks if disk.shown]
        self.hide(shown[draw.n % len(shown)], draw.kill)

    @action(3, lambda self: self.disks)
    def overwrite(self, draw: Draw) -> None:
        disk = self.disk(draw.n)
        changed = self.change(self.show(disk), draw.chance)
        self.bench.check()
        if not disk.shown and draw.coin:
            self.hide(changed)

    @action(4, lambda self: self.disks)
    def snapshot(self, draw: Draw) -> None:
        """A name that is free makes a snapshot, of all that was written; one that is taken answers as at first, or so."""
        disk, name = self.disk(draw.n), f"cut{draw.m % CUT_NAMES}"
        old = self.bench.world.get(id_of("snapshot", name))
        held = -1
        if old is None and disk.shown and draw.kill is None:
            # Held open, as by whoever works on it: the last close of a device would write everything back.
            held = os.open(self.bench.target(disk.id), os.O_RDONLY | os.O_CLOEXEC)
            disk = self.change(disk, draw.chance, lazy=True)
        new = cut_of(disk, id_of("snapshot", name), name, self.bench.life())

        def call(client: Client) -> Any:
            return client.create_snapshot(disk.id, name)

        def answer(found: Any, nodes: Nodes) -> None:
            said = (found.id, found.size, found.source_id, found.created, found.ready)
            assert said == (new.id, new.size, disk.id, nodes[new.id].created, True)

        if isinstance(old, Cut) and old.source == new.source:
            assert call(self.bench.client) == self.bench.answers[old.id, old.life][1]
        elif old is not None:
            self.refused("ALREADY_EXISTS", call)
        else:
            what = f"snapshot {name!r} of {disk.name!r}{' in use' if disk.shown else ''}"
            span = 2.0 if disk.shown else 1.0
            op = Op(what, new, call, lambda nodes: new.id in nodes, lambda world, _: put(world, new), answer, span=span)
            try:
                self.remember(new, call, self.bench.run(op, draw.kill))
            finally:
                if held >= 0:
                    os.close(held)

    @action(2, lambda self: self.disks and len(self.groups) < GROUP_NAMES)
    def group(self, draw: Draw) -> None:
        """Of members that are mounted or not in use; a raw disk in use can only be alone in its group."""
        taken = {group.name for group in self.groups}
        name = next(name for name in (f"group{n}" for n in range(GROUP_NAMES)) if name not in taken)
        members = list({disk.id: disk for disk in (self.disk(draw.n + n) for n in range(1 + draw.m % 3))}.values())
        ids = [disk.id for disk in members]

        def call(client: Client) -> Any:
            return client.create_group(name, ids)

        if len(members) > 1 and any(disk.shown and not disk.fs for disk in members):
            self.refused("FAILED_PRECONDITION", call)
            members = [self.hide(disk) for disk in members]
        new = Group(id_of("group", name), name, self.bench.life(), sum(disk.size for disk in members))
        cuts = [
            cut_of(disk, member_id(name, disk.id), f"{name}\0{disk.id}", self.bench.life(), new.id) for disk in members
        ]

        def answer(found: Any, nodes: Nodes) -> None:
            assert found.id == new.id
            assert {(m.id, m.source_id, m.size) for m in found.members} == {(c.id, c.source[0], c.size) for c in cuts}
            assert {m.created for m in found.members} == {nodes[new.id].created}

        what, span = f"group {name!r} of {[disk.name for disk in members]}", 3.0 if members[0].shown else 1.0
        op = Op(
            what, new, call, lambda nodes: new.id in nodes, lambda world, _: put(world, new, *cuts), answer, span=span
        )
        self.remember(new, call, self.bench.run(op, draw.kill))

    @action(2, lambda self: self.disks and self.has_room())
    def clone(self, draw: Draw) -> None:
        self.copy(self.disk(draw.n), draw)

    @action(2, lambda self: self.cuts and self.has_room())
    def restore(self, draw: Draw) -> None:
        self.copy(self.cuts[draw.n % len(self.cuts)], draw)

    @action(2, lambda self: self.disks)
    def expand(self, draw: Draw) -> None:
        """In use or not; a disk in use has its file system grown too. Never smaller."""
        disk = self.disk(draw.n)
        self.grow(disk, draw.m, draw.kill)
        size = self.now(disk).size
        self.refused("OUT_OF_RANGE", lambda client: client.expand_volume(disk.id, SizeRange(4096, size - 4096)))
        assert self.bench.client.expand_volume(disk.id, SizeRange(4096))[0] == size

    @action(4, lambda self: self.pairs(own=True))
    def rollback(self, draw: Draw) -> None:
        pairs = self.pairs(own=True)
        disk, cut = pairs[draw.n % len(pairs)]
        if disk.shown:
            self.refused_rollback("FAILED_PRECONDITION", disk, cut.id, "in use")
        disk = self.hide(disk)
        if draw.chance.random() < 0.4:
            self.grow(disk, draw.m, None)
        self.roll_back(self.now(disk), cut, draw)

    @action(3, lambda self: any(disk.rollbacks for disk in self.disks))
    def rollback_repeated(self, draw: Draw) -> None:
        """A name that is known does nothing, whatever was written since; with another snapshot it is refused."""
        rolled = [disk for disk in self.disks if disk.rollbacks]
        disk = self.change(self.show(rolled[draw.n % len(rolled)]), draw.chance)
        name, cut_id, safety = disk.rollbacks[draw.m % len(disk.rollbacks)]
        for _ in ("in use", "not in use"):
            again = self.bench.client.roll_back(disk.id, cut_id, name)
            assert (again.already_done, again.safety_id) == (True, safety)
            self.bench.check(deep=True)
            for other in [cut.id for cut in self.cuts if cut.id != cut_id][:1]:
                self.refused(
                    "ALREADY_EXISTS", partial(Client.roll_back, volume_id=disk.id, snapshot_id=other, name=name)
                )
            disk = self.hide(disk)

    @action(1, lambda self: self.pairs(own=False))
    def rollback_to_anothers(self, draw: Draw) -> None:
        pairs = self.pairs(own=False)
        disk, cut = pairs[draw.n % len(pairs)]
        self.refused_rollback("INVALID_ARGUMENT", disk, cut.id, "another's")
        self.bench.check()

    @action(1, lambda self: self.disks)
    def delete_disk(self, draw: Draw) -> None:
        disk = self.disk(draw.n)
        if disk.shown:
            self.refused("FAILED_PRECONDITION", lambda client: client.delete_volume(disk.id))
        self.delete(self.hide(disk), draw.kill)
        self.bench.client.delete_volume(disk.id)

    @action(2, lambda self: self.cuts)
    def delete_snapshot(self, draw: Draw) -> None:
        """A group's member goes with its group alone."""
        cut = self.cuts[draw.n % len(self.cuts)]
        gone = [cut.id]
        if cut.group:
            self.refused("INVALID_ARGUMENT", lambda client: client.delete_snapshot(cut.id))
            gone = [cut.group, *(member.id for member in self.cuts if member.group == cut.group)]

        def call(client: Client) -> None:
            (client.delete_group if cut.group else client.delete_snapshot)(gone[0])

        what = f"delete_{'group' if cut.group else 'snapshot'} {cut.name!r}"
        op = Op(what, cut, call, lambda nodes: gone[0] not in nodes, lambda world, _: drop(world, *gone))
        self.bench.run(op, draw.kill)
        call(self.bench.client)

    @action(2, lambda self: self.pairs(own=True))
    def reborn(self, draw: Draw) -> None:
        """The same name deleted and made again has no claim on the old one's snapshots, nor they on it."""
        pairs = self.pairs(own=True)
        old = self.hide(pairs[draw.n % len(pairs)][0])
        cuts, size = self.own(old), self.first_size(old.fs, draw.m)
        self.delete(old, draw.kill if draw.coin else None)
        new = Disk(old.id, old.name, self.bench.life(), old.fs, size, {} if old.fs else bytes(size))
        self.make(new, None if draw.coin else draw.kill, f"create {new.name!r} again")
        new = self.hide(self.change(self.show(new), draw.chance))
        for cut in cuts:
            self.refused_rollback("INVALID_ARGUMENT", new, cut.id, "the old one's")
            if not cut.group:
                self.refused("ALREADY_EXISTS", partial(Client.create_snapshot, volume_id=new.id, name=cut.name))
        for name, cut_id, _ in old.rollbacks:
            # The old one's rollbacks are not the new one's: the name is unknown, and so the snapshot is looked at.
            code = "INVALID_ARGUMENT" if cut_id in self.bench.world else "NOT_FOUND"
            self.refused_rollback(code, new, cut_id, name)
        self.bench.check(deep=True)

    @action(2, lambda self: self.bench.world)
    def repeat(self, draw: Draw) -> None:
        """What made an object answers as it did, with the size of now; but not where a namesake is its source now."""
        known = [item for item in self.bench.world.values() if (item.id, item.life) in self.bench.answers]
        if not known:
            return
        item = known[draw.n % len(known)]
        call, first = self.bench.answers[item.id, item.life]
        sources = [item.parent] if isinstance(item, Disk) else []
        sources += [cut.source for cut in self.cuts if item.id in (cut.id, cut.group)]
        if any(self.is_namesake(*source) for source in sources):
            self.refused("ALREADY_EXISTS", call)
        else:
            assert call(self.bench.client) == (Made(item.id, item.size) if isinstance(item, Disk) else first)
        if isinstance(item, Disk):
            larger, how = SizeRange(item.size + 4096), [capability(item.fs)]
            self.refused("ALREADY_EXISTS", lambda client: client.create_volume(item.name, larger, how))
        self.bench.check()

    @action(1, lambda self: self.disks)
    def hold(self, draw: Draw) -> None:
        """A hold keeps everybody out, over a restart too, and lets its holder roll back."""
        disk = self.hide(self.disk(draw.n))

        def hold(client: Client) -> None:
            client.hold(disk.id, "me")

        held = replace(disk, holder="me")
        is_held = Op("hold", disk, hold, lambda nodes: bool(nodes[disk.id].holder), lambda world, _: put(world, held))
        self.bench.run(is_held, draw.kill)
        if draw.coin:
            self.bench.restart("kill")
        refusals: list[Callable[[Client], object]] = [
            lambda client: self.bench.show(client, disk.id, disk.fs),
            lambda client: client.delete_volume(disk.id),
            lambda client: client.expand_volume(disk.id, SizeRange(disk.size + UNIT)),
            lambda client: client.hold(disk.id, "another"),
            lambda client: client.release(disk.id, "another"),
        ]
        for refusal in refusals:
            self.refused("FAILED_PRECONDITION", refusal)
        for cut in self.own(disk)[:1]:
            self.refused_rollback("FAILED_PRECONDITION", disk, cut.id, "without it")
            self.roll_back(self.now(disk), cut, draw, "me")
        free = Op(
            "release",
            disk,
            lambda client: client.release(disk.id, "me"),
            lambda nodes: not nodes[disk.id].holder,
            lambda world, _: put(world, replace(self.now(disk), holder="")),
        )
        self.bench.run(free, draw.kill)

    @action(2, lambda _: True)
    def restart(self, draw: Draw) -> None:
        """The agent goes and comes; what is published is written to meanwhile. Then one object is read as a user would."""
        shown = [disk for disk in self.disks if disk.shown]

        def meanwhile() -> None:
            if shown:
                self.change(shown[draw.n % len(shown)], draw.chance)

        how = draw.chance.choice(["term", "kill", "twice"])
        self.bench.restart(how, draw.chance.uniform(0, 1500), meanwhile)
        self.bench.look(draw.m, self.growth(draw.n))

    @initialize(salt=SEED)
    def begin(self, salt: int) -> None:
        self.salt, self.number, self.done = salt, 0, Counter[str]()
        self.take("create")
        self.take("create")

    @rule(number=SEED)
    def step(self, number: int) -> None:
        self.take("", number)

    def take(self, name: str, number: int = 0) -> None:
        """One step, drawn or given."""
        # Hypothesis likes to draw the same for all steps of an example, or the least; here every step is to be another.
        self.number += 1
        chance = random.Random(f"{self.salt} {self.number} {number}")
        draw = Draw(chance.randrange(64), chance.randrange(64), chance.choice(KILLS), chance)
        if not name:
            # What the example has done seldom is done rather, so that a few examples do everything.
            possible = [name for name in ACTIONS if ACTIONS[name].possible(self)]
            weights = [ACTIONS[name].weight / (1 + self.done[name]) ** 3 for name in possible]
            name = chance.choices(possible, weights)[0]
        self.bench.steps.append(f"{self.number}. {name}, {draw.n}, {draw.m}")
        self.bench.sound = False
        self.done[name] += 1
        try:
            ACTIONS[name].do(self, draw)
        except BaseException:
            self.bench.steps.append(traceback.format_exc())
            raise
        self.bench.sound = True
        self.bench.counts.update(["steps", f"step: {name}"])

    def teardown(self) -> None:
        """At the end of each example all is compared and deleted, and nothing is left."""
        sound, self.bench.sound = self.bench.sound, False
        try:
            if sound:
                self.bench.finish()
                self.bench.sound = True
        except BaseException:
            self.bench.steps.append(traceback.format_exc())
            raise
        finally:
            if not self.bench.sound:
                self.bench.begin_anew()
        self.bench.counts["examples"] += sound


class RawMachine(Machine):
    """Raw block volumes of 16 to 64 units."""

    kinds = ("",)

    def first_size(self, fs: str, number: int) -> int:
        return (16 + number % 49) * UNIT

    def growth(self, number: int) -> int:
        return (1 + number % 16) * (UNIT if number % 2 else 4096)

    def write(self, disk: Disk, chance: random.Random, lazy: bool) -> Content:
        """A few writes: direct or not, whole blocks of 4096 bytes or sectors of 512, and zeroes."""
        target = self.bench.target(disk.id)
        assert isinstance(disk.content, bytes)
        content = bytearray(disk.content)
        for _ in range(chance.randint(1, 4)):
            how = "cached" if lazy else chance.choice(["direct", "direct", "cached", "cached", "zeroes"])
            grain = 512 if how == "cached" else 4096
            most = disk.size // grain
            # The ends are where sizes go wrong.
            at = chance.choice([0, most - 1, *(chance.randrange(most) for _ in range(4))])
            count = min(chance.choice([1, 2, 3, 16, 40]), most - at)
            data = bytes(count * grain) if how == "zeroes" else chance.randbytes(count * grain)
            if how == "zeroes":
                zero_device(target, at * grain, len(data))
            else:
                write_device(target, at * grain, data, how == "direct", lazy)
            content[at * grain : at * grain + len(data)] = data
        return bytes(content)


class FileMachine(Machine):
    """Mounted volumes with a few files."""

    kinds = ("ext4", "xfs", "ext4")

    def first_size(self, fs: str, number: int) -> int:
        return (320 if fs == "xfs" else 32) * MIB + number % 5 * MIB

    def growth(self, number: int) -> int:
        return 64 * MIB

    def write(self, disk: Disk, chance: random.Random, lazy: bool) -> Content:
        """Files are made, written over in part, and replaced by others; all of it durably."""
        target = self.bench.target(disk.id)
        assert isinstance(disk.content, dict)
        files = dict(disk.content)
        for _ in range(chance.randint(1, 3)):
            name = f"file{chance.randrange(4)}"
            if name in files and chance.random() < 0.2:
                Path(target, name).unlink()
                del files[name]
                name = "removed"
            old = files.get(name, b"")
            at = chance.randint(0, len(old))
            data = chance.randbytes(chance.choice([1, 100, 4096, 5000, 200_000]))
            write_file(target, name, at, data, lazy)
            files[name] = old[:at] + data + old[at + len(data) :]
        return files


def _may_grow_ext4() -> bool:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_RESOURCE & 1)


def _space(point: str) -> int:
    status = os.statvfs(point)
    return status.f_blocks * status.f_frsize


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One agent on one pool for all examples; each leaves the pool empty."""
    if os.geteuid() != 0 or not os.access("/dev/loop-control", os.W_OK) or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root, /dev/loop-control and mkfs.xfs (Debian's xfsprogs)")
    made = Bench(tmp_path_factory.mktemp("model"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def explore(bench: Bench, machine: type[Machine], examples: int, steps: int) -> None:
    """Run a machine: the same examples every time, or, where the environment says how many, random ones."""
    asked = int(os.environ.get("TIDEMARK_MODEL_EXAMPLES", "0"))
    machine.bench = bench
    bench.counts.clear()
    bench.failures.clear()
    run = get_state_machine_test(
        machine,
        settings=settings(
            max_examples=asked or examples,
            stateful_step_count=steps,
            derandomize=not asked,
            deadline=None,
            database=None,
            # Where a kill lands is chance, so that a smaller example is not found by trying, and a step takes a second.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
    number = int(os.environ.get("TIDEMARK_MODEL_SEED", "0"))
    if asked or number:
        number = number or random.SystemRandom().randrange(1, 1 << 32)
        print(f"TIDEMARK_MODEL_SEED={number}")
        run = seed(number)(run)
    try:
        run()
    except BaseException:
        for which, done in enumerate(bench.failures, 1):
            print(f"\n-- failure {which}; the agent's log: {bench.root}/failed-{which}.log\n{done}")
        raise
    finally:
        for name, count in sorted(bench.counts.items()):
            print(f"{count:6} {name}")
    unused = [name for name in ACTIONS if not bench.counts[f"step: {name}"]]
    assert not unused, f"never done: {unused}: other examples are needed"
    assert bench.counts["kills"] > examples, "hardly a kill: other examples are needed"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_raw_disks_and_snapshots_hold_what_the_model_says(bench: Bench) -> None:
    explore(bench, RawMachine, 5, 26)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_files_and_snapshots_hold_what_the_model_says(bench: Bench) -> None:
    explore(bench, FileMachine, 3, 20)

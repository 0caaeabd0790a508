"""The steps of the model test, and how they are drawn."""

import os
import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from model import UNIT, Cut, Disk, Group, Nodes, Op, capability, cut_of, drop, id_of, member_id, put
from model_calls import CUT_NAMES, GROUP_NAMES, KILLS, Calls, Draw

from csi_driver.domain.model import SizeRange
from csi_driver.rpc.clients.cli_client import Client, CreatedVolume

SEED = st.integers(0, (1 << 64) - 1)

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


class Machine(Calls):
    """All steps."""

    @action(2, lambda self: self.has_room())
    def create(self, draw: Draw) -> None:
        fs, name = self.kinds[draw.m % len(self.kinds)], self.free_name(draw.n)
        size = self.first_size(fs, draw.m)
        odd = draw.chance.choice([0, 1, 4095])
        disk = Disk(id_of("volume", name), name, self.bench.life(), fs, size, {} if fs else bytes(size), odd=odd)
        self.make(disk, draw.kill, f"create {name!r}")

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
            assert said == (new.id, new.asked, disk.id, nodes[new.id].created, True)

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
            assert {(m.id, m.source_id, m.size) for m in found.members} == {(c.id, c.source[0], c.asked) for c in cuts}
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
        """What made an object answers as it did, with the size of now; but not if another object of that name is its source now."""
        known = [item for item in self.bench.world.values() if (item.id, item.life) in self.bench.answers]
        if not known:
            return
        item = known[draw.n % len(known)]
        call, first = self.bench.answers[item.id, item.life]
        sources = [item.parent] if isinstance(item, Disk) else []
        sources += [cut.source for cut in self.cuts if item.id in (cut.id, cut.group)]
        if any(self.is_other_of_name(*source) for source in sources):
            self.refused("ALREADY_EXISTS", call)
        else:
            assert call(self.bench.client) == (CreatedVolume(item.id, item.size) if isinstance(item, Disk) else first)
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
                self.bench.begin_again()
        self.bench.counts["examples"] += sound

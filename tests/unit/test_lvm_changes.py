"""Changes of a pool of logical volumes against a volume group in memory: killed, or failed, at each commit of each operation."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from lvm_group import POOL, VG, Died, GroupInMemory, dies_at, fails_at

from csi_driver.backends.base import Moment, SnapshotTimings
from csi_driver.backends.lvm import catalogue
from csi_driver.backends.lvm.changes import Changes
from csi_driver.backends.lvm.clones import ThinClones
from csi_driver.backends.lvm.objects import ThinObjects
from csi_driver.backends.lvm.table import Table
from csi_driver.domain.errors import Busy
from csi_driver.domain.ids import PoolRef, member_name
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume, VolumeRequest

REF = PoolRef("node-1", "fast")
EXTENT = 4 << 20
State = dict[str, tuple[str, int, str]]


class NoJobs:
    """Messages go straight to the volume group in memory."""

    def __init__(self, group: GroupInMemory) -> None:
        self._group = group

    async def run(self, sources: Sequence[Volume], job: str, timeout: float, action: dict[str, Any]) -> None:
        assert (job, action["kind"]) == ("perform", "thin_messages")
        for message in action["messages"]:
            self._group.message(message)


class Agent:
    """What an agent has of a pool."""

    def __init__(self, group: GroupInMemory) -> None:
        self.group = group
        self.table = Table()
        self.changes = Changes(group, self.table, VG, POOL)  # type: ignore[arg-type]
        self.trash: list[str] = []
        self.objects = ThinObjects(self.table, self.changes, self.trash.extend)
        self.clones = ThinClones(self.table, self.changes, NoJobs(group))  # type: ignore[arg-type]
        self.changes.group_tags = group.tags
        self.table.load(group.lvs.values())
        self.known = catalogue.read("node-1", "fast", VG, list(group.lvs.values()), group.tags)
        self.table.adopt(self.known)
        self.trash.extend(self.known.trash)

    async def tidy(self) -> None:
        await self.changes.remove(self.trash)
        self.trash.clear()

    async def take(self, target: Any, *sources: Volume) -> Any:
        draft = await self.clones.prepare(target, sources)
        try:
            await self.clones.take_idle(draft, sources)
            return await self.clones.publish(draft, Moment(7, SnapshotTimings()))
        except Died:
            raise
        except BaseException:
            await self.clones.abandon(draft)
            raise


def volume(name: str, size: int = EXTENT, label: str = "") -> Volume:
    return Volume(REF.new_volume_id(name), name, f"uid-{name}", 1, size, VolumeRequest(name), label=label)


def snapshot(name: str, of: Volume, group: str = "") -> Snapshot:
    identity = REF.new_snapshot_id(name)
    return Snapshot(identity, name, f"uid-{name}", 1, of.size, str(of.id), of.uid, "blank", group=group)


def group_of(name: str, *sources: Volume) -> GroupSnapshot:
    identity = REF.new_group_id(name)
    members = tuple(snapshot(member_name(name, str(source.id)), source, identity.hash) for source in sources)
    return GroupSnapshot(identity, name, f"uid-{name}", 1, tuple(str(source.id) for source in sources), members)


A, B = volume("a"), volume("b", 2 * EXTENT)
S = snapshot("s", A)
G = group_of("g", A, B)


async def a_pool() -> GroupInMemory:
    """Two volumes, a snapshot, a group; each volume was written to since."""
    group = GroupInMemory()
    agent = Agent(group)
    for item, text in ((A, "old a"), (B, "old b")):
        await agent.objects.create(item, None)
        group.write(agent.table.of(item).name, text)
    await agent.take(S, A)
    await agent.take(G, A, B)
    for item, text in ((A, "new a"), (B, "new b")):
        group.write(agent.table.of(item).name, text)
    return group


def state(group: GroupInMemory) -> State:
    """What a new agent finds: each object's content, size and label."""
    agent = Agent(group)
    contents = agent.known.contents
    members = [member for made in contents.groups for member in made.members]
    found = {str(made.id): ("group", len(made.members), made.name) for made in contents.groups}
    for item in [*contents.volumes, *contents.snapshots, *members]:
        lv = agent.table.of(item)
        found[str(item.id)] = (group.read(lv.name), item.size, getattr(item, "label", ""))
    return found


OPERATIONS: dict[str, Callable[[Agent], Awaitable[Any]]] = {
    "create": lambda agent: agent.objects.create(volume("new"), None),
    "restore": lambda agent: agent.objects.create(volume("new"), S),
    "restore larger": lambda agent: agent.objects.create(volume("new", 3 * EXTENT), S),
    "clone": lambda agent: agent.take(volume("new", 3 * EXTENT), A),
    "save": lambda agent: agent.objects.save(replace(A, label="other")),
    "expand": lambda agent: agent.objects.expand(replace(A, size=3 * EXTENT)),
    "snapshot": lambda agent: agent.take(snapshot("new", A), A),
    "group": lambda agent: agent.take(group_of("new", A, B), A, B),
    "roll back": lambda agent: agent.objects.replace(replace(A, label="rolled"), S),
    "roll back to smaller": lambda agent: agent.objects.replace(replace(B, label="rolled"), S),
    "erase": lambda agent: agent.objects.replace(A, None),
    "delete volume": lambda agent: agent.objects.delete("volume", A.id.hash),
    "delete snapshot": lambda agent: agent.objects.delete("snapshot", S.id.hash),
    "delete group": lambda agent: agent.objects.delete_group(G),
}


async def after(operation: str) -> tuple[State, int]:
    """What there is afterwards, and how many commands of lvm it took."""
    group = await a_pool()
    count = group.count
    await OPERATIONS[operation](Agent(group))
    return state(group), group.count - count


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_kill_at_any_commit_leaves_all_or_nothing(operation: str) -> None:
    before, (done, commands) = state(await a_pool()), await after(operation)
    assert before != done
    for number in range(1, commands + 1):
        for when in ("before", "after"):
            group = await a_pool()
            agent = Agent(group)
            group.on_change = dies_at(group.count + number, when)
            with pytest.raises(Died):
                await OPERATIONS[operation](agent)
            group.on_change = lambda number, when: None
            found = state(group)
            assert found in (before, done), f"killed {when} command {number} of {commands}"
            again = Agent(group)
            await again.tidy()
            assert state(group) == found, "the trash was something"
            assert set(group.lvs) == set(again.table.shown()), "something is left"
            if found == before:
                await OPERATIONS[operation](again)
                assert state(group) == done


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_command_that_fails_leaves_nothing_and_the_same_call_succeeds_later(operation: str) -> None:
    before, (done, commands) = state(await a_pool()), await after(operation)
    for number in range(1, commands + 1):
        for when in ("before", "after"):
            group = await a_pool()
            agent = Agent(group)
            group.on_change = fails_at(group.count + number, when)
            with pytest.raises(Busy):
                await OPERATIONS[operation](agent)
            group.on_change = lambda number, when: None
            # Whatever comes next settles what is in doubt.
            await agent.changes.remove([])
            found = state(group)
            changes_in_place = operation in {"save", "expand"} or operation.startswith("delete")
            assert found == before or (changes_in_place and found == done), f"failed {when} command {number}"
            await OPERATIONS[operation](agent)
            assert state(group) == done
            await agent.tidy()
            assert state(group) == done
            assert set(group.lvs) == set(agent.table.shown())


@pytest.mark.parametrize(("operation", "messages"), [("snapshot", 2), ("group", 4), ("clone", 2)])
async def test_a_kill_between_the_messages_to_the_thin_pool_leaves_nothing(operation: str, messages: int) -> None:
    before, (done, _) = state(await a_pool()), await after(operation)
    for number in range(1, messages + 1):
        group = await a_pool()
        first = group.messages

        def dies(count: int, wanted: int = first + number) -> None:
            if count == wanted:
                raise Died

        group.on_message = dies
        with pytest.raises(Died):
            await OPERATIONS[operation](Agent(group))
        group.on_message = lambda number: None
        again = Agent(group)
        assert state(group) == before
        await again.tidy()
        await OPERATIONS[operation](again)
        assert state(group) == done


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_call_that_is_cancelled_leaves_nothing_and_succeeds_later(operation: str) -> None:
    before, (done, commands) = state(await a_pool()), await after(operation)
    for number in range(1, commands + 1):
        for when in ("before", "after"):
            group = await a_pool()
            agent = Agent(group)
            call = asyncio.ensure_future(OPERATIONS[operation](agent))
            wanted = group.count + number, when
            group.on_change = lambda count, at, wanted=wanted, call=call: (
                call.cancel() if (count, at) == wanted else None
            )
            with pytest.raises(asyncio.CancelledError):
                await call
            changes_in_place = operation in {"save", "expand"} or operation.startswith("delete")
            assert state(group) == (done if changes_in_place else before), f"cancelled {when} command {number}"
            await OPERATIONS[operation](agent)
            assert state(group) == done
            await agent.tidy()
            assert set(group.lvs) == set(agent.table.shown())


@pytest.mark.parametrize(
    ("operation", "most"), [("create", 1), ("save", 1), ("roll back", 1), ("snapshot", 2), ("group", 3)]
)
async def test_commands_that_an_operation_takes(operation: str, most: int) -> None:
    assert (await after(operation))[1] == most


async def test_a_volume_is_not_attached_while_it_is_in_doubt_which_generation_it_is() -> None:
    group = await a_pool()
    agent = Agent(group)
    first = group.count + 1

    def hangs(number: int, when: str) -> None:
        if (number, when) == (first, "after") or group.argv[-1][0] == "lvremove":
            raise Busy("lvm hangs")

    group.on_change = hangs
    with pytest.raises(Busy):
        await agent.objects.replace(A, S)
    with pytest.raises(Busy):
        await agent.changes.activate(agent.table.of(A).name)
    assert "lvchange" not in [argv[0] for argv in group.argv[first - 1 :]]


async def test_a_snapshot_has_the_content_of_its_moment_and_no_thin_id_twice() -> None:
    group = await a_pool()
    found = state(group)
    assert found[str(S.id)][0] == "old a"
    assert [found[str(member.id)][0] for member in G.members] == ["old a", "old b"]
    assert len({lv.thin_id for lv in group.lvs.values()}) == len(group.lvs)

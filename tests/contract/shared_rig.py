"""Two agents of one shared pool, one of which stands still, or dies, in the middle of a call; and what must hold afterwards."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract_rig import InMemory, SharedMemoryRig, World, filled, piece, read_all
from support.clocks import Clock
from support.files import write_pieces

from csi_driver.backends.memory.catalogue import LEASE_SECONDS, Catalogue
from csi_driver.backends.memory.faults import Faults, Pause, Point
from csi_driver.backends.memory.shared import SharedMemoryBackend, discard
from csi_driver.domain.errors import Damaged, DriverError
from csi_driver.domain.ids import ANY_OWNER
from csi_driver.domain.model import GroupSnapshot, Snapshot, Volume

A, B = "node-1", "node-2"


class Steps(Faults):
    """Counts the points that a call passes, and lets it stand still at one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(None)

    def begin(self, stop_at: int | None) -> None:
        """Count from here; `stop_at`: where to stand still; None: nowhere."""
        self.passed: list[tuple[str, Point]] = []
        self.pause_here = Pause()
        self._stop_at = stop_at

    async def reach(self, method: str, point: Point) -> None:
        self.passed.append((method, point))
        if len(self.passed) - 1 == self._stop_at:
            await self.pause_here.wait()
        await super().reach(method, point)


class AgentRig(InMemory):
    """One agent's way to the shared pool; each `backend` is the agent started again."""

    owner = ANY_OWNER

    def __init__(self, shared: SharedMemoryRig, node: str) -> None:
        super().__init__()
        self.steps = Steps()
        self._shared, self._node = shared, node

    async def backend(self) -> SharedMemoryBackend:
        return await self._shared.backend(self._node, self.steps)


@dataclass
class Things:
    """What is in the pool before: the volumes v and w with `a` and `w` in them, a snapshot of v, and a group of both."""

    v: Volume
    w: Volume
    s: Snapshot
    g: GroupSnapshot


class Pair:
    """Agent A, to which things happen, and agent B, which goes on."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.clock.go_back(100 * LEASE_SECONDS)
        self.shared = SharedMemoryRig(self.clock)
        self.rig = AgentRig(self.shared, A)
        self.a = World(self.rig, directory / A, A)
        self.b = World(AgentRig(self.shared, B), directory / B, B)
        self.a.clock = self.b.clock = self.clock

    @property
    def catalogue(self) -> Catalogue[Any]:
        return self.shared.catalogue

    async def open(self) -> Things:
        await self.a.open()
        await self.b.open()
        v, w = await self.a.volume("v"), await self.b.volume("w")
        await self.a.write(v, piece(0, "a"))
        await self.b.write(w, piece(0, "w"))
        await self.a.pools.refresh()
        things = Things(v, w, await self.a.snapshot("s", v), await self.a.group("g", v, w))
        await self.b.pools.refresh()
        return things

    def state(self, contents: bool = True) -> object:
        """Everything that is in the pool, apart from all agents; with the bytes, unless a pod writes some."""
        catalogue = self.catalogue
        return (
            [
                {
                    key: (e.version, e.value.record, digests(e.value.images) if contents else None)
                    for key, e in table.entries.items()
                }
                for table in (catalogue.volumes, catalogue.snapshots, catalogue.groups)
            ],
            dict(catalogue._attached),
        )

    def lease_passes(self) -> None:
        self.clock.forward(LEASE_SECONDS)


def digests(images: dict[str, Any]) -> dict[str, tuple[int, dict[int, bytes]]]:
    return {key: (image.size, image.blocks()) for key, image in images.items()}


@asynccontextmanager
async def pair(directory: Path) -> AsyncIterator[tuple[Pair, Things]]:
    """Two agents on a new pool."""
    made = Pair(directory)
    try:
        yield made, await made.open()
    finally:
        discard(made.catalogue)


Call = Callable[[World, Things], Awaitable[Any]]


async def _stage(world: World, things: Things) -> Volume:
    """Stage v, and write to it as a pod does; it stays in use."""
    v = world.now(things.v)
    await world.stage(v)
    write_pieces(await world.publish(v), piece(1, world.node[-1]))
    return v


CALLS: dict[str, Call] = {
    "create": lambda world, t: world.volume("new"),
    "clone": lambda world, t: world.volume("copy", 0, source=t.v),
    "restore": lambda world, t: world.volume("restored", 0, source=t.s),
    "snapshot": lambda world, t: world.snapshot("t", t.v),
    "group": lambda world, t: world.group("h", t.v, t.w),
    "expand": lambda world, t: world.expand(t.v, 2 * t.v.size),
    "label": lambda world, t: world.services.labels.set_label(str(t.v.id), "renamed"),
    "hold": lambda world, t: world.hold(t.v, "me"),
    "roll back": lambda world, t: world.roll_back(t.v, t.s, "r", safety=""),
    "delete": lambda world, t: world.volumes.delete(str(t.v.id)),
    "delete snapshot": lambda world, t: world.snapshots.delete(str(t.s.id)),
    "delete group": lambda world, t: world.groups.delete(str(t.g.id), []),
    "stage": _stage,
}
"""Each is repeated as a sidecar or a kubelet repeats it."""


@dataclass
class Outcome:
    """What the callers were answered: a result, or the driver's refusal. `problems`: promises that were broken."""

    a: Any = None
    b: Any = None
    fenced: bool = False
    restarted: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def a_succeeded(self) -> bool:
        return not isinstance(self.a, DriverError)

    @property
    def b_succeeded(self) -> bool:
        return not isinstance(self.b, DriverError)


async def answer(call: Awaitable[Any]) -> Any:
    """The result of a call, or how the driver refused it."""
    try:
        return await call
    except DriverError as error:
        return error


async def step_count(directory: Path, call: str) -> int:
    """How many points the call passes on the way, alone."""
    async with pair(directory) as (agents, things):
        agents.rig.steps.begin(None)
        await CALLS[call](agents.a, things)
        return len(agents.rig.steps.passed)


async def play(directory: Path, call: str, rival: str, stop_at: int, how: str) -> Outcome:
    """Agent A makes a call, and agent B the rival while A's stands still at a point of it; then A goes on, unless it has died.

    `how`: A's process "runs", and only the call takes long; it is "late": it stood still for so long that its locks lapsed; or it
    "dies", and is started again.
    """
    outcome = Outcome()
    async with pair(directory) as (agents, things):
        session = agents.a.backend.current_session()  # type: ignore[attr-defined]
        steps = agents.rig.steps
        steps.begin(stop_at)
        task = asyncio.ensure_future(answer(CALLS[call](agents.a, things)))
        await asyncio.wait_for(steps.pause_here.reached.wait(), 30)
        if how == "late":
            agents.catalogue.stop(session)
            agents.lease_passes()
        elif how == "dies":
            agents.catalogue.kill(session)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            agents.lease_passes()
        outcome.b = await answer(CALLS[rival](agents.b, things))
        outcome.fenced = session.fenced
        before = agents.state(call != "stage") if session.fenced else None
        agents.catalogue.go_on(session)
        steps.pause_here.release()
        if how == "dies":
            outcome.a = DriverError("its agent died")
        else:
            outcome.a = await task
        if outcome.fenced and agents.state(call != "stage") != before:
            outcome.problems.append("an agent that was fenced changed the pool")
        outcome.restarted = session.fenced or how == "dies"
        await _examine(agents, things, call, rival, outcome)
    return outcome


async def _examine(agents: Pair, things: Things, call: str, rival: str, outcome: Outcome) -> None:
    """Note which promises were broken."""
    problems = outcome.problems
    problems += [f"{error}" for error in (outcome.a, outcome.b) if isinstance(error, Damaged)]
    if outcome.restarted:
        await agents.a.open()
    await agents.a.pools.refresh()
    await agents.b.pools.refresh()
    a, b = agents.a.pool, agents.b.pool
    if (a.volumes, a.snapshots, a.groups) != (b.volumes, b.snapshots, b.groups):
        problems.append("the agents know different things of the pool")
    deleted = {name for name, result in ((call, outcome.a), (rival, outcome.b)) if result is None}
    for result in (outcome.a, outcome.b):
        if isinstance(result, Volume | Snapshot | GroupSnapshot):
            index: dict[str, Any] = {Volume: b.volumes, Snapshot: b.snapshots, GroupSnapshot: b.groups}[type(result)]
            now = index.get(result.id.hash)
            if now is None and not (result.id == things.v.id and "delete" in deleted):
                problems.append(f"{result.name} was answered and is lost")
            elif now is not None and now.uid != result.uid:
                problems.append(f"{result.name} was made twice")
    if rival == "stage" and outcome.b_succeeded:
        await _examine_stage(agents.b, things.v, problems)
    if "roll back" in (call, rival) and (outcome.a_succeeded if call == "roll back" else outcome.b_succeeded):
        rolled = b.volumes.get(things.v.id.hash)
        if rolled is not None and [done.name for done in rolled.rollbacks] != ["r"]:
            problems.append("the rollback was made twice, or is not recorded")


async def _examine_stage(world: World, v: Volume, problems: list[str]) -> None:
    """A pod that B has let have the volume still has it, with what it wrote."""
    if v.id.hash not in world.pool.volumes:
        problems.append("a volume was deleted while a pod had it")
        return
    if not os.path.exists(world.target(v)):
        problems.append("a pod lost its volume")
        return
    content = read_all(world.target(v))
    if content[: len(filled("a", "2"))] != filled("a", "2"):
        problems.append("a pod lost what it wrote")

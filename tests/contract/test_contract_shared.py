"""Two agents of one shared pool: no name is made twice, nothing is lost, and one that stood still for too long writes nothing.

Each call is stopped at each point that it passes, while its agent runs, stands still until its locks lapse, or dies; the other
agent then repeats the call, or lets a pod have the volume. The same plays show what is broken without the guard, and without the
fence: a rig that saw nothing there would prove nothing.
"""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from contract_rig import SIZE, filled, piece
from shared_rig import CALLS, Outcome, pair, play, step_count

from csi_driver._pb import csi_pb2
from csi_driver.backends.local_pool import LocalPool
from csi_driver.backends.memory.catalogue import Catalogue, Session
from csi_driver.backends.memory.shared import SharedMemoryBackend
from csi_driver.domain.errors import AlreadyExists, Busy, InUse, NotFound, Unavailable
from csi_driver.rpc.agent.controller import Controller
from csi_driver.rpc.agent.group_controller import GroupController


async def plays(directory: Path, call: str, rival: str, how: str) -> list[tuple[int, Outcome]]:
    """The play at each point of the call."""
    steps = await step_count(directory / "alone", call)
    assert steps >= 4, "it passes at least before and after a guard and a change"
    return [(at, await play(directory / str(at), call, rival, at, how)) for at in range(steps)]


def broken(outcomes: list[tuple[int, Outcome]]) -> list[str]:
    return [f"at {at}: {problem}" for at, outcome in outcomes for problem in outcome.problems]


@pytest.mark.parametrize("how", ["runs", "late", "dies"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_is_repeated_at_another_agent(tmp_path: Path, call: str, how: str) -> None:
    outcomes = await plays(tmp_path, call, call, how)
    assert broken(outcomes) == []
    if how == "runs":
        assert any(isinstance(outcome.b, Busy) for _, outcome in outcomes), "the other agent keeps off"
        done = [outcome.a_succeeded or (call == "stage" and outcome.b_succeeded) for _, outcome in outcomes]
        assert all(done), "who came first is served"
    elif call != "stage":  # whose node has the volume, and keeps it
        assert all(outcome.b_succeeded for _, outcome in outcomes), "the other agent takes over"
        assert any(outcome.fenced for _, outcome in outcomes)
    if how == "late":
        assert any(isinstance(outcome.a, Unavailable) for _, outcome in outcomes)


@pytest.mark.parametrize("how", ["runs", "late", "dies"])
@pytest.mark.parametrize("call", ["delete", "roll back", "hold", "snapshot", "group", "clone", "expand", "stage"])
async def test_a_pod_gets_the_volume_at_another_node_meanwhile(tmp_path: Path, call: str, how: str) -> None:
    outcomes = await plays(tmp_path, call, "stage", how)
    assert broken(outcomes) == []
    if how == "runs":
        assert any(isinstance(outcome.b, Busy) for _, outcome in outcomes)
    if how != "runs" and call != "stage":
        assert any(outcome.b_succeeded and outcome.fenced for _, outcome in outcomes)


# ---- the rig sees what it is for


@pytest.mark.parametrize(
    ("call", "problem"), [("delete", "a volume was deleted while a pod had it"), ("roll back", "a pod lost")]
)
async def test_without_the_guard_promises_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, problem: str
) -> None:
    monkeypatch.setattr(SharedMemoryBackend, "guard", LocalPool.guard)
    outcomes = await plays(tmp_path, call, "stage", "runs")
    assert any(problem in words for words in broken(outcomes)), broken(outcomes)


async def test_without_the_guard_an_agent_does_not_know_what_others_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedMemoryBackend, "guard", LocalPool.guard)
    assert broken(await plays(tmp_path, "create", "create", "runs"))


async def test_without_the_fence_promises_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that lapses, alone, is no lock: who had it goes on."""

    def only_unlock(catalogue: Catalogue[object], session: Session) -> None:
        catalogue._locks = [lock for lock in catalogue._locks if lock.session is not session]

    monkeypatch.setattr(Catalogue, "fence", only_unlock)
    outcomes = await plays(tmp_path, "delete", "stage", "late")
    assert any("a volume was deleted while a pod had it" in words for words in broken(outcomes)), broken(outcomes)


# ---- by name


async def test_what_one_agent_makes_the_other_has(tmp_path: Path) -> None:
    async with pair(tmp_path) as (agents, _):
        a, b = agents.a, agents.b
        v = await a.volume("x")
        assert v.id.owner == "*"
        assert await b.volume("x") == v, "the same request at another agent"
        with pytest.raises(AlreadyExists):
            await b.volume("x", 2 * SIZE)
        await b.write(v, piece(0, "b"))
        s = await b.snapshot("of x", v)
        assert await a.snapshot("of x", v) == s
        assert await a.read(v) == filled("b")
        assert await a.content(s) == filled("b")
        await b.snapshots.delete(str(s.id))
        await a.snapshots.delete(str(s.id))
        again = await a.snapshot("of x", v)
        assert again.uid != s.uid
        await b.volumes.delete(str(v.id))
        with pytest.raises(NotFound):
            await a.expand(v, 2 * SIZE)


async def test_lists_have_what_the_other_agent_has_made(tmp_path: Path) -> None:
    """Each way of looking, alone: none may count on a call before it."""
    async with pair(tmp_path) as (agents, things):
        a, b = agents.a, agents.b
        context: Any = None
        controller, groups = Controller(b.volumes, b.snapshots), GroupController(b.groups)
        v = await a.volume("x")
        listed = await controller.ListVolumes(csi_pb2.ListVolumesRequest(), context)
        assert str(v.id) in [entry.volume.volume_id for entry in listed.entries]
        s = await a.snapshot("of x", v)
        listed = await controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(), context)
        assert str(s.id) in [entry.snapshot.snapshot_id for entry in listed.entries]
        g = await a.group("with x", v)
        request = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=str(g.id))
        assert (await groups.GetVolumeGroupSnapshot(request, context)).group_snapshot.group_snapshot_id == str(g.id)
        t = await a.snapshot("t", v)
        request = csi_pb2.GetSnapshotRequest(snapshot_id=str(t.id))
        assert (await controller.GetSnapshot(request, context)).snapshot.snapshot_id == str(t.id)
        w = await a.volume("y")
        request = csi_pb2.ControllerGetVolumeRequest(volume_id=str(w.id))
        assert (await controller.ControllerGetVolume(request, context)).volume.volume_id == str(w.id)
        z = await a.volume("z")
        assert z.id in [node.item.id for node in await b.services.lineage.tree()]
        await a.volumes.delete(str(z.id))
        assert z.id not in [node.item.id for node in await b.services.lineage.tree()]
        u = await a.volume("u")
        assert (await b.services.lineage.describe(str(u.id)))[0].item == u
        renamed = await b.services.labels.set_label(str(things.v.id), "renamed")
        assert (await a.services.lineage.describe(str(things.v.id)))[0].item == renamed


async def test_a_volume_is_at_one_node_at_a_time(tmp_path: Path) -> None:
    async with pair(tmp_path) as (agents, things):
        a, b, v = agents.a, agents.b, things.v
        await a.stage(v)
        for refused in (
            b.stage(v),
            b.volumes.delete(str(v.id)),
            b.hold(v, "me"),
            b.roll_back(v, things.s, "r"),
        ):
            with pytest.raises(InUse, match="node-1"):
                await refused
        await a.reopen()
        with pytest.raises(InUse, match="node-1"):
            await b.stage(v)
        await a.unstage(v)
        await b.stage(v)
        await b.unstage(v)
        await a.volumes.delete(str(v.id))


async def test_an_agent_that_was_fenced_serves_nothing_until_it_is_started_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as (agents, things):
        a, b = agents.a, agents.b
        outcome = agents.catalogue.lock(a.backend.current_session(), [things.v.id.hash], [])  # type: ignore[attr-defined]
        agents.catalogue.stop(outcome.session)
        with pytest.raises(Busy, match="the agent of node node-1 works on the same object"):
            await b.snapshot("x", things.v)
        agents.lease_passes()
        await b.snapshot("x", things.v)
        agents.catalogue.go_on(outcome.session)
        with pytest.raises(Unavailable, match="restart its agent"):
            a.volumes.list()
        with pytest.raises(Unavailable):
            await a.volume("y")
        with pytest.raises(Unavailable):
            await a.volumes.delete(str(things.v.id))
        await a.open()
        assert a.volumes.list() == b.volumes.list()
        assert a.snapshots.list() == b.snapshots.list()


async def test_an_agent_that_runs_keeps_its_locks_for_as_long_as_it_likes(tmp_path: Path) -> None:
    async with pair(tmp_path) as (agents, things):
        async with agents.a.backend.guard([things.v.id.hash], [], []):
            for _ in range(3):
                agents.lease_passes()
                with pytest.raises(Busy):
                    await agents.b.expand(things.v, 2 * SIZE)
        await agents.b.expand(things.v, 2 * SIZE)


async def test_many_calls_at_once(tmp_path: Path) -> None:
    """Both agents make, copy and delete under the same few names, each refusal repeated: in the end both know the same."""
    import asyncio
    import random

    async with pair(tmp_path) as (agents, things):
        numbers = count()

        async def caller(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(40):
                world = chance.choice([agents.a, agents.b])
                name = f"n{chance.randrange(4)}"
                calls = [
                    lambda w=world, n=name: w.volume(n),
                    lambda w=world, n=name: w.volumes.delete(w.id_of("volume", n)),
                    lambda w=world, n=name: w.snapshot(f"s-{n}", things.v),
                    lambda w=world, n=name: w.snapshots.delete(w.id_of("snapshot", f"s-{n}")),
                    lambda w=world: w.roll_back(things.v, things.s, f"r{next(numbers)}"),
                    lambda w=world, n=name: w.group(f"g-{n}", things.v, things.w),
                    lambda w=world, n=name: w.groups.delete(w.id_of("group", f"g-{n}"), []),
                ]
                call = chance.choice(calls)
                while True:
                    try:
                        await call()
                        break
                    except Busy:
                        await asyncio.sleep(0)

        await asyncio.gather(*(caller(seed) for seed in range(6)))
        for world in (agents.a, agents.b):
            await world.pools.refresh()
        assert agents.a.volumes.list() == agents.b.volumes.list()
        assert agents.a.snapshots.list() == agents.b.snapshots.list()
        await agents.a.reopen()
        assert agents.a.volumes.list() == agents.b.volumes.list()
        assert agents.a.pool.groups == agents.b.pool.groups

"""Pools that have run full: events on their nodes, once, and again before the API forgets them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from controller_rig import ControllerRig, agent_pod, until_ready
from support.fake_api import FakeApi
from support.queues import settle
from support.started import start_all
from support.waiting import until

from csi_driver.domain.errors import Unavailable
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import EVENTS, PODS
from csi_driver.operator.agents.discovery import trim_agent_pod
from csi_driver.operator.agents.full_pools import REPEAT_SECONDS, FullPoolEvents
from csi_driver.service.agents import FullPool

GIB = 1 << 30


class Told:
    """The port: what a test says of the pools."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[FullPool]] = {"n-1": [], "n-2": []}
        self.error: Exception | None = None
        self.calls = 0

    async def full_pools(self) -> Mapping[str, Sequence[FullPool]]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.answers


async def test_events_of_a_full_pool(fake: FakeApi) -> None:
    told, now = Told(), [0.0]
    api = await fake.connect()
    part = FullPoolEvents(told, Informer(api, PODS), Events(api, "tidemark"), lambda: now[0])

    async def counts() -> list[int]:
        await part.check()
        return sorted(event["count"] for event in fake.all(EVENTS))

    assert await counts() == []
    told.answers["n-1"] = [FullPool("n-1", "fast", 20 * GIB, 0)]
    assert await counts() == [1]
    assert await counts() == [1]
    (event,) = fake.all(EVENTS)
    about = event["involvedObject"]
    assert (about["kind"], about["name"], event["type"], event["reason"]) == ("Node", "n-1", "Warning", "PoolFull")
    assert "pool fast (20 GiB) has run full" in event["message"]
    # What would free most is known a little later.
    freed = ("snapshot nightly-1 (4 GiB)", "volume pvc-1 (9 GiB)")
    told.answers["n-1"] = [FullPool("n-1", "fast", 20 * GIB, 0, freed)]
    assert await counts() == [1, 1]
    assert await counts() == [1, 1]
    assert any("snapshot nightly-1 (4 GiB), volume pvc-1 (9 GiB)" in event["message"] for event in fake.all(EVENTS))
    # An agent that does not answer is not known to have room again.
    answer = told.answers.pop("n-1")
    assert await counts() == [1, 1]
    told.answers["n-1"] = answer
    assert await counts() == [1, 1]
    now[0] = REPEAT_SECONDS
    assert await counts() == [1, 2]
    told.answers["n-1"] = []
    assert await counts() == [1, 2]
    told.answers["n-1"] = answer
    assert await counts() == [1, 3]


async def test_the_leader_asks(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    async with asyncio.timeout(60):
        while rig.agents["n-1"].asked("ListPools") == 0:
            await asyncio.sleep(0.01)


class Checked(FullPoolEvents):
    """Waits for nothing but its clock and its events."""

    async def until_checked(self, told: Told, calls: int) -> None:
        await until(lambda: told.calls >= calls)
        await settle(self._clock, self._queue)
        assert told.calls == calls


async def test_an_agent_that_becomes_ready_is_asked_at_once_and_all_again_within_the_period(fake: FakeApi) -> None:
    told, now = Told(), [1000.0]
    api = await fake.connect()
    pods = Informer(api, PODS, transform=trim_agent_pod)
    fake.put(PODS, agent_pod("agent-1", "n-1", 1, ready=False), "tidemark")
    await start_all([pods])
    part = Checked(told, pods, Events(api, "tidemark"), lambda: now[0])
    running = asyncio.create_task(part.run())
    await part.until_checked(told, 1)
    now[0] += 5
    told.answers["n-1"] = [FullPool("n-1", "fast", 20 * GIB, 0)]
    fake.put(PODS, agent_pod("agent-1", "n-1", 1, ready=True), "tidemark")
    await part.until_checked(told, 2)
    assert [event["involvedObject"]["name"] for event in fake.all(EVENTS)] == ["n-1"]
    told.answers["n-2"] = [FullPool("n-2", "slow", 20 * GIB, 0)]
    now[0] += 29.5
    await part.until_checked(told, 2)
    now[0] += 0.5
    await settle(part._clock, part._queue)
    await part.until_checked(told, 3)
    assert len(fake.all(EVENTS)) == 2
    running.cancel()
    await asyncio.wait([running])
    assert not pods._handlers, "the next leader has a handler of its own"
    await pods.stop()


async def test_a_check_that_fails_is_repeated_and_forgets_nothing(fake: FakeApi) -> None:
    """An event that was emitted already is not emitted again because of it."""
    told, now = Told(), [1000.0]
    api = await fake.connect()
    told.answers["n-1"] = [FullPool("n-1", "fast", 20 * GIB, 0)]
    part = Checked(told, Informer(api, PODS), Events(api, "tidemark"), lambda: now[0])
    running = asyncio.create_task(part.run())
    await part.until_checked(told, 1)
    for error in (Unavailable("away"), KeyError("shape")):
        told.error = error
        now[0] += 30
        await settle(part._clock, part._queue)
    told.error = None
    now[0] += 30
    await settle(part._clock, part._queue)
    await part.until_checked(told, 4)
    assert [event["count"] for event in fake.all(EVENTS)] == [1]
    running.cancel()
    await asyncio.wait([running])

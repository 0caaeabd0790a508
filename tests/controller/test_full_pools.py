"""Pools that have run full: events on their nodes, once, and again before the API forgets them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from controller_rig import ControllerRig, until_ready
from support.fake_api import FakeApi

from csi_driver.kube.events import Events
from csi_driver.kube.resources import EVENTS
from csi_driver.operator.agents.full_pools import REPEAT_SECONDS, FullPoolEvents
from csi_driver.service.agents import FullPool

GIB = 1 << 30


class Told:
    """The port: what a test says of the pools."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[FullPool]] = {"n-1": [], "n-2": []}

    async def full_pools(self) -> Mapping[str, Sequence[FullPool]]:
        return self.answers


async def test_events_of_a_full_pool(fake: FakeApi) -> None:
    told, now = Told(), [0.0]
    part = FullPoolEvents(told, Events(await fake.connect(), "tidemark"), lambda: now[0])

    async def counts() -> list[int]:
        await part.reconcile()
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

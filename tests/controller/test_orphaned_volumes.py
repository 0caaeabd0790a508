"""Volumes that no PersistentVolume names: found after an hour, told once, never deleted."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from controller_rig import DRIVER, ControllerRig, until_ready, volume
from support.fake_api import FakeApi
from support.queues import settle
from support.rpc_rig import create_volume, places
from support.started import start_all
from support.waiting import until

from csi_driver._pb import csi_pb2 as C
from csi_driver.domain.errors import Unavailable
from csi_driver.domain.ids import name_hash
from csi_driver.kube.events import Events
from csi_driver.kube.informer import Informer
from csi_driver.kube.resources import EVENTS, NODES, PVS
from csi_driver.operator import orphaned_volumes
from csi_driver.operator.agents.discovery import trim_pv
from csi_driver.operator.orphaned_volumes import (
    GRACE_SECONDS,
    PERIOD_SECONDS,
    OrphanedVolumes,
    older_than_grace,
    same_name_pvs,
    unreferenced_since,
)

A1, A2, B1 = (f"{owner}:default:{number:032x}" for owner, number in (("a", 1), ("a", 2), ("b", 1)))


def test_an_hour_is_counted_from_the_first_look() -> None:
    since = unreferenced_since({}, {"a": [A1, A2], "b": []}, {A2}, 100)
    assert since == {A1: 100}
    since = unreferenced_since(since, {"a": [A1, A2], "b": [B1]}, {A2}, 200)
    assert since == {A1: 100, B1: 200}
    assert older_than_grace(since, 99 + GRACE_SECONDS) == []
    assert older_than_grace(since, 100 + GRACE_SECONDS) == [A1]


def test_what_is_named_or_gone_is_dropped_and_what_is_silent_is_not() -> None:
    since = {A1: 1.0, A2: 1.0, B1: 1.0}
    assert unreferenced_since(since, {"a": [A2]}, set(), 5) == {
        A2: 1.0,
        B1: 1.0,
    }  # a answered: A1 is deleted; b is silent
    assert unreferenced_since(since, {"a": [A1, A2]}, {A1}, 5) == {A2: 1.0, B1: 1.0}
    assert unreferenced_since(since, {}, {B1}, 5) == {A1: 1.0, A2: 1.0}
    # Named, and then no longer named: a PersistentVolume was removed by hand. The hour begins now.
    assert unreferenced_since({}, {"a": [A1]}, set(), 9) == {A1: 9}


def test_volumes_of_the_same_name() -> None:
    twin = {"metadata": {"name": "pvc-1"}, "handle": "b:default:x"}
    lost = f"a:default:{name_hash('volume', 'pvc-1')}"
    assert same_name_pvs([lost, A1, "no id"], [twin]) == {lost: twin}


async def test_orphans_of_a_cluster(rig: ControllerRig, fake: FakeApi) -> None:
    await until_ready(rig.identity)
    made = {}
    for name, owner in (("pvc-1", "n-1"), ("pvc-2", "n-1"), ("pvc-3", "n-10"), ("pvc-4", "n-10")):
        request = create_volume(name, accessibility_requirements=places(owner))
        made[name] = (await rig.stub.CreateVolume(request)).volume.volume_id
    rig.persist("pvc-1", made["pvc-1"])
    rig.persist("pvc-2", "n-10:default:" + made["pvc-2"].rpartition(":")[2])  # made twice: this handle is the other one
    rig.persist("static", made["pvc-4"])
    fake.put(PVS, volume("pvc-3", made["pvc-3"], driver="other.example"))
    api = await fake.connect()
    informer = Informer(api, PVS, transform=trim_pv)
    await start_all([informer])
    now = [0.0]
    told: list[int] = []
    agents = rig.controller.context.agents
    orphans = OrphanedVolumes(agents, informer, DRIVER, Events(api, "tidemark"), told.append, lambda: now[0])
    assert await orphans.check() == []
    now[0] = GRACE_SECONDS - 1
    assert await orphans.check() == []
    now[0] = GRACE_SECONDS
    await rig.agents["n-10"].server.stop(0)  # an agent that is silent takes nothing back
    assert await orphans.check() == sorted([made["pvc-2"], made["pvc-3"]])
    assert await orphans.check() == sorted([made["pvc-2"], made["pvc-3"]])
    assert told == [0, 0, 2, 2]
    events = {event["involvedObject"]["name"]: event for event in fake.all(EVENTS)}
    assert {name: event["count"] for name, event in events.items()} == {"pvc-2": 1, "n-10": 1}
    assert events["pvc-2"]["involvedObject"]["uid"] == (fake.get(PVS, "pvc-2") or {})["metadata"]["uid"]
    assert made["pvc-2"] in events["pvc-2"]["message"]
    assert fake.get(NODES, "n-10") is not None
    assert sum(len(agent.pool.volumes) for agent in rig.agents.values()) == 4
    await rig.agents["n-10"].start()
    rig.persist("pvc-3", made["pvc-3"])
    await rig.stub.DeleteVolume(C.DeleteVolumeRequest(volume_id=made["pvc-2"]))
    async with asyncio.timeout(60):
        while await orphans.check():
            await asyncio.sleep(0.01)
    await informer.stop()


async def test_the_leader_looks(rig: ControllerRig) -> None:
    assert orphaned_volumes.PERIOD_SECONDS < GRACE_SECONDS
    await until_ready(rig.identity)
    async with asyncio.timeout(60):
        while rig.agents["n-1"].asked("ListVolumes") == 0:
            await asyncio.sleep(0.01)


async def test_the_command(rig: ControllerRig) -> None:
    """A volume that was just made is nobody's yet, and no orphan."""
    await until_ready(rig.identity)
    for name in ("old", "young", "named"):
        await rig.stub.CreateVolume(create_volume(name, accessibility_requirements=places("n-1")))
    hour = 3600 * 10**9
    pool = rig.agents["n-1"].pool
    for item in list(pool.volumes.values()):
        if item.name != "young":
            object.__setattr__(item, "created", item.created - hour)
    rig.persist("named", next(str(one.id) for one in pool.volumes.values() if one.name == "named"))
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "csi_driver.cli.main", "volume", "list", "--orphans", "--json",
        "--endpoint", f"unix://{rig.root}/csi.sock", "--kubeconfig", rig.fake.kubeconfig(rig.root / "kubeconfig"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await running.communicate()
    assert (running.returncode, [one["name"] for one in json.loads(out)]) == (0, ["old"])


class Listed:
    """The port: what a test says of the volumes."""

    def __init__(self, **volumes: list[str]) -> None:
        self.volumes = volumes
        self.calls = 0
        self.error: Exception | None = None

    async def list_volumes(self) -> dict[str, list[str]]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.volumes


class Checking:
    """Orphans over an informer, on a clock that a test moves."""

    def __init__(self, fake: FakeApi, listed: Listed) -> None:
        self.fake = fake
        self.listed = listed
        self.now = 1000.0
        self.counts: list[int] = []

    async def __aenter__(self) -> Checking:
        api = await self.fake.connect()
        self.pvs = Informer(api, PVS, transform=trim_pv)
        await start_all([self.pvs])
        events = Events(api, "tidemark")
        self._part = OrphanedVolumes(self.listed, self.pvs, DRIVER, events, self.counts.append, lambda: self.now)
        self._running = asyncio.create_task(self._part.run())
        await until(lambda: self.listed.calls == 1)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._running.cancel()
        await asyncio.wait([self._running])
        assert not self.pvs._handlers, "the next leader has a handler of its own"
        await self.pvs.stop()

    async def move(self, seconds: float) -> int:
        """Let time pass and what is due be done; returns how often the agents were asked in all."""
        self.now += seconds
        await settle(lambda: self.now, self._part._queue)
        return self.listed.calls


async def test_a_pv_that_appears_ends_an_orphan_at_once(fake: FakeApi) -> None:
    async with Checking(fake, Listed(a=[A1])) as checking:
        await checking.move(PERIOD_SECONDS)
        await checking.move(GRACE_SECONDS)
        assert checking.counts[-1] == 1
        calls = await checking.move(5)
        fake.put(PVS, volume("foreign", "a:default:" + "f" * 32, driver="other"))
        fake.put(PVS, volume("late", A1))
        await until(lambda: checking.counts[-1] == 0)
        assert await checking.move(0) == calls + 1


async def test_a_volume_that_only_an_agent_shows_is_seen_within_the_period(fake: FakeApi) -> None:
    async with Checking(fake, Listed(a=[])) as checking:
        checking.listed.volumes["a"] = [A1]
        assert await checking.move(PERIOD_SECONDS - 1) == 1
        assert await checking.move(1) == 2
        for _ in range(int(GRACE_SECONDS / PERIOD_SECONDS)):
            await checking.move(PERIOD_SECONDS)
        assert checking.counts[-1] == 1


@pytest.mark.parametrize("error", [Unavailable("away"), KeyError("shape")])
async def test_a_check_that_fails_is_repeated_and_the_hour_goes_on(fake: FakeApi, error: Exception) -> None:
    """The grace period began before the failure: it is not lost with it."""
    async with Checking(fake, Listed(a=[A1])) as checking:
        await until(lambda: checking.counts == [0])
        checking.listed.error = error
        assert await checking.move(PERIOD_SECONDS) == 2
        checking.listed.error = None
        await checking.move(GRACE_SECONDS - PERIOD_SECONDS)
        assert checking.counts[-1] == 1

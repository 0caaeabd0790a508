"""What the topology controller reacts to: changes at once, by events alone; what no watch shows, within the time it took a poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.sizes import GIB
from support.topology_objects import claim
from support.topology_rig import TopologyRig
from support.waiting import until

from csi_driver.kube.resources import PVCS, SNAPSHOTS
from csi_driver.operator.topology.controller import MIN_INTERVAL_SECONDS

POLL = 2.0
"""Seconds within which the controller saw everything when it polled."""


@pytest.fixture
async def leading(fake: FakeApi) -> AsyncIterator[TopologyRig]:
    made = TopologyRig(fake)
    await made.begin()
    await made.reconcile()
    yield made
    await made.stop()


async def test_a_pvc_that_appears(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-2")
    leading.put(claim("r", snapshot="s"))
    await leading.reconcile(0)
    assert leading.selected("r") == "n-2"


async def test_a_selection_that_was_removed(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-2")
    leading.put(claim("r", snapshot="s", selected="n-2"))
    await leading.reconcile(0)
    leading.unselect("r")
    await leading.reconcile(MIN_INTERVAL_SECONDS)
    assert leading.selected("r") == "n-2"


async def test_a_node_that_becomes_ready_and_one_that_appears(leading: TopologyRig) -> None:
    leading.node("n-1", ready=False)
    leading.snapshot("s", "n-1")
    leading.snapshot("t", "n-9")
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("q", snapshot="t"))
    await leading.reconcile(0)
    assert [leading.selected(name) for name in "rq"] == [None, None]
    leading.node("n-1")
    leading.node("n-9")
    await leading.reconcile(MIN_INTERVAL_SECONDS)
    assert [leading.selected(name) for name in "rq"] == ["n-1", "n-9"]


async def test_a_class_that_appears(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s", cls="later"))
    await leading.reconcile(0)
    assert leading.selected("r") is None
    leading.cls("later")
    await leading.reconcile(MIN_INTERVAL_SECONDS)
    assert leading.selected("r") == "n-1"


async def test_a_pod_its_pvc_and_its_node(leading: TopologyRig) -> None:
    """The pod comes first, then its PVC, then the cordon on the node: each is an event of its own."""
    leading.snapshot("s", "n-1")
    leading.pod("p", "r")
    await leading.reconcile(0)
    leading.bound("r", "n-1", snapshot="s")
    await leading.reconcile(0)
    assert leading.seen == []
    leading.node("n-1", cordoned=True)
    await leading.reconcile(0)
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeCordoned"]


async def test_a_pod_becomes_unschedulable_and_its_grace_period_passes(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.bound("r", "n-1", snapshot="s")
    leading.now = datetime(2026, 1, 2, tzinfo=UTC)
    leading.pod("p", "r", says="0/3 nodes are available", since="2026-01-01T23:59:57Z")
    await leading.reconcile(0)
    leading.now += timedelta(seconds=6.9)
    await leading.reconcile(6.9)
    assert leading.seen == []
    leading.now += timedelta(seconds=0.1)
    await leading.reconcile(0.1)
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeExcluded"]


async def test_nothing_is_done_while_nothing_changes(leading: TopologyRig) -> None:
    """Of a thousand PVCs that wait for their pods to be scheduled, none costs a call."""
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s", selected="n-1"))
    leading.pod("p", "r")
    await leading.reconcile(0)
    gets = len(leading.fake.asked("get", SNAPSHOTS))
    leading.node("n-1")  # its status was written, and nothing in it has changed
    for _ in range(200):
        await leading.reconcile(POLL)
    assert (len(leading.fake.asked("get", SNAPSHOTS)), leading.capacities.asked) == (gets, [])


@pytest.mark.parametrize("before", [GIB, None])
async def test_room_and_an_agent_that_only_a_question_shows(leading: TopologyRig, before: int | None) -> None:
    leading.snapshot("s", "n-1")
    leading.capacities.left["n-1"] = before
    for number in range(5):
        leading.put(claim(f"r-{number}", snapshot="s", size="2Gi"))
    await leading.reconcile(0)
    leading.put(claim("late", snapshot="s", size="2Gi"))
    await leading.reconcile(POLL - 0.1)
    assert len(leading.capacities.asked) == 1, "PVCs that are alike share an answer for two seconds"
    leading.capacities.left["n-1"] = 2 * GIB
    await leading.reconcile(0.1)
    await leading.reconcile(MIN_INTERVAL_SECONDS)
    assert {leading.selected(name) for name in ("r-0", "r-1", "r-2", "r-3", "r-4", "late")} == {"n-1"}
    assert len(leading.capacities.asked) == 2


async def test_a_volume_that_its_informer_shows_later_than_the_pvc(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.node("n-1", cordoned=True)
    leading.put(claim("r", snapshot="s", volume="pv-r"))
    leading.pod("p", "r")
    await leading.reconcile(0)
    leading.volume("pv-r", "n-1")
    await leading.reconcile(POLL)
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeCordoned"]


async def test_a_change_that_no_watch_showed(leading: TopologyRig) -> None:
    leading.node("n-1", ready=False)
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s"))
    await leading.reconcile(0)
    leading.informers.nodes._handlers.clear()
    leading.node("n-1")
    await leading.reconcile(299)
    assert leading.selected("r") is None
    await leading.reconcile(1)
    assert leading.selected("r") == "n-1"
    leading.informers.nodes._handlers.append(leading.controller._on_node)  # which it removes at its end


async def test_what_fails_is_tried_less_and_less_and_stops_no_other(leading: TopologyRig) -> None:
    def refuse(call: Call) -> None:
        if call.kind == SNAPSHOTS:
            raise Fault(403, "Forbidden", "no right")

    leading.fake.hooks.append(refuse)
    leading.snapshot("s", "n-1")
    leading.bound("a", "n-2")
    for number in range(5):
        leading.put(claim(f"r-{number}", snapshot="s"))
    await leading.reconcile(0)
    leading.put(claim("c", clone="a"))
    await leading.reconcile(0)
    assert leading.selected("c") == "n-2"
    for _ in range(2 * 59):
        await leading.reconcile(0.5)
    tries = len(leading.fake.asked("get", SNAPSHOTS))
    assert tries == 5 * 7, "at once, and after 1, 2, 4, 8, 15 and 15 seconds"
    leading.fake.hooks.clear()
    leading.fake.change(PVCS, "r-3", {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}, "app")
    await leading.reconcile(0)
    assert [leading.selected(name) for name in ("r-3", "r-4")] == ["n-1", None], "its own change ends a backoff"
    await leading.reconcile(15)
    assert {leading.selected(f"r-{number}") for number in range(5)} == {"n-1"}


async def test_a_pod_of_an_unknown_shape_stops_no_other(leading: TopologyRig) -> None:
    leading.bound("r", "n-1", snapshot="s")
    leading.node("n-1", cordoned=True)
    leading.pod("bad", "r", says="no node", since="yesterday")
    leading.pod("p", "r")
    await leading.reconcile(0)
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeCordoned"]


async def test_the_lease_is_lost_in_the_middle(leading: TopologyRig) -> None:
    """Nothing goes on, nothing is written, and the next leader begins again over the same informers."""
    asked = asyncio.Event()

    async def hang(owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        asked.set()
        await asyncio.Event().wait()
        return 0

    answer = leading.capacities.available_capacity
    leading.capacities.available_capacity = hang  # type: ignore[method-assign]
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("q", snapshot="s"))
    reconciling = asyncio.ensure_future(leading.reconcile(0))
    await asked.wait()
    reconciling.cancel()
    assert leading.running is not None
    before = asyncio.all_tasks()
    leading.running.cancel()
    await asyncio.wait([leading.running, reconciling])
    await until(lambda: not [task for task in before if "_ask" in repr(task) and not task.done()])
    assert all(not informer._handlers for informer in (leading.informers.pvcs, leading.informers.pods))
    assert not leading.informers.nodes._handlers
    assert not leading.fake.asked("patch", PVCS)
    leading.running = None
    leading.capacities.available_capacity = answer  # type: ignore[method-assign]
    leading.lead()
    await leading.reconcile(0)
    assert [leading.selected(name) for name in "rq"] == ["n-1", "n-1"]

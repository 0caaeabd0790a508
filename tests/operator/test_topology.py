"""Claims that wait are led to their source: over an API in memory, with a provisioner and a scheduler that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.fake_api import Call, FakeApi, Fault
from support.sizes import GIB
from support.topology_objects import NS, claim
from support.topology_rig import TopologyRig

from csi_driver.kube.resources import PODS, PVCS, SNAPSHOT_CONTENTS, SNAPSHOTS


@pytest.fixture
async def leading(fake: FakeApi) -> AsyncIterator[TopologyRig]:
    made = TopologyRig(fake)
    await made.begin()
    yield made
    await made.stop()


async def test_a_claim_that_the_webhook_missed_is_led(leading: TopologyRig) -> None:
    leading.cls("tidemark", fs="xfs")
    leading.snapshot("s", "n-2")
    leading.bound("a", "n-1")
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("c", clone="a"))
    leading.put(claim("e"))
    await leading.reconcile()
    assert [leading.selected(name) for name in ("r", "c", "e")] == ["n-2", "n-1", None]
    assert sorted(leading.capacities.asked) == [("n-1", "default", {"fs": "xfs"}), ("n-2", "default", {"fs": "xfs"})]
    await leading.reconcile()
    assert len(leading.capacities.asked) == 2, "what is led is not asked for again"


async def test_claims_of_others_are_left_alone(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.snapshot("foreign", "n-1", driver="other")
    leading.cls("now", mode="Immediate")
    leading.cls("other", driver="other")
    for number, cls in enumerate(("now", "other", "nothing")):
        leading.put(claim(f"c-{number}", snapshot="s", cls=cls))
    leading.put(claim("c-3", snapshot="foreign"))
    leading.bound("c-4", "n-1", snapshot="s")
    going = claim("c-5", snapshot="s")
    going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]}
    leading.put(going)
    await leading.reconcile()
    assert not leading.fake.asked("patch", PVCS)
    assert leading.capacities.asked == []


async def test_claim_and_snapshot_of_one_manifest(leading: TopologyRig) -> None:
    """The restore is led as soon as the disk of its snapshot's claim is made; the search for it slows down."""
    leading.put(claim("a"))
    leading.snapshot("s", of="a")
    leading.put(claim("r", snapshot="s"))
    for _ in range(30):
        await leading.reconcile()
    assert leading.selected("r") is None
    assert len(leading.fake.asked("get", SNAPSHOTS)) < 10
    leading.bound("a", "n-3")
    await leading.reconcile(15)
    assert leading.selected("r") == "n-3"


async def test_another_node_that_was_selected_in_ignorance_is_replaced(leading: TopologyRig) -> None:
    """The scheduler had chosen before anybody knew; the pod's other claims must not settle there."""
    leading.snapshot("s", "n-2")
    leading.put(claim("r", snapshot="s", selected="n-1"))
    await leading.reconcile()
    assert leading.selected("r") == "n-2"


async def test_a_source_pool_that_is_full_is_no_hot_loop(leading: TopologyRig) -> None:
    """The agent says that there is room, and CreateVolume says that there is none: for an hour, each pin costs a call."""
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s"))
    calls = 0
    await leading.reconcile(0)
    for _ in range(1800):
        await leading.reconcile(2)
        if leading.selected("r") is not None:
            calls += 1
            leading.unselect("r")  # RESOURCE_EXHAUSTED
            await leading.reconcile(0)
    # After 1, 2, 4 ... 256 s (511 s in all), and then every 5 minutes.
    assert 9 <= calls <= 9 + 1 + (3600 - 511) // 300 + 1


async def test_a_pin_that_was_taken_away_comes_back_with_the_room(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s", size="2Gi"))
    await leading.reconcile()
    leading.unselect("r")
    leading.capacities.left["n-1"] = GIB
    for _ in range(3):
        await leading.reconcile(100)
    assert leading.selected("r") is None
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeFull"]
    assert "a capacity of 1073741824 bytes for 2147483648 requested" in leading.seen[0][2]
    leading.capacities.left["n-1"] = 2 * GIB
    await leading.reconcile()
    assert leading.selected("r") == "n-1"


async def test_a_pin_that_was_taken_away_comes_back_with_the_agent(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.capacities.left["n-1"] = None
    for number in range(20):
        leading.put(claim(f"r-{number}", snapshot="s"))
    await leading.reconcile()
    assert len(leading.capacities.asked) == 1, "a silent agent is asked once for all"
    assert leading.reasons("PersistentVolumeClaim r-7") == ["SourceAgentUnreachable"]
    leading.capacities.left["n-1"] = 100 * GIB
    await leading.reconcile()
    assert {leading.selected(f"r-{number}") for number in range(20)} == {"n-1"}


async def test_the_node_of_the_source_is_down(leading: TopologyRig) -> None:
    """The claim says so, once in five minutes, also where it is pinned already; it goes on when the node is back."""
    leading.snapshot("s", "n-1")
    leading.node("n-1", ready=False)
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("p", snapshot="s", selected="n-1"))
    for _ in range(10):
        await leading.reconcile()
    for name in "rp":
        assert leading.reasons(f"PersistentVolumeClaim {name}") == ["SourceNodeNotReady"]
    assert leading.capacities.asked == []
    await leading.reconcile(300)
    assert leading.reasons("PersistentVolumeClaim r") == ["SourceNodeNotReady"] * 2
    leading.node("n-1")
    await leading.reconcile()
    assert leading.selected("r") == "n-1"


async def test_the_node_of_the_source_is_gone(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-9")
    leading.put(claim("r", snapshot="s"))
    await leading.reconcile()
    assert leading.seen[0][:2] == ("PersistentVolumeClaim r", "SourceNodeGone")
    assert "node n-9" in leading.seen[0][2]


async def test_a_long_node_name(leading: TopologyRig) -> None:
    leading.node("a-node-with-a-long-name", owner="abc123")
    leading.snapshot("s", "abc123")
    leading.put(claim("r", snapshot="s"))
    await leading.reconcile()
    assert leading.selected("r") == "a-node-with-a-long-name"


async def test_a_claim_that_changes_meanwhile_is_left_for_the_next_reconciliation(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.put(claim("r", snapshot="s"))
    await leading.reconcile()
    leading.unselect("r")
    await leading.reconcile(0)

    def change(call: Call) -> None:
        if call.verb == "patch" and call.kind == PVCS:
            leading.fake.hooks.clear()
            leading.fake.change(PVCS, "r", {"metadata": {"labels": {"a": "b"}}}, NS)

    leading.fake.hooks.append(change)
    await leading.reconcile(10)
    assert leading.selected("r") is None
    await leading.reconcile(10)
    assert leading.selected("r") == "n-1"


async def test_one_claim_that_cannot_be_read_about_holds_up_no_other(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.bound("a", "n-2")

    def refuse(call: Call) -> None:
        if call.kind == SNAPSHOTS:
            raise Fault(403, "Forbidden", "no right")

    leading.fake.hooks.append(refuse)
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("c", clone="a"))
    await leading.reconcile()
    assert leading.selected("c") == "n-2"
    leading.fake.hooks.clear()
    await leading.reconcile()
    assert leading.selected("r") == "n-1"


async def test_a_cluster_without_snapshots(leading: TopologyRig) -> None:
    leading.fake.unserved |= {SNAPSHOTS, SNAPSHOT_CONTENTS}
    leading.bound("a", "n-2")
    leading.put(claim("r", snapshot="s"))
    leading.put(claim("c", clone="a"))
    await leading.reconcile()
    assert (leading.selected("r"), leading.selected("c")) == (None, "n-2")


SAYS = "0/3 nodes are available: 3 node(s) had volume node affinity conflict."


async def test_a_pod_whose_other_disk_lies_elsewhere(leading: TopologyRig) -> None:
    """Both claims, both nodes, on the claim, on the other claim and on the pod; bound or not."""
    leading.snapshot("s", "n-1")
    leading.bound("old", "n-2")
    leading.put(claim("r", snapshot="s"))
    leading.pod("p", "r", "old", says=SAYS)
    await leading.reconcile()
    for about in ("Pod p", "PersistentVolumeClaim r", "PersistentVolumeClaim old"):
        assert leading.reasons(about) == ["SourceNodeConflict"]
    words = leading.seen[0][2]
    assert "PVC r on node n-1" in words
    assert "PVC old on node n-2" in words
    leading.bound("r", "n-1", snapshot="s")
    await leading.reconcile()
    assert leading.reasons("Pod p") == ["SourceNodeConflict"], "the same is not reported again at once"


async def test_a_pod_with_generic_ephemeral_volumes(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.bound("old", "n-2")
    leading.bound("p-scratch", "n-1", snapshot="s")
    leading.pod("p", "old", volumes=[{"name": "scratch", "ephemeral": {}}, {"name": "other", "emptyDir": {}}])
    await leading.reconcile()
    assert leading.reasons("PersistentVolumeClaim p-scratch") == ["SourceNodeConflict"]


@pytest.mark.parametrize("bound", [False, True])
async def test_the_node_of_the_source_is_cordoned(leading: TopologyRig, bound: bool) -> None:
    """The disk is made there all the same; the claim says what keeps its pod away, until it is lifted."""
    leading.snapshot("s", "n-1")
    leading.node("n-1", cordoned=True)
    leading.pod("p", "r", says="0/3 nodes are available: 1 node(s) were unschedulable")
    if bound:
        leading.bound("r", "n-1", snapshot="s")
    else:
        leading.put(claim("r", snapshot="s"))
    await leading.reconcile()
    if not bound:
        assert leading.selected("r") == "n-1"
    (event,) = leading.seen
    assert event[:2] == ("PersistentVolumeClaim r", "SourceNodeCordoned")
    assert "node n-1" in event[2]
    leading.node("n-1")
    leading.fake.change(PODS, "p", {"spec": {"nodeName": "n-1"}}, NS)
    await leading.reconcile(1000)
    assert len(leading.seen) == 1


async def test_a_rule_of_the_pod_keeps_it_from_its_node(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    leading.bound("r", "n-1", snapshot="s")
    leading.pod("p", "r", says="0/3 nodes are available: 1 node(s) didn't match pod anti-affinity rules")
    await leading.reconcile()
    (event,) = leading.seen
    assert event[:2] == ("PersistentVolumeClaim r", "SourceNodeExcluded")
    assert "node n-1" in event[2]
    assert "anti-affinity" in event[2]


async def test_pods_of_others(leading: TopologyRig) -> None:
    """Their disks, their nodes, their events."""
    leading.bound("theirs", "n-2", driver="other")
    leading.bound("empty", "n-1")
    leading.pod("p", "theirs", "empty", "not-there", says=SAYS)
    await leading.reconcile()
    assert leading.seen == []


async def test_it_goes_on_until_it_is_cancelled(leading: TopologyRig) -> None:
    leading.snapshot("s", "n-1")
    running = asyncio.ensure_future(leading.controller.run())
    leading.put(claim("r", snapshot="s"))
    async with asyncio.timeout(60):
        while leading.selected("r") is None:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait([running])

"""Which owners a cluster has, where their agents are, and which of them a person gave up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from controller_rig import DRIVER, NAMESPACE, agent_pod, node, volume
from support.fake_api import Call, FakeApi, Fault

from csi_driver.domain.errors import NotFound, Precondition
from csi_driver.domain.ids import owner_of_node
from csi_driver.kube.client import Api
from csi_driver.kube.informers import InformerFactory
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVS
from csi_driver.operator.agents import decommissioned_nodes
from csi_driver.operator.agents.discovery import ClusterDiscovery
from csi_driver.operator.installation import Installation
from csi_driver.service.discovery import AgentEndpoint

OURS = Installation(NAMESPACE, "tidemark", DRIVER)
NOW = datetime(2026, 11, 26, 7, 30, tzinfo=UTC)
HASH = "0" * 32


@pytest.fixture
async def api(fake: FakeApi) -> Api:
    return await fake.connect()


@pytest.fixture
async def discovery(api: Api) -> AsyncIterator[ClusterDiscovery]:
    informers = InformerFactory(api)
    yield ClusterDiscovery(informers, OURS)
    await informers.stop()


async def known(discovery: ClusterDiscovery) -> ClusterDiscovery:
    async with asyncio.timeout(60):
        while not discovery.has_synced():
            await asyncio.sleep(0.005)
    return discovery


async def test_owners_are_nodes_with_the_label_with_an_agent_or_with_volumes(
    fake: FakeApi, discovery: ClusterDiscovery
) -> None:
    assert not discovery.has_synced()
    assert discovery.owners() == []
    fake.put(NODES, node("labelled"))
    fake.put(NODES, node("bare", labelled=False))
    fake.put(NODES, node("new", labelled=False, ready=False))
    fake.put(PODS, agent_pod("a", "new", 9999, ip="fd00::1"), NAMESPACE)
    fake.put(PODS, agent_pod("b", "bare", 9999, owner="another-agent"), NAMESPACE)
    fake.put(PODS, agent_pod("c", "bare", 9999), "elsewhere")
    fake.put(PVS, volume("p1", f"gone:default:{HASH}"))
    fake.put(PVS, volume("p2", f"bare:default:{HASH}", driver="other.example"))
    fake.put(PVS, volume("p3", "no handle of ours"))
    fake.put(PVS, {"metadata": {"name": "p4"}, "spec": {"hostPath": {"path": "/x"}}})
    await known(discovery)
    assert discovery.owners() == ["gone", "labelled", "new"]
    assert discovery.endpoint("labelled") == AgentEndpoint("labelled", "", True)
    assert discovery.endpoint("new") == AgentEndpoint("new", "[fd00::1]:9999", False)
    assert discovery.endpoint("gone") is None
    assert discovery.endpoint("bare") == AgentEndpoint("bare", "", True)


async def test_a_node_whose_name_is_no_label(fake: FakeApi, discovery: ClusterDiscovery) -> None:
    name = "x" * 70 + ".example"
    fake.put(NODES, node(name, labelled=False))
    fake.put(PODS, agent_pod("a", name, 9807), NAMESPACE)
    await known(discovery)
    assert discovery.owners() == [owner_of_node(name)]
    assert (discovery.endpoint(owner_of_node(name)) or AgentEndpoint("", "")).address == "127.0.0.1:9807"


async def test_while_a_pod_is_replaced_the_one_that_stays_speaks_for_the_node(
    fake: FakeApi, discovery: ClusterDiscovery
) -> None:
    fake.put(NODES, node("n"))
    leaving = agent_pod("old", "n", 1)
    leaving["metadata"]["deletionTimestamp"] = "2026-11-26T07:00:00Z"
    fake.put(PODS, leaving, NAMESPACE)
    waiting = agent_pod("waiting", "n", 2, ip="")
    fake.put(PODS, waiting, NAMESPACE)
    failed = agent_pod("failed", "n", 3)
    failed["status"]["phase"] = "Failed"
    fake.put(PODS, failed, NAMESPACE)
    await known(discovery)
    assert (discovery.endpoint("n") or AgentEndpoint("", "")).address == "127.0.0.1:1"  # it still answers
    fake.put(PODS, agent_pod("new", "n", 4, ready=False), NAMESPACE)
    async with asyncio.timeout(60):
        while (discovery.endpoint("n") or AgentEndpoint("", "")).address != "127.0.0.1:4":
            await asyncio.sleep(0.005)


async def test_a_group_of_nodes_has_a_daemon_set_of_its_own(fake: FakeApi, discovery: ClusterDiscovery) -> None:
    fake.put(PODS, agent_pod("a", "n", 1, owner="tidemark-agent-fast"), NAMESPACE)
    await known(discovery)
    assert discovery.owners() == ["n"]


async def test_a_dead_node_is_decommissioned_and_counts_again(
    fake: FakeApi, api: Api, discovery: ClusterDiscovery
) -> None:
    fake.put(NODES, node("alive"))
    fake.put(PVS, volume("p", f"dead:default:{HASH}"))
    await known(discovery)
    assert discovery.owners() == ["alive", "dead"]
    await decommissioned_nodes.decommission(api, OURS, "dead", NOW)
    assert (fake.get(CONFIG_MAPS, "tidemark-forgotten", NAMESPACE) or {})["data"] == {"dead": "2026-11-26T07:30:00Z"}
    async with asyncio.timeout(60):
        while not discovery.is_decommissioned("dead"):
            await asyncio.sleep(0.005)
    assert discovery.owners() == ["alive"]
    assert not discovery.is_decommissioned("alive")
    await decommissioned_nodes.decommission(api, OURS, "dead", NOW)  # the same again is the same
    await decommissioned_nodes.recommission(api, OURS, "dead")
    with pytest.raises(NotFound, match="not decommissioned"):
        await decommissioned_nodes.recommission(api, OURS, "dead")
    async with asyncio.timeout(60):
        while discovery.is_decommissioned("dead"):
            await asyncio.sleep(0.005)
    assert discovery.owners() == ["alive", "dead"]


async def test_a_decommissioned_node_that_is_back_is_asked_again(
    fake: FakeApi, api: Api, discovery: ClusterDiscovery
) -> None:
    """By its agent, which answers: else lists would leave out what is there."""
    fake.put(PVS, volume("p", f"n:default:{HASH}"))
    await decommissioned_nodes.decommission(api, OURS, "n", NOW)
    await known(discovery)
    fake.put(NODES, node("n"))
    fake.put(PODS, agent_pod("a", "n", 1, ready=False), NAMESPACE)
    async with asyncio.timeout(60):
        while discovery.endpoint("n") is None or not (discovery.endpoint("n") or AgentEndpoint("", "")).address:
            await asyncio.sleep(0.005)
    assert discovery.is_decommissioned("n")
    fake.put(PODS, agent_pod("a", "n", 1), NAMESPACE)
    async with asyncio.timeout(60):
        while discovery.is_decommissioned("n"):
            await asyncio.sleep(0.005)
    assert discovery.owners() == ["n"]


async def test_before_all_is_read_nobody_is_taken_for_given_up(fake: FakeApi, api: Api) -> None:
    """The note is there, and the pod of the agent that came back is not seen yet: its disks are not deleted by that."""
    await decommissioned_nodes.decommission(api, OURS, "n", NOW, force=True)
    fake.put(NODES, node("n"))
    fake.put(PODS, agent_pod("a", "n", 1), NAMESPACE)

    def pods_are_slow(call: Call) -> None:
        if (call.kind, call.verb) == (PODS, "list"):
            raise Fault(503, "ServiceUnavailable", "try again")

    fake.hooks.append(pods_are_slow)
    informers = InformerFactory(api)
    discovery = ClusterDiscovery(informers, OURS)
    try:
        async with asyncio.timeout(60):
            while discovery.unread() != [str(PODS)]:
                await asyncio.sleep(0.005)
        assert not discovery.is_decommissioned("n")
    finally:
        await informers.stop()


async def test_what_lives_is_not_forgotten_unless_forced(fake: FakeApi, api: Api) -> None:
    fake.put(NODES, node("n"))
    fake.put(NODES, node("quiet", ready=False))
    fake.put(PODS, agent_pod("a", "n", 1), NAMESPACE)
    # Of machines without power: nobody is there to say that their pods are no longer ready.
    fake.put(PODS, agent_pod("b", "quiet", 1), NAMESPACE)
    fake.put(PODS, agent_pod("c", "gone", 1), NAMESPACE)
    with pytest.raises(Precondition, match="agent of node n answers"):
        await decommissioned_nodes.decommission(api, OURS, "n", NOW)
    fake.change(PODS, "a", {"status": {"conditions": []}}, NAMESPACE)
    with pytest.raises(Precondition, match="Ready"):
        await decommissioned_nodes.decommission(api, OURS, "n", NOW)
    with pytest.raises(Precondition, match="typo"):
        await decommissioned_nodes.decommission(api, OURS, "typo", NOW)
    assert fake.all(CONFIG_MAPS) == []
    await decommissioned_nodes.decommission(api, OURS, "quiet", NOW)
    await decommissioned_nodes.decommission(api, OURS, "gone", NOW)
    await decommissioned_nodes.decommission(api, OURS, "n", NOW, force=True)
    assert set(fake.all(CONFIG_MAPS)[0]["data"]) == {"quiet", "gone", "n"}


async def test_an_owner_that_volumes_alone_name_goes_with_the_last_of_them(
    fake: FakeApi, discovery: ClusterDiscovery
) -> None:
    async def owners(*expected: str) -> None:
        async with asyncio.timeout(60):
            while discovery.owners() != list(expected):
                await asyncio.sleep(0.005)

    for number in range(3):
        fake.put(PVS, volume(f"p{number}", f"gone:default:{number:032}"))
    await known(discovery)
    await owners("gone")
    fake.change(PVS, "p0", {"metadata": {"labels": {"a": "b"}}})
    fake.remove(PVS, "p0")
    fake.remove(PVS, "p1")
    fake.put(PVS, volume("q", f"other:default:{HASH}"))
    await owners("gone", "other")
    fake.remove(PVS, "p2")
    await owners("other")
    fake.put(PVS, volume("p3", f"gone:default:{HASH}"))
    await owners("gone", "other")

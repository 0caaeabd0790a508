"""The controller's port to the agents: what an agent records comes through whole, and its refusals keep their meaning."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from support.cluster_rig import AgentOnTls, Cluster
from support.rpc_rig import create_volume, from_snapshot, places

from csi_driver._pb import csi_pb2 as C
from csi_driver.domain.errors import Busy, InvalidRequest, NotFound, Precondition, Unavailable
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.service.rollbacks import RollbackRequest


@pytest.fixture
def agents(cluster: Cluster) -> AgentApi:
    return AgentApi(cluster.channels)


async def volume(cluster: Cluster, name: str = "v", **more: object) -> str:
    request = create_volume(name, accessibility_requirements=places("n-1"), **more)
    return (await cluster.controller.CreateVolume(request)).volume.volume_id


async def snapshot(cluster: Cluster, volume_id: str, name: str = "s") -> str:
    request = C.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
    return (await cluster.controller.CreateSnapshot(request)).snapshot.snapshot_id


async def test_a_rollback_is_seen_as_it_was_made(cluster: Cluster, agents: AgentApi) -> None:
    made = await volume(cluster)
    target = await snapshot(cluster, made)
    await agents.hold(made, "me")
    safety = await snapshot(cluster, made, "safety")
    before = await agents.describe_volume(made)
    assert before.hold is not None
    assert before.hold.holder == "me"
    assert before.snapshots[target] < before.hold.since <= before.snapshots[safety]
    assert before.completed_rollback("r") is None
    for _ in range(2):
        await agents.roll_back(RollbackRequest(made, target, "r", "me", safety=safety))
    await agents.release(made, "me")
    after = await agents.describe_volume(made)
    assert (after.uid, after.hold, after.used_by) == (before.uid, None, ())
    assert [(b.name, b.snapshot, b.safety) for b in after.rollbacks] == [("r", target, safety)]
    assert after.rollbacks[0].at >= before.hold.since


async def test_renewed_a_hold_stays_unbroken(cluster: Cluster, agents: AgentApi) -> None:
    made = await volume(cluster)
    await agents.hold(made, "me")
    first = (await agents.describe_volume(made)).hold
    await agents.hold(made, "me")
    renewed = (await agents.describe_volume(made)).hold
    assert first is not None
    assert renewed is not None
    assert (renewed.holder, renewed.since) == ("me", first.since)
    assert renewed.expires > first.expires


async def test_own_are_the_disks_snapshots_alone(cluster: Cluster, agents: AgentApi) -> None:
    """Not those of a clone, nor those of the disk that had the same name before."""
    made = await volume(cluster)
    own = await snapshot(cluster, made, "own")
    clone = await volume(cluster, "clone", volume_content_source=from_snapshot(own))
    of_clone = await snapshot(cluster, clone, "of-clone")
    assert set((await agents.describe_volume(made)).snapshots) == {own}
    assert set((await agents.describe_volume(clone)).snapshots) == {of_clone}
    await cluster.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))
    again = await volume(cluster)
    assert again == made
    assert (await agents.describe_volume(again)).snapshots == {}


async def test_refusals_keep_their_meaning(cluster: Cluster, agents: AgentApi) -> None:
    made, other = await volume(cluster), await volume(cluster, "w")
    foreign, own = await snapshot(cluster, other, "foreign"), await snapshot(cluster, made, "own")
    with pytest.raises(NotFound, match="does not exist"):
        await agents.describe_volume("nonsense")
    with pytest.raises(NotFound, match="0000"):
        await agents.describe_volume(made[:-4] + "0000")
    await agents.hold(made, "me")
    with pytest.raises(Precondition, match="held by 'me'"):
        await agents.hold(made, "somebody")
    with pytest.raises(Precondition, match="held by 'me'"):
        await agents.release(made, "somebody")
    with pytest.raises(InvalidRequest, match="create a new volume from it instead"):
        await agents.roll_back(RollbackRequest(made, foreign, "r", "me", skip_safety=True))
    await agents.release(made, "me")
    with pytest.raises(Precondition, match="has expired"):
        await agents.roll_back(RollbackRequest(made, own, "r", "me", skip_safety=True))
    agent = cluster.agents["n-1"]
    agent.context.pools.locks.patience = 0.0
    async with agent.context.pools.locks.hold("Somebody's call", [made.rsplit(":", 1)[1]]):
        with pytest.raises(Busy, match="Somebody's call"):
            await agents.hold(made, "me")
    assert (await agents.describe_volume(made)).rollbacks == ()


async def test_a_silent_agent_is_named(cluster: Cluster, agents: AgentApi) -> None:
    made = await volume(cluster)
    await cluster.agents["n-1"].server.stop(0)
    for call in (agents.describe_volume(made), agents.hold(made, "me"), agents.release(made, "me")):
        with pytest.raises(Unavailable, match="n-1"):
            await call


async def test_a_disk_is_gone_with_a_decommissioned_node_unless_the_cluster_knows_it_again(
    cluster: Cluster, agents: AgentApi
) -> None:
    made = await volume(cluster)
    cluster.discovery.given_up.add("n-1")
    assert (await agents.describe_volume(made)).id == made
    await cluster.agents["n-1"].server.stop(0)
    with pytest.raises(
        Unavailable
    ):  # the node is in the cluster (again): its agent may yet tell what became of the disk
        await agents.describe_volume(made)
    del cluster.discovery.places["n-1"]
    with pytest.raises(NotFound, match="lost with node n-1, which was decommissioned"):
        await agents.describe_volume(made)


class WithoutDescribeVolume(grpc.aio.ServerInterceptor):
    """Makes a server one of 4414c43, which does not have the call: gRPC itself answers for it."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.endswith("/DescribeVolume"):
            return None
        return await continuation(handler_call_details)


async def replace_by_earlier_version(agent: AgentOnTls) -> None:
    await agent.server.stop(0)
    agent.earlier = [WithoutDescribeVolume()]
    await agent.start()


async def test_an_agent_of_the_version_before_is_asked_for_the_tree(cluster: Cluster, agents: AgentApi) -> None:
    made = await volume(cluster)
    target = await snapshot(cluster, made)
    clone = await volume(cluster, "clone", volume_content_source=from_snapshot(target))
    await snapshot(cluster, clone, "of-clone")
    await agents.hold(made, "me")
    await agents.roll_back(RollbackRequest(made, target, "r", "me", skip_safety=True))
    now = await agents.describe_volume(made)
    agent = cluster.agents["n-1"]
    assert (agent.asked("DescribeVolume"), agent.asked("GetTree")) == (1, 0)
    await replace_by_earlier_version(agent)
    assert await agents.describe_volume(made) == now
    assert (agent.asked("DescribeVolume"), agent.asked("GetTree")) == (1, 1)
    with pytest.raises(NotFound, match="0000"):
        await agents.describe_volume(made[:-4] + "0000")


async def test_only_the_users_of_the_one_volume_are_asked_for(
    cluster: Cluster, agents: AgentApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await volume(cluster)
    parent = made
    for number in range(3):
        cut = await snapshot(cluster, parent, f"s-{number}")
        parent = await volume(cluster, f"clone-{number}", volume_content_source=from_snapshot(cut))
    access = cluster.agents["n-1"].backend.access
    asked: list[str] = []

    async def use(item: Any) -> Any:
        asked.append(str(item.id))
        return await original(item)

    original = access.use
    monkeypatch.setattr(access, "use", use)
    await agents.describe_volume(made)
    assert asked == [made]

"""The operator's port to the disks: what an agent records comes through whole, and its refusals keep their meaning."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cluster_rig import AgentOnTls, Cluster
from rpc_rig import create_volume, from_snapshot, places

from csi_driver._pb import csi_pb2 as C
from csi_driver.domain.errors import Busy, InvalidRequest, NotFound, Precondition, Unavailable
from csi_driver.rpc.clients.disks import AgentDisks
from csi_driver.service.disks import Wanted


@pytest.fixture
def disks(cluster: Cluster) -> AgentDisks:
    return AgentDisks(cluster.channels)


async def volume(cluster: Cluster, name: str = "v", **more: object) -> str:
    request = create_volume(name, accessibility_requirements=places("n-1"), **more)
    return (await cluster.controller.CreateVolume(request)).volume.volume_id


async def snapshot(cluster: Cluster, volume_id: str, name: str = "s") -> str:
    request = C.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
    return (await cluster.controller.CreateSnapshot(request)).snapshot.snapshot_id


async def test_a_rollback_is_seen_as_it_was_made(cluster: Cluster, disks: AgentDisks) -> None:
    made = await volume(cluster)
    target = await snapshot(cluster, made)
    await disks.hold(made, "me")
    safety = await snapshot(cluster, made, "safety")
    before = await disks.look(made)
    assert before.held is not None
    assert before.held.holder == "me"
    assert before.snapshots[target] < before.held.since <= before.snapshots[safety]
    assert before.back("r") is None
    for _ in range(2):
        await disks.roll_back(Wanted(made, target, "r", "me", safety))
    await disks.release(made, "me")
    after = await disks.look(made)
    assert (after.uid, after.held, after.used_by) == (before.uid, None, ())
    assert [(b.name, b.snapshot, b.safety) for b in after.rollbacks] == [("r", target, safety)]
    assert after.rollbacks[0].at >= before.held.since


async def test_renewed_a_hold_stays_unbroken(cluster: Cluster, disks: AgentDisks) -> None:
    made = await volume(cluster)
    await disks.hold(made, "me")
    first = (await disks.look(made)).held
    await disks.hold(made, "me")
    assert (await disks.look(made)).held == first


async def test_own_are_the_disks_snapshots_alone(cluster: Cluster, disks: AgentDisks) -> None:
    """Not those of a clone, nor those of the disk that had the same name before."""
    made = await volume(cluster)
    own = await snapshot(cluster, made, "own")
    clone = await volume(cluster, "clone", volume_content_source=from_snapshot(own))
    of_clone = await snapshot(cluster, clone, "of-clone")
    assert set((await disks.look(made)).snapshots) == {own}
    assert set((await disks.look(clone)).snapshots) == {of_clone}
    await cluster.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))
    again = await volume(cluster)
    assert again == made
    assert (await disks.look(again)).snapshots == {}


async def test_refusals_keep_their_meaning(cluster: Cluster, disks: AgentDisks) -> None:
    made, other = await volume(cluster), await volume(cluster, "w")
    foreign, own = await snapshot(cluster, other, "foreign"), await snapshot(cluster, made, "own")
    with pytest.raises(NotFound, match="does not exist"):
        await disks.look("nonsense")
    with pytest.raises(NotFound, match="0000"):
        await disks.look(made[:-4] + "0000")
    await disks.hold(made, "me")
    with pytest.raises(Precondition, match="held by 'me'"):
        await disks.hold(made, "somebody")
    with pytest.raises(Precondition, match="held by 'me'"):
        await disks.release(made, "somebody")
    with pytest.raises(InvalidRequest, match="create a new volume from it instead"):
        await disks.roll_back(Wanted(made, foreign, "r", "me"))
    await disks.release(made, "me")
    with pytest.raises(Precondition, match="has lapsed"):
        await disks.roll_back(Wanted(made, own, "r", "me"))
    agent = cluster.agents["n-1"]
    agent.context.pools.locks.patience = 0.0
    async with agent.context.pools.locks.hold("Somebody's call", [made.rsplit(":", 1)[1]]):
        with pytest.raises(Busy, match="Somebody's call"):
            await disks.hold(made, "me")
    assert (await disks.look(made)).rollbacks == ()


async def test_a_silent_agent_is_named(cluster: Cluster, disks: AgentDisks) -> None:
    made = await volume(cluster)
    await cluster.agents["n-1"].server.stop(0)
    for call in (disks.look(made), disks.hold(made, "me"), disks.release(made, "me")):
        with pytest.raises(Unavailable, match="n-1"):
            await call


async def test_a_disk_is_gone_with_a_forgotten_node_unless_the_cluster_knows_it_again(
    cluster: Cluster, disks: AgentDisks
) -> None:
    made = await volume(cluster)
    cluster.discovery.given_up.add("n-1")
    assert (await disks.look(made)).id == made
    await cluster.agents["n-1"].server.stop(0)
    with pytest.raises(
        Unavailable
    ):  # the node is in the cluster (again): its agent may yet tell what became of the disk
        await disks.look(made)
    del cluster.discovery.places["n-1"]
    with pytest.raises(NotFound, match="lost with node n-1, which was forgotten"):
        await disks.look(made)


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


async def test_an_agent_of_the_version_before_is_asked_for_the_tree(cluster: Cluster, disks: AgentDisks) -> None:
    made = await volume(cluster)
    target = await snapshot(cluster, made)
    clone = await volume(cluster, "clone", volume_content_source=from_snapshot(target))
    await snapshot(cluster, clone, "of-clone")
    await disks.hold(made, "me")
    await disks.roll_back(Wanted(made, target, "r", "me"))
    now = await disks.look(made)
    agent = cluster.agents["n-1"]
    assert (agent.asked("DescribeVolume"), agent.asked("GetTree")) == (1, 0)
    await replace_by_earlier_version(agent)
    assert await disks.look(made) == now
    assert (agent.asked("DescribeVolume"), agent.asked("GetTree")) == (1, 1)
    with pytest.raises(NotFound, match="0000"):
        await disks.look(made[:-4] + "0000")


async def test_only_the_users_of_the_one_volume_are_asked_for(
    cluster: Cluster, disks: AgentDisks, monkeypatch: pytest.MonkeyPatch
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
    await disks.look(made)
    assert asked == [made]

"""The controller: each message reaches the agent that owns it, and what cannot be reached is said, never guessed."""

from __future__ import annotations

import asyncio
import errno

import grpc
import pytest
from support.cluster_rig import Cluster
from support.rpc_rig import CODE, create_volume, from_snapshot, from_volume, outlived, places
from support.sizes import GIB, MIB

from csi_driver._pb import csi_pb2 as C
from csi_driver._pb import tidemark_pb2 as T
from csi_driver.domain.capacity import CapacityPolicy
from csi_driver.rpc.agent.unimplemented import NotOffered
from csi_driver.rpc.forwarding.controller import ForwardingController
from csi_driver.rpc.forwarding.forwarder import Forwarder
from csi_driver.rpc.forwarding.group_controller import ForwardingGroupController
from csi_driver.rpc.forwarding.tidemark import ForwardingTidemark
from csi_driver.service.discovery import AgentEndpoint


async def refused(call: object, code: grpc.StatusCode, *words: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code() is code, caught.value.details()
    details = caught.value.details() or ""
    for word in words:
        assert word in details
    return details


async def volume(cluster: Cluster, name: str, owner: str, **more: object) -> str:
    request = create_volume(name, accessibility_requirements=places(owner), **more)
    return (await cluster.controller.CreateVolume(request)).volume.volume_id


async def snapshot(cluster: Cluster, volume_id: str, name: str = "s") -> str:
    request = C.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
    return (await cluster.controller.CreateSnapshot(request)).snapshot.snapshot_id


async def test_no_call_goes_to_a_proxy_of_the_environment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC reads these when it makes a channel, and would have a proxy connect to the agent."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await volume(cluster, "v", "n-1")).startswith("n-1:")


async def test_every_call_reaches_the_owner(cluster: Cluster) -> None:
    for owner, other in (("n-1", "n-10"), ("n-10", "n-1")):
        made = await volume(cluster, f"v {owner}", owner)
        assert made.startswith(f"{owner}:")
        cut = await snapshot(cluster, made, f"s {owner}")
        assert cut.startswith(f"{owner}:")
        to = cluster.controller
        assert (await to.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=made))).volume.volume_id == made
        assert (await to.GetSnapshot(C.GetSnapshotRequest(snapshot_id=cut))).snapshot.source_volume_id == made
        asked = C.ControllerExpandVolumeRequest(volume_id=made, capacity_range=C.CapacityRange(required_bytes=2 * MIB))
        assert (await to.ControllerExpandVolume(asked)).capacity_bytes == 2 * MIB
        caps = create_volume().volume_capabilities
        asked_caps = C.ValidateVolumeCapabilitiesRequest(volume_id=made, volume_capabilities=caps)
        assert (await to.ValidateVolumeCapabilities(asked_caps)).confirmed.volume_capabilities == caps
        group = C.CreateVolumeGroupSnapshotRequest(name=f"g {owner}", source_volume_ids=[made])
        grouped = (await cluster.groups.CreateVolumeGroupSnapshot(group)).group_snapshot
        found = C.GetVolumeGroupSnapshotRequest(group_snapshot_id=grouped.group_snapshot_id)
        assert (await cluster.groups.GetVolumeGroupSnapshot(found)).group_snapshot == grouped
        await cluster.tidemark.Hold(T.HoldRequest(volume_id=made, holder="h"))
        rolled = await cluster.tidemark.Rollback(
            T.RollbackRequest(volume_id=made, snapshot_id=cut, name="r", holder="h", skip_safety_snapshot=True)
        )
        assert rolled.HasField("rolled_back_at")
        await cluster.tidemark.Release(T.ReleaseRequest(volume_id=made, holder="h"))
        await cluster.tidemark.SetLabel(T.SetLabelRequest(volume_id=made, label="shown"))
        freed = await cluster.tidemark.EstimateFreed(T.EstimateFreedRequest(ids=[made, cut]))
        assert freed.freed_bytes == 0, "nothing was written"
        tree = await cluster.tidemark.GetTree(T.GetTreeRequest(volume_id=made))
        assert next(node for node in tree.nodes if node.id == made).label == "shown"
        assert {node.id for node in tree.nodes} >= {made, cut}
        described = await cluster.tidemark.DescribeVolume(T.DescribeVolumeRequest(volume_id=made))
        assert described.volume == next(node for node in tree.nodes if node.id == made)
        assert cut in {one.id for one in described.snapshots}
        gone = C.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=grouped.group_snapshot_id)
        await cluster.groups.DeleteVolumeGroupSnapshot(gone)
        await to.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=cut))
        await to.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))
        assert cluster.agents[owner].pool.volumes == cluster.agents[owner].pool.snapshots == {}
        assert cluster.agents[other].asked("CreateSnapshot") == cluster.agents[other].asked("Hold")


async def test_refusals_come_back_as_the_agent_gave_them(cluster: Cluster) -> None:
    made = await volume(cluster, "v", "n-1")
    request = create_volume("v", size=2 * MIB, accessibility_requirements=places("n-1"))
    request.capacity_range.limit_bytes = 2 * MIB
    await refused(cluster.controller.CreateVolume(request), CODE.ALREADY_EXISTS, "'v'")
    missing = made[:-4] + "0000"
    asked = C.ControllerGetVolumeRequest(volume_id=missing)
    await refused(cluster.controller.ControllerGetVolume(asked), CODE.NOT_FOUND, missing)
    assert cluster.seen.calls[-1] == ("csi.v1.Controller/ControllerGetVolume", "NOT_FOUND")


@pytest.mark.parametrize("odd", ["nobody", "a:b", "../x:default:" + "0" * 32, "n-1:default:xyz"])
async def test_an_id_of_nobody(cluster: Cluster, odd: str) -> None:
    """Deleted already, not found, matching nothing; and no agent is asked."""
    to = cluster.controller
    await to.DeleteVolume(C.DeleteVolumeRequest(volume_id=odd))
    await to.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=odd))
    await cluster.groups.DeleteVolumeGroupSnapshot(C.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=odd))
    await refused(to.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=odd)), CODE.NOT_FOUND)
    await refused(to.GetSnapshot(C.GetSnapshotRequest(snapshot_id=odd)), CODE.NOT_FOUND)
    await refused(to.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=odd)), CODE.NOT_FOUND)
    copy = create_volume("c", volume_content_source=from_snapshot(odd))
    await refused(to.CreateVolume(copy), CODE.NOT_FOUND)
    assert not (await to.ListSnapshots(C.ListSnapshotsRequest(snapshot_id=odd))).entries
    assert not (await to.ListSnapshots(C.ListSnapshotsRequest(source_volume_id=odd))).entries
    assert all(agent.seen.calls == [] for agent in cluster.agents.values())


async def test_a_snapshot_of_one_node_and_a_volume_of_another_match_nothing(cluster: Cluster) -> None:
    cut = await snapshot(cluster, await volume(cluster, "v", "n-1"))
    other = await volume(cluster, "w", "n-10")
    asked = C.ListSnapshotsRequest(snapshot_id=cut, source_volume_id=other)
    assert not (await cluster.controller.ListSnapshots(asked)).entries


async def test_missing_fields_are_refused_here(cluster: Cluster) -> None:
    to = cluster.controller
    await refused(to.CreateVolume(create_volume("")), CODE.INVALID_ARGUMENT, "name")
    await refused(to.DeleteVolume(C.DeleteVolumeRequest()), CODE.INVALID_ARGUMENT, "volume_id")
    await refused(to.CreateSnapshot(C.CreateSnapshotRequest(name="s")), CODE.INVALID_ARGUMENT, "source_volume_id")
    await refused(to.ListVolumes(C.ListVolumesRequest(max_entries=-1)), CODE.INVALID_ARGUMENT, "max_entries")
    empty = C.CreateVolumeGroupSnapshotRequest(name="g")
    await refused(cluster.groups.CreateVolumeGroupSnapshot(empty), CODE.INVALID_ARGUMENT, "source_volume_ids")


@pytest.mark.parametrize("service", [ForwardingController, ForwardingGroupController, ForwardingTidemark])
def test_each_call_is_forwarded_under_its_own_name(service: type[Forwarder]) -> None:
    file = T.DESCRIPTOR if service is ForwardingTidemark else C.DESCRIPTOR
    for method in file.services_by_name[service.service.rpartition(".")[2]].methods:
        assert getattr(service, method.name).__name__ == method.name
        answers = any(method.name in kind.__dict__ for kind in (service, NotOffered))
        assert answers, "or gRPC would answer that the call is not implemented"


# ---- placement


async def test_a_restore_and_a_clone_go_where_their_source_is(cluster: Cluster) -> None:
    """Also when the scheduler had chosen another node: the answer's topology brings the pod."""
    made = await volume(cluster, "v", "n-1")
    cut = await snapshot(cluster, made)
    wanted = places("n-10", "n-1")
    for name, source in (("restored", from_snapshot(cut)), ("cloned", from_volume(made))):
        request = create_volume(name, volume_content_source=source, accessibility_requirements=wanted)
        got = (await cluster.controller.CreateVolume(request)).volume
        assert got.volume_id.startswith("n-1:")
        assert [dict(place.segments) for place in got.accessible_topology] == [
            {"topology.csi.tidemark.dev/node": "n-1"}
        ]
    assert cluster.agents["n-10"].asked("CreateVolume") == 0


async def test_a_restore_that_no_allowed_node_can_have(cluster: Cluster) -> None:
    """RESOURCE_EXHAUSTED, so that the scheduler chooses again; never INVALID_ARGUMENT or NOT_FOUND. One call each."""
    cut = await snapshot(cluster, await volume(cluster, "v", "n-1"))
    before = cluster.agents["n-1"].asked("CreateVolume")
    request = create_volume("r", volume_content_source=from_snapshot(cut), accessibility_requirements=places("n-10"))
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED, "n-1", "n-10")
    assert cluster.agents["n-1"].asked("CreateVolume") == before + 1
    cluster.agents["n-1"].faults.fail("create_volume", OSError(errno.ENOSPC, "full"))
    request = create_volume("r", volume_content_source=from_snapshot(cut), accessibility_requirements=places("n-1"))
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED)
    assert cluster.agents["n-1"].asked("CreateVolume") == before + 2
    assert cluster.agents["n-10"].asked("CreateVolume") == 0


async def test_immediate_binding_walks_on_after_a_final_no_alone(cluster: Cluster) -> None:
    wanted = places("n-10", "n-1")
    cluster.agents["n-10"].faults.fail("create_volume", OSError(errno.ENOSPC, "full"))
    request = create_volume("v", accessibility_requirements=wanted)
    got = (await cluster.controller.CreateVolume(request)).volume.volume_id
    assert got.startswith("n-1:")
    assert cluster.claim.written == ["n-10", "n-1"]
    # The answer was lost and n-10 has room again: the claim remembers, and the retry finds the same volume.
    assert (await cluster.controller.CreateVolume(request)).volume.volume_id == got
    assert cluster.agents["n-10"].pool.volumes == {}
    assert cluster.claim.written == ["n-10", "n-1"]


async def test_immediate_binding_waits_for_an_agent_that_is_silent(cluster: Cluster) -> None:
    """It may have made the volume: nobody else is asked before it said no."""
    await cluster.agents["n-10"].server.stop(0)
    request = create_volume("v", accessibility_requirements=places("n-10", "n-1"))
    await refused(cluster.controller.CreateVolume(request), CODE.UNAVAILABLE, "n-10")
    assert cluster.agents["n-1"].asked("CreateVolume") == 0
    await cluster.agents["n-10"].start()
    got = (await cluster.controller.CreateVolume(request)).volume.volume_id
    assert got.startswith("n-10:")


async def test_no_room_anywhere(cluster: Cluster) -> None:
    for agent in cluster.agents.values():
        agent.faults.fail("create_volume", OSError(errno.ENOSPC, "full"))
    request = create_volume("v", accessibility_requirements=places("n-1", "n-10"))
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED, "no node has enough space")


async def test_immediate_binding_walks_on_where_a_pool_is_too_small_for_ever(cluster: Cluster) -> None:
    """Nodes differ: what the first one's pool could never hold may fit into the next one's."""
    small, large = cluster.agents["n-10"].pool, cluster.agents["n-1"].pool
    total = (await large.backend.space()).total
    small.policy, large.policy = CapacityPolicy(overcommit=0.25, reserve=0), CapacityPolicy(overcommit=2.0, reserve=0)
    wanted = places("n-10", "n-1")
    request = create_volume("v", accessibility_requirements=wanted)
    request.capacity_range.required_bytes = total
    for _ in range(2):
        got = (await cluster.controller.CreateVolume(request)).volume.volume_id
        assert got.startswith("n-1:")
    assert cluster.claim.written == ["n-10", "n-1"]
    request = create_volume("w", accessibility_requirements=wanted)
    request.capacity_range.required_bytes = 2 * total
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED, "no node has enough space")
    request.name = "larger than any pool"
    request.capacity_range.required_bytes = 3 * total
    await refused(cluster.controller.CreateVolume(request), CODE.OUT_OF_RANGE, "can never hold")


async def test_an_empty_volume_for_a_chosen_node(cluster: Cluster) -> None:
    """That node or none: full is the scheduler's to solve, silent is waited for while the node is alive."""
    cluster.claim.node = "n-10"
    wanted = places("n-10", "n-1")
    assert (await volume(cluster, "fine", "n-10")).startswith("n-10:")
    cluster.agents["n-10"].faults.fail("create_volume", OSError(errno.ENOSPC, "full"))
    request = create_volume("v", accessibility_requirements=wanted)
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED)
    await cluster.agents["n-10"].server.stop(0)
    await refused(cluster.controller.CreateVolume(request), CODE.UNAVAILABLE, "n-10")
    cluster.ready("n-10", False)
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED, "n-10", "not ready")
    del cluster.discovery.places["n-10"]
    await refused(cluster.controller.CreateVolume(request), CODE.RESOURCE_EXHAUSTED, "n-10")
    cluster.discovery.read = False  # a controller that has read nothing yet cannot know that the node is gone
    await refused(cluster.controller.CreateVolume(request), CODE.UNAVAILABLE, "n-10")
    assert cluster.claim.written == []
    assert cluster.agents["n-1"].asked("CreateVolume") == 0


async def test_a_group_lies_on_one_node(cluster: Cluster) -> None:
    ids = [await volume(cluster, f"v{owner}", owner) for owner in ("n-1", "n-10")]
    request = C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=ids)
    call = cluster.groups.CreateVolumeGroupSnapshot(request)
    await refused(call, CODE.FAILED_PRECONDITION, *(f"{one} on {one.partition(':')[0]}" for one in ids))
    assert all(agent.pool.groups == {} for agent in cluster.agents.values())


# ---- lists and sums


async def test_pages_over_all_agents(cluster: Cluster) -> None:
    """Each object once, in one order, whatever the size of a page; the token needs no memory of ours."""
    ids = []
    for number in range(7):
        ids.append(await volume(cluster, f"v{number}", ("n-1", "n-10")[number % 2]))
        ids.append(await snapshot(cluster, ids[-1], f"s{number}"))
    volumes, snapshots = sorted(ids[::2]), sorted(ids[1::2])
    for size in (0, 1, 2, 3, 4, 7, 100):
        seen: list[str] = []
        token = ""
        for _ in range(20):
            page = await cluster.controller.ListVolumes(C.ListVolumesRequest(max_entries=size, starting_token=token))
            assert not size or len(page.entries) <= size
            seen += [entry.volume.volume_id for entry in page.entries]
            token = page.next_token
            if not token:
                break
        assert seen == volumes, size
        seen = []
        for _ in range(20):
            cuts = await cluster.controller.ListSnapshots(
                C.ListSnapshotsRequest(max_entries=size, starting_token=token)
            )
            seen += [entry.snapshot.snapshot_id for entry in cuts.entries]
            token = cuts.next_token
            if not token:
                break
        assert seen == snapshots, size
    bad = C.ListVolumesRequest(starting_token="invalid")
    await refused(cluster.controller.ListVolumes(bad), CODE.ABORTED, "invalid")
    one = await cluster.controller.ListSnapshots(C.ListSnapshotsRequest(source_volume_id=ids[0]))
    assert [entry.snapshot.snapshot_id for entry in one.entries] == [ids[1]]


async def test_a_silent_agent_is_named_and_never_left_out(cluster: Cluster) -> None:
    for owner in cluster.agents:
        await volume(cluster, f"v{owner}", owner)
    await cluster.agents["n-10"].server.stop(0)
    to = cluster.controller
    await refused(to.ListVolumes(C.ListVolumesRequest()), CODE.UNAVAILABLE, "n-10")
    await refused(to.ListSnapshots(C.ListSnapshotsRequest()), CODE.UNAVAILABLE, "n-10")
    await refused(to.GetCapacity(C.GetCapacityRequest()), CODE.UNAVAILABLE, "n-10")
    place = places("n-10").requisite[0]
    await refused(to.GetCapacity(C.GetCapacityRequest(accessible_topology=place)), CODE.UNAVAILABLE, "n-10")
    await refused(cluster.tidemark.GetTree(T.GetTreeRequest()), CODE.UNAVAILABLE, "n-10")
    await refused(cluster.tidemark.ListPools(T.ListPoolsRequest()), CODE.UNAVAILABLE, "n-10")
    room = await to.GetCapacity(C.GetCapacityRequest(accessible_topology=places("n-1").requisite[0]))
    assert room.available_capacity > 0
    cluster.discovery.places["n-10"] = AgentEndpoint("n-10", "")
    await refused(to.ListVolumes(C.ListVolumesRequest()), CODE.UNAVAILABLE, "n-10")


async def test_before_the_list_of_agents_is_read_nobody_is_left_out(cluster: Cluster) -> None:
    cluster.discovery.read = False
    cluster.discovery.places.clear()
    to = cluster.controller
    await refused(to.ListVolumes(C.ListVolumesRequest()), CODE.UNAVAILABLE, "not read")
    await refused(to.ListSnapshots(C.ListSnapshotsRequest()), CODE.UNAVAILABLE, "not read")
    await refused(to.GetCapacity(C.GetCapacityRequest()), CODE.UNAVAILABLE, "not read")
    await refused(cluster.tidemark.GetTree(T.GetTreeRequest()), CODE.UNAVAILABLE, "not read")
    await refused(cluster.tidemark.ListPools(T.ListPoolsRequest()), CODE.UNAVAILABLE, "not read")


async def test_room_per_node_and_in_all(cluster: Cluster) -> None:
    to = cluster.controller
    single = {}
    for owner in cluster.agents:
        request = C.GetCapacityRequest(
            accessible_topology=places(owner).requisite[0], parameters={"csi.storage.k8s.io/fstype": "xfs"}
        )
        single[owner] = await to.GetCapacity(request)
        assert 100 * GIB < single[owner].available_capacity <= 128 * GIB
    both = await to.GetCapacity(C.GetCapacityRequest())
    assert both.available_capacity == sum(one.available_capacity for one in single.values())
    assert both.maximum_volume_size.value == max(one.maximum_volume_size.value for one in single.values())
    elsewhere = C.Topology(segments={"topology.kubernetes.io/zone": "z"})
    none = await to.GetCapacity(C.GetCapacityRequest(accessible_topology=elsewhere))
    assert (none.available_capacity, none.maximum_volume_size.value) == (0, 0)


async def test_a_pool_on_one_node_only(cluster: Cluster) -> None:
    await volume(cluster, "v", "n-1")
    assert len((await cluster.tidemark.GetTree(T.GetTreeRequest(pool="default"))).nodes) == 1
    await refused(cluster.tidemark.GetTree(T.GetTreeRequest(pool="absent")), CODE.NOT_FOUND, "absent")
    assert {pool.owner for pool in (await cluster.tidemark.ListPools(T.ListPoolsRequest())).pools} == {"n-1", "n-10"}


# ---- channels


async def test_an_agent_that_comes_back_is_found_again(cluster: Cluster) -> None:
    made = await volume(cluster, "v", "n-1")
    agent = cluster.agents["n-1"]
    asked = C.ControllerGetVolumeRequest(volume_id=made)
    await agent.server.stop(0)
    await refused(cluster.controller.ControllerGetVolume(asked), CODE.UNAVAILABLE, "n-1", agent.address)
    await agent.start()
    assert (await cluster.controller.ControllerGetVolume(asked)).volume.volume_id == made
    await agent.server.stop(0)
    agent.port = 0  # as a pod that comes back under another address
    await agent.start()
    cluster.discovery.places["n-1"] = AgentEndpoint("n-1", agent.address)
    assert (await cluster.controller.ControllerGetVolume(asked)).volume.volume_id == made


async def test_cancellation_and_deadline_reach_the_agent(cluster: Cluster) -> None:
    """The agent's work goes on under its locks, as with any client that goes away; the retry finds what was made."""
    agent = cluster.agents["n-1"]
    pause = agent.faults.pause("create_volume")
    request = create_volume("v", accessibility_requirements=places("n-1"))
    call = cluster.controller.CreateVolume(request)
    running = asyncio.ensure_future(_swallow(call))
    await pause.reached.wait()
    call.cancel()
    await running
    while not agent.seen.calls:
        await asyncio.sleep(0.01)
    assert agent.seen.calls[-1] == ("csi.v1.Controller/CreateVolume", "CANCELLED")
    await refused(cluster.controller.CreateVolume(request), CODE.ABORTED)
    pause.release()
    while not agent.seen.lates:
        await asyncio.sleep(0.01)
    again = (await cluster.controller.CreateVolume(request)).volume.volume_id
    assert [str(one.id) for one in agent.pool.volumes.values()] == [again]

    pause = agent.faults.pause("create_volume")
    late = create_volume("w", accessibility_requirements=places("n-1"))
    cancelled = ("csi.v1.Controller/CreateVolume", "CANCELLED")
    before = agent.seen.calls.count(cancelled)
    await outlived(lambda seconds: cluster.controller.CreateVolume(late, timeout=seconds), pause)
    while agent.seen.calls.count(cancelled) == before:
        await asyncio.sleep(0.01)
    pause.release()


async def _swallow(call: object) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call  # type: ignore[misc]

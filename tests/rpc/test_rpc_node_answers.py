"""What the node's calls and those of tidemark.v1 answer, field by field."""

from __future__ import annotations

import os

import pytest
from support.rpc_rig import CODE, OWNER, Rig, block, from_snapshot, from_volume, refused_unchanged
from support.sizes import GIB, MIB

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.backends.base import FileSystemStats
from csi_driver.domain.model import VolumeCondition
from csi_driver.rpc.agent.node import CAPABILITIES, Node

C = csi_pb2
T = tidemark_pb2
RANGE = C.CapacityRange
LABELS = {"csi.storage.k8s.io/pvc/name": "data-0", "csi.storage.k8s.io/anything": "x"}


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a\0b", "/" + "x" * 4096, "--help"])
async def test_paths_that_are_refused(rig: Rig, path: str) -> None:
    made = await rig.volume()
    for call in (
        rig.node.NodeStageVolume(
            C.NodeStageVolumeRequest(volume_id=made.volume_id, staging_target_path=path, volume_capability=block())
        ),
        rig.node.NodePublishVolume(
            C.NodePublishVolumeRequest(volume_id=made.volume_id, target_path=path, volume_capability=block())
        ),
        rig.node.NodeUnstageVolume(C.NodeUnstageVolumeRequest(volume_id=made.volume_id, staging_target_path=path)),
        rig.node.NodeUnpublishVolume(C.NodeUnpublishVolumeRequest(volume_id=made.volume_id, target_path=path)),
    ):
        await refused_unchanged(rig, call, CODE.INVALID_ARGUMENT, "absolute path")
    stats = C.NodeGetVolumeStatsRequest(volume_id=made.volume_id, volume_path=path)
    await refused_unchanged(rig, rig.node.NodeGetVolumeStats(stats), CODE.NOT_FOUND)


async def test_the_node_s_half_of_a_block_volume(rig: Rig) -> None:
    made = await rig.volume()
    for _ in range(2):
        staging = await rig.stage(made.volume_id)
    target = rig.path("target")
    publish = C.NodePublishVolumeRequest(
        volume_id=made.volume_id,
        staging_target_path=staging,
        target_path=target,
        volume_capability=block(),
        secrets={"k": "v"},
        volume_context={"a": "b"},
    )
    for _ in range(2):
        await rig.node.NodePublishVolume(publish)
    assert os.path.exists(target)
    stats = await rig.node.NodeGetVolumeStats(C.NodeGetVolumeStatsRequest(volume_id=made.volume_id, volume_path=target))
    assert [(u.total, u.used, u.available, u.unit) for u in stats.usage] == [(MIB, 0, 0, C.VolumeUsage.BYTES)]
    await rig.controller.ControllerExpandVolume(
        C.ControllerExpandVolumeRequest(volume_id=made.volume_id, capacity_range=RANGE(required_bytes=2 * MIB))
    )
    expanded = await rig.node.NodeExpandVolume(C.NodeExpandVolumeRequest(volume_id=made.volume_id, volume_path=target))
    assert expanded.capacity_bytes == 2 * MIB
    for _ in range(2):
        await rig.node.NodeUnpublishVolume(C.NodeUnpublishVolumeRequest(volume_id=made.volume_id, target_path=target))
    assert not os.path.lexists(target)
    for _ in range(2):
        await rig.node.NodeUnstageVolume(
            C.NodeUnstageVolumeRequest(volume_id=made.volume_id, staging_target_path=staging)
        )
    await rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id))


async def test_stats_of_a_file_system_have_bytes_and_inodes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stats(volume_id: str, path: str) -> tuple[None, FileSystemStats]:
        return None, FileSystemStats(100, 60, 30, 10, 4, 6)

    monkeypatch.setattr(rig.nodes, "stats", stats)
    answer = await rig.node.NodeGetVolumeStats(C.NodeGetVolumeStatsRequest(volume_id="v", volume_path="/p"))
    assert [(u.unit, u.total, u.used, u.available) for u in answer.usage] == [
        (C.VolumeUsage.BYTES, 100, 60, 30),
        (C.VolumeUsage.INODES, 10, 4, 6),
    ]


READ_ONLY = VolumeCondition(
    "ReadOnlyAfterError", "its ext4 met an error and takes no more writes " + "\N{CROSS MARK}" * 400, True
)


@pytest.mark.parametrize("trouble", [None, READ_ONLY], ids=["well", "in trouble"])
async def test_stats_tell_the_condition_to_clients_of_before_1_13(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, trouble: VolumeCondition | None
) -> None:
    """The field is out of use in 1.13, and read by kubelets that were built before: 2 {1: abnormal, 2: message}."""

    async def stats(volume_id: str, path: str) -> tuple[None, FileSystemStats]:
        return None, FileSystemStats(100, 60, 30, 10, 4, 6, trouble)

    monkeypatch.setattr(rig.nodes, "stats", stats)
    answer = await rig.node.NodeGetVolumeStats(C.NodeGetVolumeStatsRequest(volume_id="v", volume_path="/p"))
    assert [u.total for u in answer.usage] == [100, 10], "those who know the field no more are not disturbed"
    # As a client of before has it: read by a message with the same numbers.
    ((number, wire, condition),) = [field for field in fields(answer.SerializeToString()) if field[0] == 2]
    assert (number, wire) == (2, 2)
    abnormal, message = (field[2] for field in fields(condition))
    assert bool(abnormal) is (trouble is not None)
    text = bytes(message).decode()
    assert text
    assert trouble is None or trouble.text.startswith(text)
    assert len(message) <= 1000


def fields(data: bytes) -> list[tuple[int, int, object]]:
    """The fields of a message as they lie on the wire: number, wire type (0 or 2 alone), value."""
    found: list[tuple[int, int, object]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        value: object = varint()
        if key & 7 == 2:
            assert isinstance(value, int)
            value, at = data[at : at + value], at + value
        found.append((key >> 3, key & 7, value))
    return found


async def test_the_health_of_a_volume(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await rig.volume()
    request = C.NodeGetVolumeHealthRequest(volume_id=made.volume_id)
    well = (await rig.node.NodeGetVolumeHealth(request)).volume_health
    assert (well.volume_id, len(well.health_statuses)) == (made.volume_id, 0)

    async def condition(volume: object) -> VolumeCondition:
        return READ_ONLY

    monkeypatch.setattr(rig.backend.access, "condition", condition)
    (entry,) = (await rig.node.NodeGetVolumeHealth(request)).volume_health.health_statuses
    assert (entry.status, entry.reason, entry.message) == (C.DEGRADED, "ReadOnlyAfterError", READ_ONLY.text)
    node = (await rig.tidemark.GetTree(T.GetTreeRequest(volume_id=made.volume_id))).nodes[0]
    assert node.condition == READ_ONLY.text
    await rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id))
    assert rig.context.conditions.all() == []


async def test_health_is_announced_only_on_demand(rig: Rig) -> None:
    """4 is the number that the condition had until 1.12."""
    asked = C.NodeGetCapabilitiesRequest()
    silent, reporting = [
        [c.rpc.type for c in (await Node(rig.nodes, OWNER, on).NodeGetCapabilities(asked, None)).capabilities]  # type: ignore[arg-type]
        for on in (False, True)
    ]
    assert silent == list(CAPABILITIES)
    assert reporting == [*CAPABILITIES, C.NodeServiceCapability.RPC.GET_VOLUME_HEALTH, 4]


async def test_rollback(rig: Rig) -> None:
    made = await rig.volume()
    shot = await rig.snapshot(made.volume_id)
    request = T.RollbackRequest(volume_id=made.volume_id, snapshot_id=shot.snapshot_id, name="once")
    first = await rig.tidemark.Rollback(request)
    assert first.safety_snapshot_id
    assert not first.already_done
    again = await rig.tidemark.Rollback(request)
    assert again.already_done
    again.already_done = False
    assert again == first
    other = await rig.snapshot(made.volume_id, "other")
    changed = T.RollbackRequest(volume_id=made.volume_id, snapshot_id=other.snapshot_id, name="once")
    await refused_unchanged(rig, rig.tidemark.Rollback(changed), CODE.ALREADY_EXISTS, "once")
    stranger = await rig.volume("stranger")
    foreign = T.RollbackRequest(volume_id=stranger.volume_id, snapshot_id=shot.snapshot_id, name="n")
    await refused_unchanged(rig, rig.tidemark.Rollback(foreign), CODE.INVALID_ARGUMENT, "own snapshots only")
    declined = await rig.tidemark.Rollback(
        T.RollbackRequest(
            volume_id=made.volume_id, snapshot_id=shot.snapshot_id, name="twice", skip_safety_snapshot=True
        )
    )
    assert declined.safety_snapshot_id == ""


async def test_hold(rig: Rig) -> None:
    made = await rig.volume()
    shot = await rig.snapshot(made.volume_id)
    held = await rig.tidemark.Hold(T.HoldRequest(volume_id=made.volume_id, holder="alice"))
    assert held.expires.seconds > 1_700_000_000
    expand = C.ControllerExpandVolumeRequest(volume_id=made.volume_id, capacity_range=RANGE(required_bytes=GIB))
    stage = C.NodeStageVolumeRequest(
        volume_id=made.volume_id, staging_target_path=rig.path("s"), volume_capability=block()
    )
    for call in (
        rig.tidemark.Hold(T.HoldRequest(volume_id=made.volume_id, holder="bob")),
        rig.tidemark.Release(T.ReleaseRequest(volume_id=made.volume_id, holder="bob")),
        rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id)),
        rig.controller.ControllerExpandVolume(expand),
        rig.node.NodeStageVolume(stage),
    ):
        await refused_unchanged(rig, call, CODE.FAILED_PRECONDITION, "alice")
    tree = await rig.tidemark.GetTree(T.GetTreeRequest())
    assert tree.nodes[0].hold.holder == "alice"
    back = T.RollbackRequest(volume_id=made.volume_id, snapshot_id=shot.snapshot_id, name="n", holder="alice")
    await rig.tidemark.Rollback(back)
    for _ in range(2):
        await rig.tidemark.Release(T.ReleaseRequest(volume_id=made.volume_id, holder="alice"))
    assert not (await rig.tidemark.GetTree(T.GetTreeRequest())).nodes[0].HasField("hold")


async def test_the_tree(rig: Rig) -> None:
    made = await rig.volume("root")
    shot = await rig.snapshot(made.volume_id)
    child = await rig.volume("child", 0, volume_content_source=from_snapshot(shot.snapshot_id))
    clone = await rig.volume("clone", 0, volume_content_source=from_volume(child.volume_id))
    group = await rig.group(made.volume_id)
    await rig.volume("stranger")
    staging = await rig.stage(child.volume_id)
    nodes = {n.id: n for n in (await rig.tidemark.GetTree(T.GetTreeRequest(with_usage=True))).nodes}
    assert len(nodes) == 7
    root, cut, copy = nodes[made.volume_id], nodes[shot.snapshot_id], nodes[child.volume_id]
    assert (root.kind, root.name, root.pool, root.parent_id, root.size_bytes) == (
        T.TreeNode.VOLUME,
        "root",
        "default",
        "",
        MIB,
    )
    assert (cut.kind, cut.parent_id, cut.parent_uid) == (T.TreeNode.SNAPSHOT, root.id, root.uid)
    assert (copy.parent_id, copy.parent_uid) == (cut.id, cut.uid)
    assert (nodes[clone.volume_id].parent_id, nodes[clone.volume_id].parent_uid) == (copy.id, copy.uid)
    assert copy.used_by == [f"{staging}/device"]
    assert [list(place.paths) for place in copy.places] == [[f"{staging}/device"]]
    assert copy.device
    assert cut.HasField("usage")
    whole = nodes[group.group_snapshot_id]
    assert (whole.kind, whole.size_bytes, whole.HasField("usage")) == (T.TreeNode.GROUP, MIB, False)
    assert nodes[group.snapshots[0].snapshot_id].group_snapshot_id == whole.id
    family = (await rig.tidemark.GetTree(T.GetTreeRequest(volume_id=made.volume_id))).nodes
    assert {n.name for n in family if n.kind == T.TreeNode.VOLUME} == {"root", "child", "clone"}
    assert whole.id in {n.id for n in family}
    seen: set[str] = set()
    for node in family:
        assert not node.parent_id or node.parent_id in seen
        seen.add(node.id)
    assert {n.pool for n in (await rig.tidemark.GetTree(T.GetTreeRequest(pool="other"))).nodes} == set()


async def test_the_tree_distinguishes_another_of_the_same_name_from_a_parent(rig: Rig) -> None:
    made = await rig.volume("root")
    shot = await rig.snapshot(made.volume_id)
    child = await rig.volume("child", 0, volume_content_source=from_snapshot(shot.snapshot_id))
    await rig.controller.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=shot.snapshot_id))
    assert (await rig.snapshot(made.volume_id)).snapshot_id == shot.snapshot_id  # the same name, another cut
    nodes = {n.id: n for n in (await rig.tidemark.GetTree(T.GetTreeRequest())).nodes}
    assert nodes[child.volume_id].parent_id == shot.snapshot_id
    assert nodes[child.volume_id].parent_uid != nodes[shot.snapshot_id].uid


async def test_pools(rig: Rig) -> None:
    await rig.volume("v", GIB)
    pools = (await rig.tidemark.ListPools(T.ListPoolsRequest())).pools
    assert [pool.name for pool in pools] == ["default", "other"]
    pool = pools[0]
    assert (pool.owner, pool.backend, pool.total_bytes, pool.committed_bytes) == (OWNER, "memory", 64 * GIB, GIB)
    assert (pool.available_bytes, pool.overcommit, pool.volumes, pool.snapshots) == (127 * GIB, 2.0, 1, 0)
    assert pool.reserve_bytes == 64 * GIB // 20
    assert pool.uuid

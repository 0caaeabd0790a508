"""Every code of the specification's tables that can be reached without a kernel; the pools are as before each time.

Not checked by csi-sanity 5.5.0, and so here for the first time: topology, GetCapacity with parameters, size limits,
a limit alone, larger restores, ALREADY_EXISTS on publish, ABORTED, groups that are made, ControllerGetVolume, deletion of
a group's member, of a volume in use and of one with snapshots, tokens of ListSnapshots, unserved calls.
"""

from __future__ import annotations

from typing import Any

import pytest
from rpc_refusals import MATRIX
from support.rpc_rig import (
    CODE,
    Modes,
    Rig,
    block,
    create_volume,
    from_snapshot,
    from_volume,
    mount,
    refused,
    refused_unchanged,
)
from support.sizes import GIB, MIB

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.errors import Unavailable

C = csi_pb2
T = tidemark_pb2
RANGE = C.CapacityRange
SRC = C.VolumeContentSource
GONE = "node-1:default:" + "0" * 32
AWAY = "node-2:default:" + "0" * 32
NO_POOL = "node-1:nowhere:" + "0" * 32

# (service, call, request, code, a word of the message)


@pytest.mark.parametrize(
    ("service", "call", "request_", "code", "word"),
    MATRIX,
    ids=[f"{n}-{row[1]}-{row[4]}" for n, row in enumerate(MATRIX)],
)
async def test_refused(rig: Rig, service: str, call: str, request_: Any, code: Any, word: str) -> None:
    kept = await rig.volume("kept")
    await rig.snapshot(kept.volume_id, "kept-s")
    stub = getattr(rig, service)
    await refused_unchanged(rig, getattr(stub, call)(request_), code, word)
    assert (await rig.identity.Probe(C.ProbeRequest())).ready.value


async def test_every_call_is_refused_somewhere_in_the_matrix() -> None:
    """A call that is added to the protocol has to be added here."""
    called = {row[1] for row in MATRIX}
    offered = {
        method.name
        for file in (csi_pb2.DESCRIPTOR, tidemark_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    never_refused = {name for name in offered if name.endswith("Capabilities")} | {
        "GetPluginInfo",
        "Probe",
        "GetCapacity",
        "NodeGetInfo",
        "ListPools",
        "GetMetadataAllocated",  # served later
        "GetMetadataDelta",
    }
    assert offered - never_refused == called - never_refused


async def test_a_name_that_is_taken(rig: Rig) -> None:
    made = await rig.volume("taken", MIB)
    shot = await rig.snapshot(made.volume_id)
    other = await rig.volume("other")
    for change in (
        {"size": 2 * MIB},
        {"volume_capabilities": [mount()]},
        {"volume_capabilities": [block(Modes.SINGLE_NODE_SINGLE_WRITER)]},
        {"parameters": {"provisioning": "thick"}},
        {"volume_content_source": from_snapshot(shot.snapshot_id)},
    ):
        call = rig.controller.CreateVolume(create_volume("taken", **change))  # type: ignore[arg-type]
        await refused_unchanged(rig, call, CODE.ALREADY_EXISTS, "differs in", "another name")
    call = rig.controller.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=other.volume_id))
    await refused_unchanged(rig, call, CODE.ALREADY_EXISTS, made.volume_id)
    await rig.group(made.volume_id, name="g")
    request = C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[made.volume_id, other.volume_id])
    await refused_unchanged(rig, rig.groups.CreateVolumeGroupSnapshot(request), CODE.ALREADY_EXISTS, made.volume_id)


async def test_a_source_that_does_not_fit(rig: Rig) -> None:
    made = await rig.volume("source", 2 * MIB)
    shot = await rig.snapshot(made.volume_id)
    for source in (from_snapshot(shot.snapshot_id), from_volume(made.volume_id)):
        smaller = create_volume("copy", MIB, volume_content_source=source)
        await refused_unchanged(rig, rig.controller.CreateVolume(smaller), CODE.OUT_OF_RANGE, "smaller than its source")
        limited = create_volume("copy", volume_content_source=source, capacity_range=RANGE(limit_bytes=MIB))
        await refused_unchanged(rig, rig.controller.CreateVolume(limited), CODE.OUT_OF_RANGE, "limit")
        elsewhere = create_volume("copy", 2 * MIB, volume_content_source=source, parameters={"pool": "other"})
        await refused_unchanged(rig, rig.controller.CreateVolume(elsewhere), CODE.INVALID_ARGUMENT, "other")
    # An id of the one kind is not found among the other.
    wrong = create_volume("copy", 2 * MIB, volume_content_source=from_volume(shot.snapshot_id))
    await refused_unchanged(rig, rig.controller.CreateVolume(wrong), CODE.NOT_FOUND, shot.snapshot_id)


async def test_space_runs_out(rig: Rig) -> None:
    await rig.volume("big", 100 * GIB)
    await refused_unchanged(
        rig, rig.controller.CreateVolume(create_volume("next", 60 * GIB)), CODE.RESOURCE_EXHAUSTED, "delete something"
    )
    small = await rig.volume("small", MIB)
    request = C.ControllerExpandVolumeRequest(volume_id=small.volume_id, capacity_range=RANGE(required_bytes=60 * GIB))
    # Not RESOURCE_EXHAUSTED: the resizer takes that as transient, and the user could never ask for less.
    await refused_unchanged(rig, rig.controller.ControllerExpandVolume(request), CODE.OUT_OF_RANGE, "request less")
    shrunk = C.ControllerExpandVolumeRequest(volume_id=small.volume_id, capacity_range=RANGE(limit_bytes=4096))
    await refused_unchanged(rig, rig.controller.ControllerExpandVolume(shrunk), CODE.OUT_OF_RANGE, "never shrink")
    many = C.ControllerExpandVolumeRequest(
        volume_id=small.volume_id,
        capacity_range=RANGE(required_bytes=2 * MIB),
        volume_capability=block(Modes.MULTI_NODE_MULTI_WRITER),
    )
    await refused_unchanged(rig, rig.controller.ControllerExpandVolume(many), CODE.INVALID_ARGUMENT, "one node")


async def test_a_pool_that_is_nearly_full(rig: Rig) -> None:
    made = await rig.volume()
    rig.faults.fail("space", Unavailable("pool default has gone: mount it"), times=None)
    await refused(rig.controller.CreateVolume(create_volume("w")), CODE.UNAVAILABLE, "default")
    rig.faults.clear()
    rig.opened[0].policy = type(rig.opened[0].policy)(reserve=65 * GIB)
    await refused_unchanged(rig, rig.controller.CreateVolume(create_volume("w")), CODE.RESOURCE_EXHAUSTED, "reserve")
    request = C.CreateSnapshotRequest(name="s", source_volume_id=made.volume_id)
    await refused_unchanged(rig, rig.controller.CreateSnapshot(request), CODE.RESOURCE_EXHAUSTED, "reserve")
    capacity = await rig.controller.GetCapacity(C.GetCapacityRequest())
    assert capacity.available_capacity == 0


async def test_in_use(rig: Rig) -> None:
    made = await rig.volume()
    staging = await rig.stage(made.volume_id)
    delete = C.DeleteVolumeRequest(volume_id=made.volume_id)
    await refused_unchanged(rig, rig.controller.DeleteVolume(delete), CODE.FAILED_PRECONDITION, staging)
    shot = await rig.snapshot(made.volume_id)
    back = T.RollbackRequest(volume_id=made.volume_id, snapshot_id=shot.snapshot_id, name="n")
    await refused_unchanged(rig, rig.tidemark.Rollback(back), CODE.FAILED_PRECONDITION, staging)
    hold = T.HoldRequest(volume_id=made.volume_id, holder="h")
    await refused_unchanged(rig, rig.tidemark.Hold(hold), CODE.FAILED_PRECONDITION, staging)
    other = await rig.volume("other")
    group = C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[made.volume_id, other.volume_id])
    await refused_unchanged(rig, rig.groups.CreateVolumeGroupSnapshot(group), CODE.FAILED_PRECONDITION, "raw block")


async def test_group_members_go_together(rig: Rig) -> None:
    one, two = await rig.volume("one"), await rig.volume("two")
    elsewhere = await rig.volume("elsewhere", parameters={"pool": "other"})
    request = C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[one.volume_id, elsewhere.volume_id])
    await refused_unchanged(rig, rig.groups.CreateVolumeGroupSnapshot(request), CODE.FAILED_PRECONDITION, "pools")
    made = await rig.group(one.volume_id, two.volume_id)
    member = C.DeleteSnapshotRequest(snapshot_id=made.snapshots[0].snapshot_id)
    await refused_unchanged(
        rig, rig.controller.DeleteSnapshot(member), CODE.INVALID_ARGUMENT, made.group_snapshot_id, "delete the group"
    )
    wrong = [made.snapshots[0].snapshot_id, "x"]
    delete = C.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot_id, snapshot_ids=wrong)
    await refused_unchanged(rig, rig.groups.DeleteVolumeGroupSnapshot(delete), CODE.INVALID_ARGUMENT, "members")
    get = C.GetVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot_id, snapshot_ids=wrong)
    await refused_unchanged(rig, rig.groups.GetVolumeGroupSnapshot(get), CODE.INVALID_ARGUMENT, "members")


async def test_publish_needs_its_stage(rig: Rig) -> None:
    made = await rig.volume(volume_capabilities=[block(Modes.SINGLE_NODE_SINGLE_WRITER)])
    one_writer = block(Modes.SINGLE_NODE_SINGLE_WRITER)

    def publish(target: str, staging: str = "", capability: Any = one_writer) -> Any:
        return rig.node.NodePublishVolume(
            C.NodePublishVolumeRequest(
                volume_id=made.volume_id,
                target_path=target,
                staging_target_path=staging,
                volume_capability=capability,
            )
        )

    await refused_unchanged(rig, publish(rig.path("t")), CODE.FAILED_PRECONDITION, "staging path")
    await refused_unchanged(rig, publish(rig.path("t"), rig.path("x")), CODE.FAILED_PRECONDITION, "not staged")
    staging = await rig.stage(made.volume_id)
    await refused_unchanged(rig, publish(rig.path("t"), staging, mount()), CODE.FAILED_PRECONDITION, "block device")
    await publish(rig.path("t"), staging)
    await publish(rig.path("t"), staging)
    await refused_unchanged(rig, publish(rig.path("t2"), staging), CODE.FAILED_PRECONDITION, rig.path("t"))
    with open(rig.path("occupied"), "w") as file:
        file.write("somebody's data")
    many = block(Modes.SINGLE_NODE_MULTI_WRITER)
    await refused_unchanged(rig, publish(rig.path("occupied"), staging, many), CODE.ALREADY_EXISTS, "occupied")
    await publish(rig.path("t2"), staging, many)
    unstage = C.NodeUnstageVolumeRequest(volume_id=made.volume_id, staging_target_path=staging)
    await refused_unchanged(rig, rig.node.NodeUnstageVolume(unstage), CODE.FAILED_PRECONDITION, rig.path("t2"))
    expand = C.NodeExpandVolumeRequest(
        volume_id=made.volume_id, volume_path=rig.path("t"), capacity_range=RANGE(required_bytes=GIB)
    )
    await refused_unchanged(rig, rig.node.NodeExpandVolume(expand), CODE.OUT_OF_RANGE, "expand the volume itself first")
    stats = C.NodeGetVolumeStatsRequest(volume_id=made.volume_id, volume_path=rig.path("nowhere"))
    await refused_unchanged(rig, rig.node.NodeGetVolumeStats(stats), CODE.NOT_FOUND, "not mounted")


async def test_a_pool_that_is_away(rig: Rig) -> None:
    made = await rig.volume()
    await rig.backend.close()
    for call in (
        rig.controller.ListVolumes(C.ListVolumesRequest()),
        rig.controller.ListSnapshots(C.ListSnapshotsRequest()),
        rig.controller.CreateVolume(create_volume("w")),
        rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id)),
        rig.controller.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=made.volume_id)),
        rig.controller.GetCapacity(C.GetCapacityRequest()),
        rig.tidemark.GetTree(T.GetTreeRequest()),
        rig.tidemark.ListPools(T.ListPoolsRequest()),
    ):
        await refused(call, CODE.UNAVAILABLE, "default")
    assert (await rig.identity.Probe(C.ProbeRequest())).ready.value


async def test_a_hash_that_holds_another_name_is_never_served(rig: Rig) -> None:
    made = await rig.volume("mine")
    pool = rig.opened[0]
    digest = made.volume_id.rpartition(":")[2]
    from dataclasses import replace

    pool.volumes[digest] = replace(pool.volumes[digest], name="another")
    await refused(rig.controller.CreateVolume(create_volume("mine")), CODE.INTERNAL, "another")

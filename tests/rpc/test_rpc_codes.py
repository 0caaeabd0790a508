"""Every code of the specification's tables that can be reached without a kernel; the pools are as before each time.

Not checked by csi-sanity 5.5.0, and so here for the first time: topology, GetCapacity with parameters, size limits,
a limit alone, larger restores, ALREADY_EXISTS on publish, ABORTED, groups that are made, ControllerGetVolume, deletion of
a group's member, of a volume in use and of one with snapshots, tokens of ListSnapshots, unserved calls.
"""

from __future__ import annotations

from typing import Any

import pytest
from rpc_rig import (
    CODE,
    GIB,
    MIB,
    Modes,
    Rig,
    block,
    create_volume,
    from_snapshot,
    from_volume,
    mount,
    places,
    refused,
    refused_unchanged,
)

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
MATRIX: list[tuple[str, str, Any, Any, str]] = [
    # CreateVolume
    ("controller", "CreateVolume", create_volume(""), CODE.INVALID_ARGUMENT, "name"),
    ("controller", "CreateVolume", create_volume(volume_capabilities=[]), CODE.INVALID_ARGUMENT, "capabilities"),
    ("controller", "CreateVolume", create_volume("n" * 129), CODE.INVALID_ARGUMENT, "128"),
    ("controller", "CreateVolume", create_volume("ä" * 65), CODE.INVALID_ARGUMENT, "130 bytes"),
    ("controller", "CreateVolume", create_volume("a\0b"), CODE.INVALID_ARGUMENT, "NUL"),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[C.VolumeCapability(access_mode=Modes(mode=Modes.SINGLE_NODE_WRITER))]),
        CODE.INVALID_ARGUMENT,
        "access_type",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[C.VolumeCapability(block=C.VolumeCapability.BlockVolume())]),
        CODE.INVALID_ARGUMENT,
        "access_mode",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[block(Modes.UNKNOWN)]),
        CODE.INVALID_ARGUMENT,
        "access_mode",
    ),
    ("controller", "CreateVolume", create_volume(volume_capabilities=[block(99)]), CODE.INVALID_ARGUMENT, "99"),
    *[
        (
            "controller",
            "CreateVolume",
            create_volume(volume_capabilities=[block(), block(mode)]),
            CODE.INVALID_ARGUMENT,
            "one node",
        )
        for mode in (Modes.MULTI_NODE_READER_ONLY, Modes.MULTI_NODE_SINGLE_WRITER, Modes.MULTI_NODE_MULTI_WRITER)
    ],
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[mount(volume_mount_group="1000")]),
        CODE.INVALID_ARGUMENT,
        "volume_mount_group",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[mount("btrfs")]),
        CODE.INVALID_ARGUMENT,
        "btrfs",
    ),
    ("controller", "CreateVolume", create_volume(volume_capabilities=[mount("zfs")]), CODE.INVALID_ARGUMENT, "zfs"),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[mount("xfs"), mount("ext4")]),
        CODE.INVALID_ARGUMENT,
        "ext4 and xfs",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_capabilities=[mount(mount_flags=["--help"])]),
        CODE.INVALID_ARGUMENT,
        "mount flag",
    ),
    ("controller", "CreateVolume", create_volume(parameters={"colour": "red"}), CODE.INVALID_ARGUMENT, "colour"),
    ("controller", "CreateVolume", create_volume(parameters={"pool": "../../etc"}), CODE.INVALID_ARGUMENT, "pool"),
    ("controller", "CreateVolume", create_volume(parameters={"provisioning": "x"}), CODE.INVALID_ARGUMENT, "thick"),
    ("controller", "CreateVolume", create_volume(parameters={"k": "v" * 4096}), CODE.INVALID_ARGUMENT, "4096"),
    ("controller", "CreateVolume", create_volume(mutable_parameters={"iops": "9"}), CODE.INVALID_ARGUMENT, "iops"),
    ("controller", "CreateVolume", create_volume(volume_content_source=SRC()), CODE.INVALID_ARGUMENT, "no source"),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_content_source=from_snapshot("")),
        CODE.INVALID_ARGUMENT,
        "snapshot",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(volume_content_source=from_volume("")),
        CODE.INVALID_ARGUMENT,
        "volume",
    ),
    ("controller", "CreateVolume", create_volume(volume_content_source=from_snapshot(GONE)), CODE.NOT_FOUND, GONE),
    ("controller", "CreateVolume", create_volume(volume_content_source=from_volume("fake")), CODE.NOT_FOUND, "fake"),
    ("controller", "CreateVolume", create_volume(volume_content_source=from_volume(AWAY)), CODE.UNAVAILABLE, "node-2"),
    (
        "controller",
        "CreateVolume",
        create_volume(accessibility_requirements=places("node-2", "node-3")),
        CODE.RESOURCE_EXHAUSTED,
        "node-2, node-3",
    ),
    (
        "controller",
        "CreateVolume",
        create_volume(accessibility_requirements=places("a", key="topology.kubernetes.io/zone")),
        CODE.RESOURCE_EXHAUSTED,
        "zone=a",
    ),
    ("controller", "CreateVolume", create_volume(parameters={"pool": "fast"}), CODE.RESOURCE_EXHAUSTED, "fast"),
    ("controller", "CreateVolume", create_volume(size=-1), CODE.OUT_OF_RANGE, "negative"),
    ("controller", "CreateVolume", create_volume(capacity_range=RANGE(limit_bytes=-1)), CODE.OUT_OF_RANGE, "negative"),
    ("controller", "CreateVolume", create_volume(size=(1 << 63) - 1), CODE.OUT_OF_RANGE, "more than any pool"),
    ("controller", "CreateVolume", create_volume(size=1 << 50), CODE.OUT_OF_RANGE, "never hold"),
    (
        "controller",
        "CreateVolume",
        create_volume(capacity_range=RANGE(required_bytes=8192, limit_bytes=4096)),
        CODE.OUT_OF_RANGE,
        "raise the limit",
    ),
    ("controller", "CreateVolume", create_volume(capacity_range=RANGE(limit_bytes=1)), CODE.OUT_OF_RANGE, "4096"),
    (
        "controller",
        "CreateVolume",
        create_volume(
            volume_capabilities=[mount("xfs")], capacity_range=RANGE(required_bytes=MIB, limit_bytes=2 * MIB)
        ),
        CODE.OUT_OF_RANGE,
        "least",
    ),
    # DeleteVolume, ControllerGetVolume, validation, expansion
    ("controller", "DeleteVolume", C.DeleteVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("controller", "DeleteVolume", C.DeleteVolumeRequest(volume_id=AWAY), CODE.UNAVAILABLE, "node-2"),
    ("controller", "DeleteVolume", C.DeleteVolumeRequest(volume_id=NO_POOL), CODE.UNAVAILABLE, "nowhere"),
    ("controller", "ControllerGetVolume", C.ControllerGetVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("controller", "ControllerGetVolume", C.ControllerGetVolumeRequest(volume_id=GONE), CODE.NOT_FOUND, GONE),
    (
        "controller",
        "ValidateVolumeCapabilities",
        C.ValidateVolumeCapabilitiesRequest(volume_capabilities=[block()]),
        CODE.INVALID_ARGUMENT,
        "volume_id",
    ),
    (
        "controller",
        "ValidateVolumeCapabilities",
        C.ValidateVolumeCapabilitiesRequest(volume_id=GONE),
        CODE.INVALID_ARGUMENT,
        "capabilities",
    ),
    (
        "controller",
        "ValidateVolumeCapabilities",
        C.ValidateVolumeCapabilitiesRequest(volume_id=GONE, volume_capabilities=[block()]),
        CODE.NOT_FOUND,
        GONE,
    ),
    (
        "controller",
        "ValidateVolumeCapabilities",
        C.ValidateVolumeCapabilitiesRequest(volume_id=GONE, volume_capabilities=[block(Modes.MULTI_NODE_MULTI_WRITER)]),
        CODE.NOT_FOUND,
        GONE,
    ),
    (
        "controller",
        "ControllerExpandVolume",
        C.ControllerExpandVolumeRequest(capacity_range=RANGE(required_bytes=MIB)),
        CODE.INVALID_ARGUMENT,
        "volume_id",
    ),
    (
        "controller",
        "ControllerExpandVolume",
        C.ControllerExpandVolumeRequest(volume_id=GONE),
        CODE.INVALID_ARGUMENT,
        "capacity_range",
    ),
    (
        "controller",
        "ControllerExpandVolume",
        C.ControllerExpandVolumeRequest(volume_id=GONE, capacity_range=RANGE()),
        CODE.INVALID_ARGUMENT,
        "capacity range",
    ),
    (
        "controller",
        "ControllerExpandVolume",
        C.ControllerExpandVolumeRequest(volume_id=GONE, capacity_range=RANGE(required_bytes=MIB)),
        CODE.NOT_FOUND,
        GONE,
    ),
    (
        "controller",
        "ControllerExpandVolume",
        C.ControllerExpandVolumeRequest(volume_id=GONE, capacity_range=RANGE(required_bytes=-5)),
        CODE.OUT_OF_RANGE,
        "negative",
    ),
    # lists
    ("controller", "ListVolumes", C.ListVolumesRequest(max_entries=-1), CODE.INVALID_ARGUMENT, "max_entries"),
    ("controller", "ListVolumes", C.ListVolumesRequest(starting_token="invalid-token"), CODE.ABORTED, "token"),
    ("controller", "ListSnapshots", C.ListSnapshotsRequest(max_entries=-1), CODE.INVALID_ARGUMENT, "max_entries"),
    ("controller", "ListSnapshots", C.ListSnapshotsRequest(starting_token="invalid-token"), CODE.ABORTED, "token"),
    ("controller", "ListSnapshots", C.ListSnapshotsRequest(starting_token="after=../x"), CODE.ABORTED, "token"),
    ("controller", "ListSnapshots", C.ListSnapshotsRequest(snapshot_id=AWAY), CODE.UNAVAILABLE, "node-2"),
    ("controller", "ListSnapshots", C.ListSnapshotsRequest(source_volume_id=AWAY), CODE.UNAVAILABLE, "node-2"),
    # snapshots
    (
        "controller",
        "CreateSnapshot",
        C.CreateSnapshotRequest(source_volume_id=GONE),
        CODE.INVALID_ARGUMENT,
        "name",
    ),
    ("controller", "CreateSnapshot", C.CreateSnapshotRequest(name="s"), CODE.INVALID_ARGUMENT, "source_volume_id"),
    (
        "controller",
        "CreateSnapshot",
        C.CreateSnapshotRequest(name="s" * 129, source_volume_id=GONE),
        CODE.INVALID_ARGUMENT,
        "128",
    ),
    ("controller", "CreateSnapshot", C.CreateSnapshotRequest(name="s", source_volume_id=GONE), CODE.NOT_FOUND, GONE),
    (
        "controller",
        "CreateSnapshot",
        C.CreateSnapshotRequest(name="s", source_volume_id=GONE, parameters={"incremental": "yes"}),
        CODE.INVALID_ARGUMENT,
        "incremental",
    ),
    (
        "controller",
        "CreateSnapshot",
        C.CreateSnapshotRequest(name="s", source_volume_id=GONE, accessibility_requirements=places("node-2")),
        CODE.INVALID_ARGUMENT,
        "accessibility_requirements",
    ),
    ("controller", "DeleteSnapshot", C.DeleteSnapshotRequest(), CODE.INVALID_ARGUMENT, "snapshot_id"),
    ("controller", "DeleteSnapshot", C.DeleteSnapshotRequest(snapshot_id=AWAY), CODE.UNAVAILABLE, "node-2"),
    ("controller", "GetSnapshot", C.GetSnapshotRequest(), CODE.INVALID_ARGUMENT, "snapshot_id"),
    ("controller", "GetSnapshot", C.GetSnapshotRequest(snapshot_id=GONE), CODE.NOT_FOUND, GONE),
    # groups
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(source_volume_ids=[GONE]),
        CODE.INVALID_ARGUMENT,
        "name",
    ),
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(name="g"),
        CODE.INVALID_ARGUMENT,
        "source volumes",
    ),
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[""]),
        CODE.INVALID_ARGUMENT,
        "source_volume_ids",
    ),
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[GONE, GONE]),
        CODE.INVALID_ARGUMENT,
        "different",
    ),
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[GONE]),
        CODE.NOT_FOUND,
        GONE,
    ),
    (
        "groups",
        "CreateVolumeGroupSnapshot",
        C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=[GONE, AWAY]),
        CODE.FAILED_PRECONDITION,
        "different nodes",
    ),
    (
        "groups",
        "DeleteVolumeGroupSnapshot",
        C.DeleteVolumeGroupSnapshotRequest(),
        CODE.INVALID_ARGUMENT,
        "group_snapshot_id",
    ),
    (
        "groups",
        "GetVolumeGroupSnapshot",
        C.GetVolumeGroupSnapshotRequest(),
        CODE.INVALID_ARGUMENT,
        "group_snapshot_id",
    ),
    (
        "groups",
        "GetVolumeGroupSnapshot",
        C.GetVolumeGroupSnapshotRequest(group_snapshot_id=GONE, snapshot_ids=["x"]),
        CODE.NOT_FOUND,
        GONE,
    ),
    # node: id, then path, then capability, each before existence
    ("node", "NodeStageVolume", C.NodeStageVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodeStageVolume", C.NodeStageVolumeRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "staging_target_path"),
    (
        "node",
        "NodeStageVolume",
        C.NodeStageVolumeRequest(volume_id=GONE, staging_target_path="/s"),
        CODE.INVALID_ARGUMENT,
        "volume_capability",
    ),
    (
        "node",
        "NodeStageVolume",
        C.NodeStageVolumeRequest(volume_id=GONE, staging_target_path="/s", volume_capability=block()),
        CODE.NOT_FOUND,
        GONE,
    ),
    (
        "node",
        "NodeStageVolume",
        C.NodeStageVolumeRequest(volume_id=GONE, staging_target_path="../s", volume_capability=block()),
        CODE.INVALID_ARGUMENT,
        "absolute path",
    ),
    (
        "node",
        "NodeStageVolume",
        C.NodeStageVolumeRequest(volume_id=GONE, staging_target_path="/s/../x", volume_capability=block()),
        CODE.INVALID_ARGUMENT,
        "absolute path",
    ),
    ("node", "NodeUnstageVolume", C.NodeUnstageVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    (
        "node",
        "NodeUnstageVolume",
        C.NodeUnstageVolumeRequest(volume_id=GONE),
        CODE.INVALID_ARGUMENT,
        "staging_target_path",
    ),
    ("node", "NodePublishVolume", C.NodePublishVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodePublishVolume", C.NodePublishVolumeRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "target_path"),
    (
        "node",
        "NodePublishVolume",
        C.NodePublishVolumeRequest(volume_id=GONE, target_path="/t"),
        CODE.INVALID_ARGUMENT,
        "volume_capability",
    ),
    (
        "node",
        "NodePublishVolume",
        C.NodePublishVolumeRequest(volume_id=GONE, target_path="/t", volume_capability=block()),
        CODE.NOT_FOUND,
        GONE,
    ),
    ("node", "NodeUnpublishVolume", C.NodeUnpublishVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodeUnpublishVolume", C.NodeUnpublishVolumeRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "target_path"),
    ("node", "NodeGetVolumeStats", C.NodeGetVolumeStatsRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodeGetVolumeStats", C.NodeGetVolumeStatsRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "volume_path"),
    (
        "node",
        "NodeGetVolumeStats",
        C.NodeGetVolumeStatsRequest(volume_id=GONE, volume_path="some/path"),
        CODE.NOT_FOUND,
        GONE,
    ),
    ("node", "NodeExpandVolume", C.NodeExpandVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodeExpandVolume", C.NodeExpandVolumeRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "volume_path"),
    ("node", "NodeExpandVolume", C.NodeExpandVolumeRequest(volume_id=GONE, volume_path="/p"), CODE.NOT_FOUND, GONE),
    # not served
    ("controller", "ControllerPublishVolume", C.ControllerPublishVolumeRequest(), CODE.UNIMPLEMENTED, "attach"),
    ("controller", "ControllerUnpublishVolume", C.ControllerUnpublishVolumeRequest(), CODE.UNIMPLEMENTED, "attach"),
    ("controller", "ControllerModifyVolume", C.ControllerModifyVolumeRequest(), CODE.UNIMPLEMENTED, "mutable"),
    ("controller", "ControllerListVolumeHealth", C.ControllerListVolumeHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
    ("controller", "ControllerGetVolumeHealth", C.ControllerGetVolumeHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
    ("node", "NodeGetVolumeHealth", C.NodeGetVolumeHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
    ("node", "NodeGetStorageHealth", C.NodeGetStorageHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
    # our own
    ("tidemark", "Hold", T.HoldRequest(holder="h"), CODE.INVALID_ARGUMENT, "volume_id"),
    ("tidemark", "Hold", T.HoldRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "holder"),
    ("tidemark", "Hold", T.HoldRequest(volume_id=GONE, holder="h" * 129), CODE.INVALID_ARGUMENT, "128"),
    ("tidemark", "Hold", T.HoldRequest(volume_id=GONE, holder="h"), CODE.NOT_FOUND, GONE),
    ("tidemark", "Release", T.ReleaseRequest(holder="h"), CODE.INVALID_ARGUMENT, "volume_id"),
    ("tidemark", "Release", T.ReleaseRequest(volume_id=GONE), CODE.INVALID_ARGUMENT, "holder"),
    ("tidemark", "Rollback", T.RollbackRequest(snapshot_id="s", name="n"), CODE.INVALID_ARGUMENT, "volume_id"),
    ("tidemark", "Rollback", T.RollbackRequest(volume_id="v", name="n"), CODE.INVALID_ARGUMENT, "snapshot_id"),
    ("tidemark", "Rollback", T.RollbackRequest(volume_id="v", snapshot_id="s"), CODE.INVALID_ARGUMENT, "name"),
    ("tidemark", "Rollback", T.RollbackRequest(volume_id=GONE, snapshot_id="s", name="n"), CODE.NOT_FOUND, GONE),
    (
        "tidemark",
        "Rollback",
        T.RollbackRequest(
            volume_id=GONE, snapshot_id="s", name="n", skip_safety_snapshot=True, safety_snapshot_id="x", holder="h"
        ),
        CODE.INVALID_ARGUMENT,
        "declined",
    ),
    ("tidemark", "GetTree", T.GetTreeRequest(pool="nowhere"), CODE.NOT_FOUND, "nowhere"),
    ("tidemark", "GetTree", T.GetTreeRequest(volume_id=GONE), CODE.NOT_FOUND, GONE),
]


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
    await refused_unchanged(rig, rig.controller.ControllerExpandVolume(request), CODE.OUT_OF_RANGE, "ask for less")
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
    await refused_unchanged(rig, publish(rig.path("t"), staging, mount()), CODE.FAILED_PRECONDITION, "block access")
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
    await refused_unchanged(rig, rig.node.NodeGetVolumeStats(stats), CODE.NOT_FOUND, "not shown")


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

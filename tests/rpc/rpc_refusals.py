"""Requests that are refused, each with the code that the specification asks for and a word of what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.rpc_rig import CODE, Modes, block, create_volume, from_snapshot, from_volume, mount, places
from support.sizes import MIB

from csi_driver._pb import csi_pb2, tidemark_pb2

C = csi_pb2
T = tidemark_pb2
RANGE = C.CapacityRange
SRC = C.VolumeContentSource
GONE = "node-1:default:" + "0" * 32
AWAY = "node-2:default:" + "0" * 32
NO_POOL = "node-1:nowhere:" + "0" * 32

Refusal = tuple[str, str, Any, Any, str]
"""Service, call, request, code, a word of the message."""


def shown_at(call: str, request: Callable[..., Any], path: str) -> list[Refusal]:
    """What shows a volume at a path asks for the id, then the path, then the capability, each before it looks for the volume."""
    there = {"volume_id": GONE, path: "/p"}
    return [
        ("node", call, request(), CODE.INVALID_ARGUMENT, "volume_id"),
        ("node", call, request(volume_id=GONE), CODE.INVALID_ARGUMENT, path),
        ("node", call, request(**there), CODE.INVALID_ARGUMENT, "volume_capability"),
        ("node", call, request(**there, volume_capability=block()), CODE.NOT_FOUND, GONE),
    ]


MATRIX: list[Refusal] = [
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
    *shown_at("NodeStageVolume", C.NodeStageVolumeRequest, "staging_target_path"),
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
    *shown_at("NodePublishVolume", C.NodePublishVolumeRequest, "target_path"),
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
    ("node", "NodeGetVolumeHealth", C.NodeGetVolumeHealthRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("node", "NodeGetVolumeHealth", C.NodeGetVolumeHealthRequest(volume_id=GONE), CODE.NOT_FOUND, GONE),
    # not served
    ("controller", "ControllerPublishVolume", C.ControllerPublishVolumeRequest(), CODE.UNIMPLEMENTED, "attach"),
    ("controller", "ControllerUnpublishVolume", C.ControllerUnpublishVolumeRequest(), CODE.UNIMPLEMENTED, "attach"),
    ("controller", "ControllerModifyVolume", C.ControllerModifyVolumeRequest(), CODE.UNIMPLEMENTED, "mutable"),
    ("controller", "ControllerListVolumeHealth", C.ControllerListVolumeHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
    ("controller", "ControllerGetVolumeHealth", C.ControllerGetVolumeHealthRequest(), CODE.UNIMPLEMENTED, "HEALTH"),
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
        "skips a safety snapshot",
    ),
    ("tidemark", "GetTree", T.GetTreeRequest(pool="nowhere"), CODE.NOT_FOUND, "nowhere"),
    ("tidemark", "GetTree", T.GetTreeRequest(volume_id=GONE), CODE.NOT_FOUND, GONE),
    ("tidemark", "DescribeVolume", T.DescribeVolumeRequest(), CODE.INVALID_ARGUMENT, "volume_id"),
    ("tidemark", "DescribeVolume", T.DescribeVolumeRequest(volume_id=GONE), CODE.NOT_FOUND, GONE),
    ("tidemark", "SetLabel", T.SetLabelRequest(label="x"), CODE.INVALID_ARGUMENT, "volume_id"),
    ("tidemark", "SetLabel", T.SetLabelRequest(volume_id=GONE, label="x"), CODE.NOT_FOUND, GONE),
    ("tidemark", "SetLabel", T.SetLabelRequest(volume_id=GONE, label="a\nb"), CODE.INVALID_ARGUMENT, "control"),
    ("tidemark", "SetLabel", T.SetLabelRequest(volume_id=GONE, label="x" * 129), CODE.INVALID_ARGUMENT, "129 bytes"),
    ("tidemark", "SetLabel", T.SetLabelRequest(volume_id=GONE, label=GONE), CODE.INVALID_ARGUMENT, "form of an id"),
    ("tidemark", "EstimateFreed", T.EstimateFreedRequest(), CODE.INVALID_ARGUMENT, "id"),
    ("tidemark", "EstimateFreed", T.EstimateFreedRequest(ids=[GONE]), CODE.NOT_FOUND, GONE),
]

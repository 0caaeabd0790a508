"""What calls answer when they succeed: shapes, retries byte for byte, pages, capacity, topology."""

from __future__ import annotations

import os
from typing import Any

import pytest
from support.rpc_rig import (
    CODE,
    OWNER,
    Modes,
    Rig,
    block,
    create_volume,
    from_snapshot,
    from_volume,
    mount,
    places,
    refused,
)
from support.sizes import GIB, MIB

from csi_driver._pb import csi_pb2, tidemark_pb2
from csi_driver.domain.ids import ObjectId, parse
from csi_driver.domain.model import SizeRange, Snapshot, Source, Volume, VolumeRequest
from csi_driver.domain.sizes import BLOCK
from csi_driver.rpc.agent.controller import MAX_PAGE, Controller

C = csi_pb2
T = tidemark_pb2
RANGE = C.CapacityRange
LABELS = {"csi.storage.k8s.io/pvc/name": "data-0", "csi.storage.k8s.io/anything": "x"}


async def test_a_volume(rig: Rig) -> None:
    made = await rig.volume("pvc-1", MIB + 1, parameters=LABELS)
    assert made.capacity_bytes == MIB + 4096
    assert made.volume_id.startswith("node-1:default:")
    assert not made.volume_context
    assert not made.HasField("content_source")
    assert [dict(t.segments) for t in made.accessible_topology] == [{"topology.csi.tidemark.dev/node": OWNER}]
    again = await rig.volume("pvc-1", MIB + 1)  # labels may differ, or be missing
    assert again.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    got = await rig.controller.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=made.volume_id))
    assert got.volume == made
    assert got.HasField("status")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({}, GIB),
        ({"capacity_range": RANGE()}, GIB),
        ({"capacity_range": RANGE(limit_bytes=MIB)}, MIB),
        ({"capacity_range": RANGE(limit_bytes=2 * GIB)}, GIB),
        ({"capacity_range": RANGE(required_bytes=1)}, 4096),
        ({"volume_capabilities": [mount("xfs")], "capacity_range": RANGE(required_bytes=MIB)}, 300 * MIB),
        ({"volume_capabilities": [mount()], "capacity_range": RANGE(required_bytes=MIB)}, 16 * MIB),
    ],
)
async def test_sizes(rig: Rig, said: dict[str, Any], size: int) -> None:
    assert (await rig.volume("v", 0, **said)).capacity_bytes == size


async def test_a_retry_after_growth_has_the_size_of_now(rig: Rig) -> None:
    made = await rig.volume("v", MIB)
    expand = C.ControllerExpandVolumeRequest(volume_id=made.volume_id, capacity_range=RANGE(required_bytes=3 * MIB))
    grown = await rig.controller.ControllerExpandVolume(expand)
    assert (grown.capacity_bytes, grown.node_expansion_required) == (3 * MIB, False)
    assert await rig.controller.ControllerExpandVolume(expand) == grown
    again = await rig.volume("v", MIB)
    made.capacity_bytes = 3 * MIB
    assert again == made


async def test_expansion_of_a_file_system_goes_on_at_the_node(rig: Rig) -> None:
    made = await rig.volume("v", 20 * MIB, volume_capabilities=[mount()])
    both = await rig.volume("both", 20 * MIB, volume_capabilities=[mount(), block()])

    async def needed(volume_id: str, *capability: csi_pb2.VolumeCapability) -> bool:
        request = C.ControllerExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=RANGE(required_bytes=MIB),
            volume_capability=capability[0] if capability else None,
        )
        return (await rig.controller.ControllerExpandVolume(request)).node_expansion_required

    assert await needed(made.volume_id)
    assert await needed(both.volume_id)
    assert not await needed(both.volume_id, block())
    assert await needed(both.volume_id, mount())


async def test_copies_echo_their_source(rig: Rig) -> None:
    made = await rig.volume("v", MIB)
    shot = await rig.snapshot(made.volume_id)
    for name, source in (("a", from_snapshot(shot.snapshot_id)), ("b", from_volume(made.volume_id))):
        copy = await rig.volume(name, 0, volume_content_source=source)
        assert copy.capacity_bytes == MIB
        assert copy.content_source == source
        larger = await rig.volume(name + "-larger", 5 * MIB, volume_content_source=source)
        assert larger.capacity_bytes == 5 * MIB
        assert await rig.volume(name, 0, volume_content_source=source) == copy
    assert rig.seen.cuts == ["default"] * 3  # the snapshot and two clones; a restore cuts nothing


async def test_a_snapshot(rig: Rig) -> None:
    made = await rig.volume("v", MIB)
    request = C.CreateSnapshotRequest(name="s", source_volume_id=made.volume_id, parameters=LABELS)
    first = await rig.controller.CreateSnapshot(request)
    shot = first.snapshot
    assert (shot.ready_to_use, shot.size_bytes, shot.source_volume_id) == (True, MIB, made.volume_id)
    assert shot.group_snapshot_id == ""
    record = next(iter(rig.opened[0].snapshots.values()))
    assert shot.creation_time.seconds * 10**9 + shot.creation_time.nanos == record.created
    again = await rig.controller.CreateSnapshot(request)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    got = await rig.controller.GetSnapshot(C.GetSnapshotRequest(snapshot_id=shot.snapshot_id))
    assert got.snapshot == shot
    # Volume and snapshot live and die apart.
    await rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id))
    await rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made.volume_id))
    listed = await rig.controller.ListSnapshots(C.ListSnapshotsRequest(source_volume_id=made.volume_id))
    assert [entry.snapshot for entry in listed.entries] == [shot]
    assert (await rig.volume("r", 0, volume_content_source=from_snapshot(shot.snapshot_id))).capacity_bytes == MIB
    for _ in range(2):
        await rig.controller.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=shot.snapshot_id))
    assert not (await rig.controller.ListSnapshots(C.ListSnapshotsRequest())).entries


async def test_a_group(rig: Rig) -> None:
    ids = [(await rig.volume(name)).volume_id for name in ("a", "b", "c")]
    request = C.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=ids, parameters=LABELS)
    first = await rig.groups.CreateVolumeGroupSnapshot(request)
    made = first.group_snapshot
    assert made.ready_to_use
    assert {s.source_volume_id for s in made.snapshots} == set(ids)
    assert {s.group_snapshot_id for s in made.snapshots} == {made.group_snapshot_id}
    assert all(s.creation_time == made.creation_time for s in made.snapshots)
    request.source_volume_ids[:] = reversed(ids)
    again = await rig.groups.CreateVolumeGroupSnapshot(request)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    members = [s.snapshot_id for s in made.snapshots]
    for given in ([], members):
        get = C.GetVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot_id, snapshot_ids=given)
        assert (await rig.groups.GetVolumeGroupSnapshot(get)).group_snapshot == made
    for member in members:  # the snapshotter polls members so
        listed = await rig.controller.ListSnapshots(C.ListSnapshotsRequest(snapshot_id=member))
        assert listed.entries[0].snapshot.group_snapshot_id == made.group_snapshot_id
    delete = C.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot_id, snapshot_ids=members)
    for _ in range(2):
        await rig.groups.DeleteVolumeGroupSnapshot(delete)
    assert not (await rig.controller.ListSnapshots(C.ListSnapshotsRequest())).entries


async def test_unknown_ids_of_lists_are_empty_pages(rig: Rig) -> None:
    made = await rig.volume()
    await rig.snapshot(made.volume_id)
    for fields in (
        {"snapshot_id": "fake"},
        {"source_volume_id": "fake"},
        {"snapshot_id": "node-1:default:" + "0" * 32},
    ):
        answer = await rig.controller.ListSnapshots(C.ListSnapshotsRequest(**fields))
        assert (list(answer.entries), answer.next_token) == ([], "")


async def test_pages(rig: Rig) -> None:
    made = {(await rig.volume(f"v{n}")).volume_id for n in range(7)}

    async def walk(limit: int) -> list[str]:
        found, token = [], ""
        while True:
            answer = await rig.controller.ListVolumes(C.ListVolumesRequest(max_entries=limit, starting_token=token))
            assert len(answer.entries) <= limit
            found += [entry.volume.volume_id for entry in answer.entries]
            token = answer.next_token
            if not token:
                return found

    for limit in (1, 2, 3, 6, 7, 8):
        found = await walk(limit)
        assert set(found) == made
        assert len(found) == 7
    whole = await rig.controller.ListVolumes(C.ListVolumesRequest())
    assert (len(whole.entries), whole.next_token) == (7, "")


async def test_pages_while_objects_come_and_go(rig: Rig) -> None:
    made = await rig.volume()
    ids = sorted([(await rig.snapshot(made.volume_id, f"s{n}")).snapshot_id for n in range(6)])
    first = await rig.controller.ListSnapshots(C.ListSnapshotsRequest(max_entries=2))
    assert [entry.snapshot.snapshot_id for entry in first.entries] == ids[:2]
    # The token names the last one given; that it is deleted meanwhile must not end or shift the walk.
    await rig.controller.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=ids[1]))
    await rig.controller.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=ids[3]))
    rest = await rig.controller.ListSnapshots(C.ListSnapshotsRequest(starting_token=first.next_token))
    assert [entry.snapshot.snapshot_id for entry in rest.entries] == [ids[2], ids[4], ids[5]]
    assert rest.next_token == ""
    for bad in ("invalid-token", first.next_token[:-1], "after=", "7"):
        await refused(rig.controller.ListSnapshots(C.ListSnapshotsRequest(starting_token=bad)), CODE.ABORTED, "token")


def _long(kind: str, number: int) -> ObjectId:
    return ObjectId("o" * 63, "p" * 31, f"{number:032x}")


class _Many:
    """More objects than one message may hold, each as long as it can be."""

    def list(self, limit: int, token: str = "", *_: str) -> tuple[list[Any], str]:
        assert limit == MAX_PAGE
        return [self.item(number) for number in range(limit)], f"after={_long('', limit)}"

    async def refresh(self) -> None:
        """Nobody else changes them."""

    def item(self, number: int) -> Any:
        raise NotImplementedError


class _ManyVolumes(_Many):
    def item(self, number: int) -> Volume:
        source = Source("snapshot", str(_long("snapshot", number)))
        return Volume(_long("volume", number), "n", "u", 1, 1 << 62, VolumeRequest("n", SizeRange(), source=source))


class _ManySnapshots(_Many):
    def item(self, number: int) -> Snapshot:
        source = str(_long("volume", number))
        when = 1_799_999_999_999_999_999
        return Snapshot(_long("snapshot", number), "n", "u", when, 1 << 62, source, "u", "raw", group="0" * 32)

    def granule(self, _: Snapshot) -> int:
        return BLOCK


@pytest.mark.parametrize("asked", [0, MAX_PAGE, MAX_PAGE + 1, (1 << 31) - 1])
async def test_the_largest_page_fits_a_message(asked: int) -> None:
    controller = Controller(_ManyVolumes(), _ManySnapshots())  # type: ignore[arg-type]
    context: Any = None
    volumes = await controller.ListVolumes(C.ListVolumesRequest(max_entries=asked), context)
    snapshots = await controller.ListSnapshots(C.ListSnapshotsRequest(max_entries=asked), context)
    for answer in (volumes, snapshots):
        assert len(answer.entries) == MAX_PAGE
        assert answer.next_token
        assert answer.ByteSize() < 4 * MIB * 0.95


async def test_validation(rig: Rig) -> None:
    made = await rig.volume(parameters={"pool": "default"})

    async def ask(*capabilities: Any, **fields: Any) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        return await rig.controller.ValidateVolumeCapabilities(
            C.ValidateVolumeCapabilitiesRequest(volume_id=made.volume_id, volume_capabilities=capabilities, **fields)
        )

    yes = await ask(block(), block(Modes.SINGLE_NODE_MULTI_WRITER), volume_context={"k": "v"}, parameters=LABELS)
    assert len(yes.confirmed.volume_capabilities) == 2
    assert dict(yes.confirmed.volume_context) == {"k": "v"}
    assert dict(yes.confirmed.parameters) == LABELS
    assert yes.message == ""
    for no, word in (
        (await ask(mount()), "block access"),
        (await ask(block(), block(Modes.MULTI_NODE_MULTI_WRITER)), "one node"),
        (await ask(mount("btrfs")), "btrfs"),
        (await ask(mount(volume_mount_group="5")), "volume_mount_group"),
        (await ask(block(), parameters={"pool": "other"}), "pool"),
        (await ask(block(), mutable_parameters={"iops": "1"}), "mutable"),
    ):
        assert not no.HasField("confirmed")
        assert word in no.message
    before = rig.contents()
    await ask(mount())
    assert rig.contents() == before


async def test_capacity(rig: Rig) -> None:
    async def ask(**fields: Any) -> tuple[int, int, int]:
        answer = await rig.controller.GetCapacity(C.GetCapacityRequest(**fields))
        return answer.available_capacity, answer.maximum_volume_size.value, answer.minimum_volume_size.value

    assert await ask() == (128 * GIB, 128 * GIB, 4096)
    await rig.volume("v", GIB)
    assert await ask() == (127 * GIB, 127 * GIB, 4096)
    assert await ask(parameters=LABELS) == (127 * GIB, 127 * GIB, 4096)
    assert (await ask(parameters={"pool": "other", **LABELS}))[0] == 16 * GIB
    assert (await ask(parameters={"provisioning": "thick"}))[0] < 64 * GIB
    assert (await ask(parameters={"pool": "nowhere"}))[0] == 0
    assert (await ask(volume_capabilities=[mount("xfs")]))[2] == 300 * MIB
    ours = C.Topology(segments={"topology.csi.tidemark.dev/node": OWNER, "topology.kubernetes.io/zone": "z"})
    assert (await ask(accessible_topology=ours))[0] == 127 * GIB
    assert (await ask(accessible_topology=C.Topology()))[0] == 127 * GIB
    for key, value in (("topology.csi.tidemark.dev/node", "node-2"), ("topology.kubernetes.io/zone", "z")):
        assert (await ask(accessible_topology=C.Topology(segments={key: value})))[0] == 0
    # What csi-provisioner sends each time: an empty mount, and a mode that is not said.
    unknown = C.VolumeCapability(mount=C.VolumeCapability.MountVolume(), access_mode=Modes())
    assert (await ask(volume_capabilities=[unknown]))[0] == 127 * GIB
    assert (await ask(volume_capabilities=[C.VolumeCapability()]))[0] == 127 * GIB
    assert (await ask(volume_capabilities=[mount(mode=Modes.MULTI_NODE_MULTI_WRITER)]))[:2] == (0, 0)


@pytest.mark.parametrize(
    "said",
    [
        None,
        C.TopologyRequirement(),
        C.TopologyRequirement(requisite=[C.Topology()]),
        places(OWNER),
        places("node-2", OWNER),
        C.TopologyRequirement(preferred=places(OWNER).requisite),
    ],
)
async def test_topology_that_is_ours(rig: Rig, said: csi_pb2.TopologyRequirement | None) -> None:
    made = await rig.volume("v", accessibility_requirements=said)
    assert made.volume_id.startswith(OWNER)
    # A retry finds it wherever the scheduler has gone to since.
    again = await rig.controller.CreateVolume(create_volume("v", accessibility_requirements=places("node-9")))
    assert again.volume == made


async def test_names_at_the_limit(rig: Rig) -> None:
    for name in ("n" * 128, "ä" * 64, "../../etc", "--help", "a/b c\td", "名前", "' ; rm -rf / #"):
        made = await rig.volume(name)
        shot = await rig.snapshot(made.volume_id, name)
        group = await rig.group(made.volume_id, name=name)
        for made_id in (made.volume_id, shot.snapshot_id, group.group_snapshot_id, group.snapshots[0].snapshot_id):
            assert len(made_id) <= 128
            assert str(parse(made_id)) == made_id
    assert os.listdir(rig.directory) == ["csi"]


HOSTILE = [
    "../../etc",
    "--help",
    "x" * 4096,
    "名前",
    "a\0b",
    "node-1:default:../../../../../../../etc/passwd",
    "%s%n",
    "\n",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_ids_that_are_none_are_unknown(rig: Rig, text: str) -> None:
    made = await rig.volume()
    await rig.snapshot(made.volume_id)
    before = rig.contents()
    not_found = [
        rig.controller.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=text)),
        rig.controller.GetSnapshot(C.GetSnapshotRequest(snapshot_id=text)),
        rig.controller.CreateVolume(create_volume("w", volume_content_source=from_snapshot(text))),
        rig.controller.CreateVolume(create_volume("w", volume_content_source=from_volume(text))),
        rig.controller.CreateSnapshot(C.CreateSnapshotRequest(name="t", source_volume_id=text)),
        rig.controller.ValidateVolumeCapabilities(
            C.ValidateVolumeCapabilitiesRequest(volume_id=text, volume_capabilities=[block()])
        ),
        rig.controller.ControllerExpandVolume(
            C.ControllerExpandVolumeRequest(volume_id=text, capacity_range=RANGE(required_bytes=1))
        ),
        rig.groups.CreateVolumeGroupSnapshot(C.CreateVolumeGroupSnapshotRequest(name="h", source_volume_ids=[text])),
        rig.groups.GetVolumeGroupSnapshot(C.GetVolumeGroupSnapshotRequest(group_snapshot_id=text)),
        rig.node.NodeStageVolume(
            C.NodeStageVolumeRequest(volume_id=text, staging_target_path="/s", volume_capability=block())
        ),
        rig.node.NodePublishVolume(
            C.NodePublishVolumeRequest(
                volume_id=text, staging_target_path="/s", target_path="/t", volume_capability=block()
            )
        ),
        rig.node.NodeGetVolumeStats(C.NodeGetVolumeStatsRequest(volume_id=text, volume_path="some/path")),
        rig.node.NodeExpandVolume(C.NodeExpandVolumeRequest(volume_id=text, volume_path="/p")),
        rig.tidemark.Hold(T.HoldRequest(volume_id=text, holder="h")),
        rig.tidemark.Rollback(T.RollbackRequest(volume_id=text, snapshot_id=text, name="n")),
        rig.tidemark.GetTree(T.GetTreeRequest(volume_id=text)),
        rig.tidemark.DescribeVolume(T.DescribeVolumeRequest(volume_id=text)),
        rig.tidemark.SetLabel(T.SetLabelRequest(volume_id=text, label="l")),
        rig.tidemark.EstimateFreed(T.EstimateFreedRequest(ids=[text])),
    ]
    for call in not_found:
        await refused(call, CODE.NOT_FOUND, "does not exist")
    # Deleting what is not there is done already.
    await rig.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=text))
    await rig.controller.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=text))
    await rig.groups.DeleteVolumeGroupSnapshot(C.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=text))
    await rig.tidemark.Release(T.ReleaseRequest(volume_id=text, holder="h"))
    gone = rig.path("gone")
    await rig.node.NodeUnpublishVolume(C.NodeUnpublishVolumeRequest(volume_id=text, target_path=gone))
    await rig.node.NodeUnstageVolume(C.NodeUnstageVolumeRequest(volume_id=text, staging_target_path=gone))
    assert rig.contents() == before

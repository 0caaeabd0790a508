"""One name, one volume: whatever is killed, lost or changed on the way. Placement as a cluster sees it."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from typing import Any

import grpc
import pytest
from controller_rig import NAMESPACE, ControllerRig, node, until_ready
from support.fake_api import Call, Fault, Object
from support.rpc_rig import CODE, create_volume, from_snapshot, from_volume, places
from support.waiting import until

from csi_driver._pb import csi_pb2 as C
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVCS, STORAGE_CLASSES

PLACED = "tidemark.dev/placed-on"
FULL = OSError(errno.ENOSPC, "full")


def wanted(claim: Object, *owners: str, **more: Any) -> C.CreateVolumeRequest:
    """What the provisioner asks for a claim; the owners in the order that it prefers."""
    metadata = claim["metadata"]
    labels = {"csi.storage.k8s.io/pvc/name": metadata["name"], "csi.storage.k8s.io/pvc/namespace": "ns"}
    name = f"pvc-{metadata['uid']}"
    labels["csi.storage.k8s.io/pv/name"] = name
    return create_volume(name, accessibility_requirements=places(*owners), parameters=labels, **more)


async def refused(call: Any, code: grpc.StatusCode, *words: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    for word in words:
        assert word in (caught.value.details() or "")


def volumes(rig: ControllerRig) -> list[str]:
    return [str(one.id) for agent in rig.agents.values() for one in agent.pool.volumes.values()]


async def test_the_selected_node_alone_is_asked(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    claim = rig.claim("c", selected="n-10")
    made = (await rig.stub.CreateVolume(wanted(claim, "n-1", "n-10"))).volume.volume_id
    assert made.startswith("n-10:")
    other = rig.claim("d", selected="n-10")
    rig.agents["n-10"].faults.fail("create_volume", FULL)
    await refused(rig.stub.CreateVolume(wanted(other, "n-10", "n-1")), CODE.RESOURCE_EXHAUSTED)
    assert rig.agents["n-1"].asked("CreateVolume") == 0
    assert rig.note("d", PLACED) is None


async def test_a_selection_that_was_taken_back_meanwhile(rig: ControllerRig) -> None:
    """The provisioner still has it, and names it first: nobody else is asked, and nothing is written down."""
    await until_ready(rig.identity)
    waits = {"metadata": {"name": "waits"}, "volumeBindingMode": "WaitForFirstConsumer"}
    rig.fake.put(STORAGE_CLASSES, waits)
    claim = rig.claim("c")
    rig.fake.change(PVCS, "c", {"spec": {"storageClassName": "waits"}}, "ns")
    rig.agents["n-10"].faults.fail("create_volume", FULL)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.RESOURCE_EXHAUSTED)
    assert rig.agents["n-1"].asked("CreateVolume") == 0
    assert rig.note("c", PLACED) is None
    rig.fake.put(STORAGE_CLASSES, waits | {"volumeBindingMode": "Immediate"})
    rig.agents["n-10"].faults.fail("create_volume", FULL)
    assert (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume.volume_id.startswith("n-1:")


async def test_a_restore_waits_for_its_source(rig: ControllerRig) -> None:
    """Whatever the cluster says of that node: nobody else has the snapshot, and only a person may give it up."""
    await until_ready(rig.identity)
    made = (await rig.stub.CreateVolume(wanted(rig.claim("source"), "n-1"))).volume.volume_id
    cut = C.CreateSnapshotRequest(name="s", source_volume_id=made)
    snapshot = (await rig.stub.CreateSnapshot(cut)).snapshot.snapshot_id
    await rig.agents["n-1"].server.stop(0)
    restore = wanted(rig.claim("c", selected="n-10"), "n-10", "n-1", volume_content_source=from_snapshot(snapshot))
    clone = wanted(rig.claim("d"), "n-10", "n-1", volume_content_source=from_volume(made))
    for state in ("ready", "not ready", "gone"):
        if state == "not ready":
            rig.fake.put(NODES, node("n-1", ready=False))
            await until(lambda: not rig.controller._discovery.endpoint("n-1").ready)
        if state == "gone":
            rig.fake.remove(PODS, "agent-n-1", NAMESPACE)
            rig.fake.remove(NODES, "n-1")
            await until(lambda: rig.controller._discovery.endpoint("n-1") is None)
        for request in (restore, clone):
            await refused(rig.stub.CreateVolume(request), CODE.UNAVAILABLE, "n-1")
    assert rig.agents["n-10"].asked("CreateVolume") == 0


async def test_the_selected_node_dies(rig: ControllerRig) -> None:
    """While its Node is Ready the same call is repeated; from then on another may be chosen."""
    await until_ready(rig.identity)
    claim = rig.claim("c", selected="n-10")
    await rig.agents["n-10"].server.stop(0)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.UNAVAILABLE, "n-10")
    rig.fake.put(NODES, node("n-10", ready=False))
    await until(lambda: not rig.controller._discovery.endpoint("n-10").ready)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.RESOURCE_EXHAUSTED, "n-10", "not ready")
    rig.fake.remove(NODES, "n-10")
    rig.fake.remove(PODS, "agent-n-10", NAMESPACE)
    await until(lambda: rig.controller._discovery.endpoint("n-10") is None)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.RESOURCE_EXHAUSTED, "n-10")
    assert rig.agents["n-1"].asked("CreateVolume") == 0


async def test_the_choice_is_written_down_before_it_is_tried(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    claim = rig.claim("c")
    pause = rig.agents["n-10"].faults.pause("create_volume")
    running = asyncio.ensure_future(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")))
    await pause.reached.wait()
    assert rig.note("c", PLACED) == "n-10"
    pause.release()
    await running
    rig.agents["n-10"].faults.fail("create_volume", FULL)
    other = rig.claim("d")
    assert (await rig.stub.CreateVolume(wanted(other, "n-10", "n-1"))).volume.volume_id.startswith("n-1:")
    assert rig.note("d", PLACED) == "n-1"


async def test_a_provisioner_that_restarts_gets_the_same_volume(rig: ControllerRig) -> None:
    """It has forgotten that it asked, and may prefer another order by now."""
    await until_ready(rig.identity)
    claim = rig.claim("c")
    first = (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume
    again = (await rig.stub.CreateVolume(wanted(claim, "n-1", "n-10"))).volume
    assert again == first
    assert volumes(rig) == [first.volume_id]


async def test_a_controller_killed_between_call_and_answer(rig: ControllerRig) -> None:
    """The volume is made, nobody got the answer, and its node is full now: whoever asks next gets that volume."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "csi_driver.cli.main", "controller", "--no-operator",
        "--endpoint", f"unix://{rig.root}/killed.sock", "--certificates", str(rig.root / "own"),
        "--controller-secret", "controllers", "--agent-secret", "agents",
        "--kubeconfig", rig.fake.kubeconfig(rig.root / "kubeconfig"),
    )  # fmt: skip
    try:
        await until((rig.root / "killed.sock").exists)
        channel = grpc.aio.insecure_channel(f"unix://{rig.root}/killed.sock")
        own, rig.channel = rig.channel, channel
        await own.close()
        rig.connect("killed")
        await until_ready(rig.identity)
        claim = rig.claim("c")
        pause = rig.agents["n-10"].faults.pause("create_volume")
        running = asyncio.ensure_future(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")))
        await pause.reached.wait()
        process.kill()
        await refused(running, CODE.UNAVAILABLE)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await channel.close()
    await rig.channel.close()
    rig.connect("csi")
    await until_ready(rig.identity)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-1", "n-10")), CODE.ABORTED)  # it is still being made
    pause.release()
    await until(lambda: volumes(rig))
    rig.agents["n-10"].faults.fail("create_volume", FULL)
    made = (await rig.stub.CreateVolume(wanted(claim, "n-1", "n-10"))).volume.volume_id
    assert made.startswith("n-10:")
    assert volumes(rig) == [made]
    assert rig.agents["n-1"].asked("CreateVolume") == 0


async def test_the_command_ends_on_sigterm(rig: ControllerRig) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "csi_driver.cli.main", "controller", "--log-format", "json",
        "--endpoint", f"unix://{rig.root}/other.sock", "--certificates", str(rig.root / "own"),
        "--controller-secret", "controllers", "--agent-secret", "agents",
        "--kubeconfig", rig.fake.kubeconfig(rig.root / "kubeconfig"), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await until((rig.root / "other.sock").exists)
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b'"stopped"' in log
    assert b"Traceback" not in log
    assert not (rig.root / "other.sock").exists()


async def test_a_claim_that_changes_meanwhile_is_read_again(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    claim = rig.claim("c")
    changes = [{"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n-1"}}}]

    def race(call: Call) -> None:
        if call.verb == "patch" and call.kind == PVCS and changes:
            rig.fake.change(PVCS, "c", changes.pop(), "ns")

    rig.fake.hooks.append(race)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.UNAVAILABLE, "ns/c")
    assert all(agent.asked("CreateVolume") == 0 for agent in rig.agents.values())
    assert rig.note("c", PLACED) is None
    assert (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume.volume_id.startswith("n-1:")


@pytest.mark.parametrize("fault", [Fault(503), Fault(403, "Forbidden", "no right")])
async def test_without_the_api_nothing_is_begun(rig: ControllerRig, fault: Fault) -> None:
    await until_ready(rig.identity)
    claim = rig.claim("c")

    def refuse(call: Call) -> None:
        if call.kind == PVCS:
            raise fault

    rig.fake.hooks.append(refuse)
    await refused(rig.stub.CreateVolume(wanted(claim, "n-10", "n-1")), CODE.UNAVAILABLE)
    assert all(agent.asked("CreateVolume") == 0 for agent in rig.agents.values())
    made = create_volume("by hand", accessibility_requirements=places("n-1"))  # no claim: nothing to ask the API for
    assert (await rig.stub.CreateVolume(made)).volume.volume_id.startswith("n-1:")


async def test_another_claim_under_the_same_name_says_nothing(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    old = rig.claim("c")
    rig.fake.remove(PVCS, "c", "ns")
    rig.claim("c", selected="n-10")
    assert (await rig.stub.CreateVolume(wanted(old, "n-1", "n-10"))).volume.volume_id.startswith("n-1:")
    assert rig.note("c", PLACED) is None


async def test_immediate_binding_does_not_begin_with_a_node_that_is_away(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    rig.fake.put(NODES, node("n-10", ready=False))
    await until(lambda: not rig.controller._discovery.endpoint("n-10").ready)
    claim = rig.claim("c")
    assert (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume.volume_id.startswith("n-1:")
    assert rig.note("c", PLACED) == "n-1"
    rig.fake.put(NODES, node("n-1", ready=False))
    await until(lambda: not rig.controller._discovery.endpoint("n-1").ready)
    other = rig.claim("d")
    await refused(rig.stub.CreateVolume(wanted(other, "n-10", "n-1")), CODE.UNAVAILABLE, "n-1", "n-10")
    assert rig.note("d", PLACED) is None


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "not ready"])
async def test_what_was_on_a_decommissioned_node_can_be_deleted_and_made_elsewhere(
    rig: ControllerRig, removed: bool
) -> None:
    await until_ready(rig.identity)
    claim = rig.claim("c")
    lost = (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume.volume_id
    cut = C.CreateSnapshotRequest(name="s", source_volume_id=lost)
    snapshot = (await rig.stub.CreateSnapshot(cut)).snapshot.snapshot_id
    await rig.agents["n-10"].server.stop(0)
    rig.fake.remove(PODS, "agent-n-10", NAMESPACE)
    discovery = rig.controller._discovery
    if removed:
        rig.fake.remove(NODES, "n-10")
        await until(lambda: discovery.endpoint("n-10") is None)
    else:
        rig.fake.put(NODES, node("n-10", ready=False))
        await until(lambda: not ((place := discovery.endpoint("n-10")) and place.ready))
    await refused(rig.stub.DeleteVolume(C.DeleteVolumeRequest(volume_id=lost)), CODE.UNAVAILABLE, "n-10")
    await refused(rig.stub.CreateVolume(wanted(claim, "n-1")), CODE.UNAVAILABLE, "n-10")
    rig.fake.put(CONFIG_MAPS, {"metadata": {"name": "tidemark-forgotten"}, "data": {"n-10": "now"}}, NAMESPACE)
    await until(lambda: discovery.is_decommissioned("n-10"))
    await rig.stub.DeleteSnapshot(C.DeleteSnapshotRequest(snapshot_id=snapshot))
    await rig.stub.DeleteVolume(C.DeleteVolumeRequest(volume_id=lost))
    asked = C.ControllerGetVolumeRequest(volume_id=lost)
    await refused(rig.stub.ControllerGetVolume(asked), CODE.UNAVAILABLE, "n-10")  # nobody looked: not "not found"
    # The provisioner names nodes by their labels: one that is given up too, while its object is there.
    assert (await rig.stub.CreateVolume(wanted(claim, "n-10", "n-1"))).volume.volume_id.startswith("n-1:")
    assert len((await rig.stub.ListVolumes(C.ListVolumesRequest())).entries) == 1
    assert len(rig.agents["n-10"].pool.volumes) == 1  # nothing was deleted there


async def test_a_restore_asks_its_source_once_for_each_call(rig: ControllerRig) -> None:
    """While the source's pool is full: the retries are the provisioner's, and nobody else is asked."""
    await until_ready(rig.identity)
    source = rig.claim("source")
    made = (await rig.stub.CreateVolume(wanted(source, "n-1", "n-10"))).volume.volume_id
    cut = C.CreateSnapshotRequest(name="s", source_volume_id=made)
    snapshot = (await rig.stub.CreateSnapshot(cut)).snapshot.snapshot_id
    claim = rig.claim("c", selected="n-10")
    before = rig.agents["n-1"].asked("CreateVolume")
    for count in range(1, 6):
        rig.agents["n-1"].faults.fail("create_volume", FULL)
        request = wanted(claim, "n-10", "n-1", volume_content_source=from_snapshot(snapshot))
        await refused(rig.stub.CreateVolume(request), CODE.RESOURCE_EXHAUSTED)
        assert rig.agents["n-1"].asked("CreateVolume") == before + count
    assert rig.agents["n-10"].asked("CreateVolume") == 0
    assert rig.note("c", PLACED) is None
    request = wanted(claim, "n-10", "n-1", volume_content_source=from_snapshot(snapshot))
    assert (await rig.stub.CreateVolume(request)).volume.volume_id.startswith("n-1:")


async def test_room_is_told_with_all_that_the_provisioner_adds(rig: ControllerRig) -> None:
    await until_ready(rig.identity)
    place = places("n-1").requisite[0]
    asked = C.GetCapacityRequest(
        accessible_topology=place, parameters={"csi.storage.k8s.io/fstype": "xfs", "csi.storage.k8s.io/x-y/z": "1"}
    )
    assert (await rig.stub.GetCapacity(asked)).available_capacity > 0
    await rig.agents["n-1"].server.stop(0)
    await refused(rig.stub.GetCapacity(asked), CODE.UNAVAILABLE, "n-1")

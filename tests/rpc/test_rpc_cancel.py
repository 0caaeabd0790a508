"""Clients that go away, calls that meet each other, calls that end badly: the work and the server survive."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
import structlog
from support.rpc_rig import CODE, Rig, block, create_volume, outlived, refused, refused_unchanged
from support.sizes import MIB
from support.waiting import until

from csi_driver._pb import csi_pb2, tidemark_pb2

C = csi_pb2
T = tidemark_pb2
SNAPSHOT = "csi.v1.Controller/CreateSnapshot"


async def gone(call: Any) -> None:
    """The client leaves, and its call ends so on both sides."""
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_client_that_goes_away_does_not_stop_the_work(rig: Rig) -> None:
    made = await rig.volume()
    request = C.CreateSnapshotRequest(name="s", source_volume_id=made.volume_id)
    pause = rig.faults.pause("create_snapshot", "half")
    call = rig.controller.CreateSnapshot(request)
    await pause.reached.wait()
    await gone(call)
    await until(lambda: (SNAPSHOT, "CANCELLED") in rig.seen.calls)
    # It still holds its locks: whoever comes meanwhile is told so, and what runs.
    await refused_unchanged(rig, rig.controller.CreateSnapshot(request), CODE.ABORTED, "in progress", "try again")
    delete = C.DeleteVolumeRequest(volume_id=made.volume_id)
    await refused_unchanged(rig, rig.controller.DeleteVolume(delete), CODE.ABORTED, "CreateSnapshot")
    assert not (await rig.controller.ListSnapshots(C.ListSnapshotsRequest())).entries
    pause.release()
    await until(lambda: (SNAPSHOT, "OK") in rig.seen.lates)
    listed = (await rig.controller.ListSnapshots(C.ListSnapshotsRequest())).entries
    assert (await rig.controller.CreateSnapshot(request)).snapshot == listed[0].snapshot
    assert len(listed) == 1


async def test_a_deadline_that_passes_does_not_stop_the_work(rig: Rig) -> None:
    pause = rig.faults.pause("create_volume")
    await outlived(lambda seconds: rig.controller.CreateVolume(create_volume("v"), timeout=seconds), pause)
    await refused(rig.controller.CreateVolume(create_volume("v")), CODE.ABORTED, "CreateVolume")
    pause.release()
    assert await rig.calls.drain(60) == []
    assert (await rig.volume("v")).capacity_bytes == MIB
    assert len((await rig.controller.ListVolumes(C.ListVolumesRequest())).entries) == 1


async def test_late_failures_are_told(rig: Rig) -> None:
    made = await rig.volume()
    rig.faults.fail("create_snapshot", OSError(5, "Input/output error"), "half")
    pause = rig.faults.pause("create_snapshot")
    with structlog.testing.capture_logs() as lines:
        call = rig.controller.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=made.volume_id))
        await pause.reached.wait()
        await gone(call)
        await until(lambda: (SNAPSHOT, "CANCELLED") in rig.seen.calls)
        pause.release()
        await until(lambda: (SNAPSHOT, "UNAVAILABLE") in rig.seen.lates)
    late = next(line for line in lines if line["event"] == "call finished after cancel")
    assert (late["code"], late["name"], late["source_volume_id"]) == ("UNAVAILABLE", "s", made.volume_id)
    left = next(line for line in lines if line["code"] == "CANCELLED")
    assert left["goes_on"]


async def test_reading_stops_with_its_client(rig: Rig) -> None:
    made = await rig.volume()
    pause = rig.faults.pause("usage")
    call = rig.tidemark.GetTree(T.GetTreeRequest(with_usage=True))
    await pause.reached.wait()
    await gone(call)
    await until(lambda: ("tidemark.v1.Tidemark/GetTree", "CANCELLED") in rig.seen.calls)
    assert rig.seen.lates == []
    assert await rig.calls.drain(0) == []
    assert made


async def test_reading_goes_on_beside_work_that_stands_still(rig: Rig) -> None:
    made = await rig.volume()
    pause = rig.faults.pause("create_snapshot", "half")
    call = rig.controller.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=made.volume_id))
    await pause.reached.wait()
    for quick in (  # not one of them is answered if it waits for the other: that goes on only after them all
        rig.identity.Probe(C.ProbeRequest(), timeout=60),
        rig.controller.ListVolumes(C.ListVolumesRequest(), timeout=60),
        rig.controller.ControllerGetVolume(C.ControllerGetVolumeRequest(volume_id=made.volume_id), timeout=60),
        rig.controller.GetCapacity(C.GetCapacityRequest(), timeout=60),
        rig.node.NodeGetInfo(C.NodeGetInfoRequest(), timeout=60),
    ):
        await quick
    pause.release()
    await call


async def test_drain_names_what_still_runs(rig: Rig) -> None:
    pause = rig.faults.pause("create_volume")
    call = rig.controller.CreateVolume(create_volume("slow"))
    await pause.reached.wait()
    assert await rig.calls.drain(0.05) == ["csi.v1.Controller/CreateVolume slow"]
    drained = asyncio.create_task(rig.calls.drain(60))
    await asyncio.sleep(0.02)
    assert not drained.done()
    pause.release()
    assert await drained == []
    assert (await call).volume.volume_id


async def test_stopping_answers_what_ends_in_time_and_keeps_what_does_not(rig: Rig) -> None:
    quick, slow = rig.faults.pause("create_volume"), rig.faults.pause("create_volume")
    one = asyncio.ensure_future(_outcome(rig.controller.CreateVolume(create_volume("one"))))
    await quick.reached.wait()
    two = asyncio.ensure_future(_outcome(rig.controller.CreateVolume(create_volume("two"))))
    await slow.reached.wait()
    stopping = asyncio.create_task(rig.server.stop(3))
    await asyncio.sleep(0.05)
    quick.release()
    assert await one is CODE.OK
    await stopping
    assert await two in {CODE.UNAVAILABLE, CODE.CANCELLED}
    assert not os.path.exists(rig.server.path)
    slow.release()
    assert await rig.calls.drain(60) == []
    assert {volume.name for volume in rig.opened[0].volumes.values()} == {"one", "two"}


async def _outcome(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return CODE.OK


async def test_the_same_name_at_once_is_one_object(rig: Rig) -> None:
    """Those that come while it is made wait for it: nobody is told to come again."""
    rig.pools.locks.patience = 60.0

    async def volume() -> str:
        return (await rig.controller.CreateVolume(create_volume("same"))).volume.volume_id

    assert len(set(await asyncio.gather(*(volume() for _ in range(20))))) == 1
    assert len(rig.opened[0].volumes) == 1
    request = C.CreateSnapshotRequest(name="same", source_volume_id=await volume())

    async def snapshot() -> str:
        return (await rig.controller.CreateSnapshot(request)).snapshot.snapshot_id

    assert len(set(await asyncio.gather(*(snapshot() for _ in range(20))))) == 1
    assert len(rig.opened[0].snapshots) == 1


async def test_room_is_not_promised_twice(rig: Rig) -> None:
    size = 40 << 30
    codes = await asyncio.gather(
        *(_outcome(rig.controller.CreateVolume(create_volume(f"v{n}", size))) for n in range(6))
    )
    assert sorted(code.name for code in codes) == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 3


async def test_a_defect_is_a_number_and_the_server_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a very internal thing")

    monkeypatch.setattr(rig.backend, "create_volume", broken)
    monkeypatch.setattr(rig.volumes, "list", lambda *_: 1 // 0)
    for call in (
        lambda: rig.controller.CreateVolume(create_volume("v")),
        lambda: rig.controller.ListVolumes(C.ListVolumesRequest()),
    ):
        with structlog.testing.capture_logs() as lines:
            message = await refused(call(), CODE.INTERNAL, "incident")
        assert "internal thing" not in message
        number = re.search(r"incident ([0-9a-f]{12})", message)
        line = next(line for line in lines if line["event"] == "call")
        assert number
        assert line["incident"] == number[1]
        assert line["log_level"] == "error"
        assert isinstance(line["exc_info"], Exception)
    monkeypatch.undo()
    assert (await rig.volume("v")).volume_id


async def test_a_broken_observer_breaks_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.seen, "call", lambda *_: 1 // 0)
    assert (await rig.volume()).volume_id


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x10short"])
async def test_bytes_that_are_no_message(rig: Rig, data: bytes) -> None:
    for method in ("CreateVolume", "ListVolumes" if data[0] == 0xFF else "ControllerGetVolume"):
        call = rig.channel.unary_unary(f"/csi.v1.Controller/{method}")
        before = rig.contents()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
        assert caught.value.code() is CODE.INVALID_ARGUMENT
        assert "not a message" in (caught.value.details() or "")
        assert rig.contents() == before


async def test_fields_of_a_later_protocol_are_ignored(rig: Rig) -> None:
    call = rig.channel.unary_unary("/csi.v1.Controller/CreateVolume")
    answer = await call(create_volume("v").SerializeToString() + b"\xf2\x7f\x03abc")
    assert csi_pb2.CreateVolumeResponse.FromString(answer).volume.volume_id


async def test_cancelled_stage_leaves_a_whole_stage(rig: Rig) -> None:
    made = await rig.volume()
    request = C.NodeStageVolumeRequest(
        volume_id=made.volume_id, staging_target_path=rig.path("s"), volume_capability=block()
    )
    pause = rig.faults.pause("stage_block")
    call = rig.node.NodeStageVolume(request)
    await pause.reached.wait()
    await gone(call)
    await refused(rig.node.NodeStageVolume(request), CODE.ABORTED, "NodeStageVolume")
    pause.release()
    assert await rig.calls.drain(60) == []
    await rig.node.NodeStageVolume(request)
    assert os.path.lexists(rig.path("s") + "/device")

from __future__ import annotations

import re

from support.rpc_rig import CODE, Rig, refused

from csi_driver import __version__
from csi_driver._pb import csi_pb2
from csi_driver.domain.errors import Unavailable


async def test_plugin_info(rig: Rig) -> None:
    info = await rig.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("csi.tidemark.dev", __version__)
    assert re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9.]{0,61}[a-zA-Z]", info.name)


async def test_plugin_capabilities_are_those_of_csi_1_12(rig: Rig) -> None:
    answer = await rig.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
    assert [c.service.type for c in answer.capabilities if c.HasField("service")] == [1, 2, 3]
    assert [c.volume_expansion.type for c in answer.capabilities if c.HasField("volume_expansion")] == [
        csi_pb2.PluginCapability.VolumeExpansion.ONLINE
    ]


async def test_probe(rig: Rig) -> None:
    assert (await rig.identity.Probe(csi_pb2.ProbeRequest())).ready.value
    rig.ready = lambda: False
    answer = await rig.identity.Probe(csi_pb2.ProbeRequest())
    assert answer.HasField("ready")
    assert not answer.ready.value

    def missing() -> bool:
        raise Unavailable("pool default has gone: mount its disk")

    rig.ready = missing
    await refused(rig.identity.Probe(csi_pb2.ProbeRequest()), CODE.FAILED_PRECONDITION, "pool default")


async def test_probe_waits_for_no_lock(rig: Rig) -> None:
    async with rig.pools.locks.hold("everything", [f"{n:032x}" for n in range(100)]):
        assert (await rig.identity.Probe(csi_pb2.ProbeRequest(), timeout=60)).ready.value


async def test_controller_and_group_capabilities(rig: Rig) -> None:
    controller = await rig.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    names = [csi_pb2.ControllerServiceCapability.RPC.Type.Name(c.rpc.type) for c in controller.capabilities]
    assert names == [
        "CREATE_DELETE_VOLUME",
        "LIST_VOLUMES",
        "GET_CAPACITY",
        "CREATE_DELETE_SNAPSHOT",
        "LIST_SNAPSHOTS",
        "CLONE_VOLUME",
        "EXPAND_VOLUME",
        "GET_VOLUME",
        "SINGLE_NODE_MULTI_WRITER",
        "GET_SNAPSHOT",
    ]
    groups = await rig.groups.GroupControllerGetCapabilities(csi_pb2.GroupControllerGetCapabilitiesRequest())
    assert [c.rpc.type for c in groups.capabilities] == [1]


async def test_node_capabilities_and_info(rig: Rig) -> None:
    node = await rig.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    names = [csi_pb2.NodeServiceCapability.RPC.Type.Name(c.rpc.type) for c in node.capabilities]
    assert names == ["STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "SINGLE_NODE_MULTI_WRITER"]
    info = await rig.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert info.node_id == "node-1"
    assert dict(info.accessible_topology.segments) == {"topology.csi.tidemark.dev/node": "node-1"}
    assert info.max_volumes_per_node == 0


async def test_a_call_that_nobody_knows(rig: Rig) -> None:
    import grpc
    import pytest

    call = rig.channel.unary_unary("/csi.v1.Controller/Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is CODE.UNIMPLEMENTED
    assert rig.seen.calls == []  # no label that a caller may choose

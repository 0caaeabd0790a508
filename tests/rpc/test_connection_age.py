"""Connections are made again from time to time: no call notices, and what is trusted no more is found out."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from support.cluster_rig import Cluster, write_identity
from support.rpc_rig import CODE
from test_router import refused, volume

from csi_driver._pb import csi_pb2 as C
from csi_driver._pb import csi_pb2_grpc
from csi_driver.operator.certificates import ca
from csi_driver.rpc import tls


@pytest.fixture
async def restless(cluster: Cluster) -> Cluster:
    """A cluster whose agents end connections after about a third of a second."""
    for agent in cluster.agents.values():
        await agent.server.stop(0)
        agent.connection_seconds = 0.3
        await agent.start()
    return cluster


async def test_no_call_notices(restless: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without a pause, until connections were made again often enough; and one that lasts for all of them."""
    handshakes = 0
    latest = tls.ReloadingTlsFiles.__call__

    def counted(self: tls.ReloadingTlsFiles) -> tls.TlsFiles:
        nonlocal handshakes
        handshakes += 1
        return latest(self)

    for agent in restless.agents.values():
        await agent.server.stop(0)
    monkeypatch.setattr(tls.ReloadingTlsFiles, "__call__", counted)
    for agent in restless.agents.values():
        await agent.start()
    # The controller's channels look at their files by the same class: it was made before, and is not counted.
    monkeypatch.setattr(restless.channels, "_latest", restless.controllers_identity.read)
    pause = restless.agents["n-1"].faults.pause("create_volume")
    slow = asyncio.ensure_future(volume(restless, "slow", "n-1"))
    await pause.reached.wait()

    async def caller(number: int) -> None:
        owner = ("n-1", "n-10")[number % 2]
        while handshakes < 12:
            made = await volume(restless, f"volume {number}", owner)
            await restless.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=made))

    await asyncio.gather(*(caller(number) for number in range(20)))
    pause.release()
    assert (await slow).startswith("n-1:")


async def test_a_caller_whose_authority_was_dropped(restless: Cluster) -> None:
    """Its connection was made in good time, and does not outlive that for long."""
    agent = restless.agents["n-1"]
    own = tls.channel_credentials(restless.controllers_identity.read())
    options = [("grpc.ssl_target_name_override", tls.AGENT)]
    async with grpc.aio.secure_channel(agent.address, own, options=options) as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        assert await stub.GetCapacity(C.GetCapacityRequest(), timeout=60)
        new = ca.new_ca()
        write_identity(restless.agents_identity.directory, new, ca.issue(new, tls.AGENT))

        async def until_refused() -> None:
            while True:
                await stub.GetCapacity(C.GetCapacityRequest(), timeout=60)
                await asyncio.sleep(0.02)

        await refused(asyncio.wait_for(until_refused(), 60), CODE.UNAVAILABLE)

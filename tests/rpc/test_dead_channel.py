"""A machine whose power goes away says nothing: no reset, no end of file. Calls to its agent must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from support.cluster_rig import Cluster
from support.rpc_rig import CODE, create_volume, places

from csi_driver._pb import csi_pb2 as C
from csi_driver.service.discovery import AgentEndpoint

HUNG = 40.0
"""Seconds that only a caller who waits for ever needs: keepalive finds a dead peer after 15."""


class Relay:
    """Passes bytes on to an agent, until it is silent: connections stand, new ones too, and nothing goes through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.speaks = asyncio.Event()
        self.speaks.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_agent = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, to_agent[1]), (to_agent[0], writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await self.speaks.wait()
                sink.write(data)
        sink.close()

    @property
    def connections(self) -> int:
        return len(self._tasks)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def relayed(cluster: Cluster, owner: str) -> AsyncIterator[Relay]:
    relay = Relay(cluster.agents[owner].port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    cluster.discovery.places[owner] = AgentEndpoint(owner, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield relay
    server.close()
    relay.stop()


async def unavailable(call: object, owner: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(HUNG):
            await call  # type: ignore[misc]
    assert caught.value.code() is CODE.UNAVAILABLE
    assert owner in (caught.value.details() or "")


@pytest.mark.slow(seconds=20)
async def test_a_peer_that_falls_silent_is_given_up_and_found_again(cluster: Cluster) -> None:
    """In the middle of a call without a deadline, and for the calls after it; other nodes' calls go on meanwhile."""
    async with relayed(cluster, "n-1") as relay:
        request = create_volume("v", accessibility_requirements=places("n-1"))
        made = (await cluster.controller.CreateVolume(request)).volume.volume_id
        asked = C.ControllerGetVolumeRequest(volume_id=made)
        relay.speaks.clear()
        cluster.claim.written.clear()
        waiting = asyncio.gather(*(unavailable(cluster.controller.ControllerGetVolume(asked), "n-1") for _ in range(3)))
        await cluster.controller.CreateVolume(create_volume("w", accessibility_requirements=places("n-10")))
        await waiting
        # The new connection is not answered either.
        await unavailable(cluster.controller.ControllerGetVolume(asked), "n-1")
        await unavailable(cluster.controller.ListVolumes(C.ListVolumesRequest()), "n-1")
        relay.speaks.set()
        async with asyncio.timeout(HUNG):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    assert (await cluster.controller.ControllerGetVolume(asked)).volume.volume_id == made
                    break
                await asyncio.sleep(0.1)


async def test_a_node_that_is_gone_keeps_no_connection(cluster: Cluster) -> None:
    """Also not one that tries to connect for ever. A call that it still has in hand comes to its end."""
    async with relayed(cluster, "n-1") as relay:
        pause = cluster.agents["n-1"].faults.pause("create_volume")
        request = create_volume("v", accessibility_requirements=places("n-1"))
        running = asyncio.ensure_future(cluster.controller.CreateVolume(request))
        await pause.reached.wait()
        await cluster.channels.close_removed()
        assert relay.connections
        del cluster.discovery.places["n-1"]
        await cluster.channels.close_removed()
        assert relay.connections
        pause.release()
        assert (await running).volume.volume_id.startswith("n-1:")
        async with asyncio.timeout(HUNG):
            while relay.connections:
                await asyncio.sleep(0.01)

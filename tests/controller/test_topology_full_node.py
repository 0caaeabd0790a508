"""A restore whose source's pool is full: how often CreateVolume is called, counted at the agent."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from support.cluster_rig import Cluster
from support.fake_api import FakeApi
from support.rpc_rig import CODE, create_volume, from_snapshot, places
from support.sizes import GIB
from support.topology_objects import NS, claim
from support.topology_rig import TopologyRig

from csi_driver._pb import csi_pb2 as C
from csi_driver.kube.resources import PVCS, SNAPSHOT_CONTENTS
from csi_driver.rpc.clients.agent_api import AgentApi


class Restoring(TopologyRig):
    """Real agents and a router; the provisioner is played: a pin is a call, and RESOURCE_EXHAUSTED takes the pin away."""

    def __init__(self, fake: FakeApi, cluster: Cluster) -> None:
        super().__init__(fake, AgentApi(cluster.channels))
        self.cluster = cluster
        for owner in cluster.agents:
            self.node(owner)

    async def make(self, name: str, size: int, **more: object) -> str:
        asked = C.CapacityRange(required_bytes=size)
        request = create_volume(name, capacity_range=asked, accessibility_requirements=places("n-1"), **more)
        return str((await self.cluster.controller.CreateVolume(request)).volume.volume_id)

    async def prepare(self) -> None:
        """A disk on n-1, its snapshot, and a claim that is to be made of it, pinned by the webhook."""
        source = await self.make("source", 4 * GIB)
        cut = await self.cluster.controller.CreateSnapshot(C.CreateSnapshotRequest(name="s", source_volume_id=source))
        self.handle = cut.snapshot.snapshot_id
        self.snapshot("s", "n-1")
        self.fake.change(SNAPSHOT_CONTENTS, "content-s", {"status": {"snapshotHandle": self.handle}})
        self.put(claim("r", snapshot="s", size="4Gi", selected="n-1"))
        self.before = self.cluster.agents["n-1"].asked("CreateVolume")

    @property
    def calls(self) -> int:
        return self.cluster.agents["n-1"].asked("CreateVolume") - self.before

    async def run(self, seconds: int) -> None:
        """So much time, in looks of two seconds, with a provisioner that acts at once."""
        await self.reconcile(0)
        for _ in range(seconds // 2):
            if self.selected("r") is not None and await self.provision():
                return
            await self.reconcile(2)

    async def provision(self) -> bool:
        try:
            await self.make("pvc-r", 4 * GIB, volume_content_source=from_snapshot(self.handle))
        except grpc.aio.AioRpcError as error:
            if error.code() is not CODE.RESOURCE_EXHAUSTED:
                raise
            self.unselect("r")
            await self.reconcile(0)
            return False
        self.fake.change(PVCS, "r", {"spec": {"volumeName": "pvc-r"}, "status": {"phase": "Bound"}}, NS)
        return True


@pytest.fixture
async def restoring(fake: FakeApi) -> AsyncIterator[Restoring]:
    with tempfile.TemporaryDirectory(prefix="tm-") as directory:
        async with Cluster(Path(directory)) as cluster:
            made = Restoring(fake, cluster)
            await made.begin()
            await made.prepare()
            yield made
            await made.stop()


async def test_a_full_pool_is_asked_once(restoring: Restoring) -> None:
    """In an hour. The claim says why, and is made as soon as there is room."""
    filler = await restoring.make("filler", 122 * GIB)
    restoring.before = restoring.cluster.agents["n-1"].asked("CreateVolume")
    await restoring.run(3600)
    assert restoring.calls == 1
    assert set(restoring.reasons("PersistentVolumeClaim r")) == {"SourceNodeFull"}
    assert "node n-1, which has a capacity of 2147483648 bytes" in restoring.seen[0][2]
    await restoring.cluster.controller.DeleteVolume(C.DeleteVolumeRequest(volume_id=filler))
    await restoring.run(10)
    assert restoring.calls == 2
    assert restoring.fake.get(PVCS, "r", NS)["status"]["phase"] == "Bound"  # type: ignore[index]
    assert restoring.cluster.agents["n-10"].asked("CreateVolume") == 0


async def test_a_pool_that_promises_room_and_has_none(restoring: Restoring) -> None:
    """In an hour: at once, and then after 1, 2, 4 ... 256 s and every five minutes, on a reconciliation each two seconds."""
    restoring.cluster.agents["n-1"].faults.fail("create_volume", OSError(errno.ENOSPC, "full"), times=None)
    await restoring.run(3600)
    assert 15 <= restoring.calls <= 21
    restoring.cluster.agents["n-1"].faults.clear()
    await restoring.run(302)
    assert restoring.fake.get(PVCS, "r", NS)["status"]["phase"] == "Bound"  # type: ignore[index]

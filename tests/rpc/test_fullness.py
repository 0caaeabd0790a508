"""Pools that have run full, as an agent tells of them and as a controller asks for them."""

from __future__ import annotations

import os

import pytest
from support.cluster_rig import Cluster
from support.sizes import GIB, MIB
from test_router import volume

from csi_driver._pb import tidemark_pb2 as T
from csi_driver.domain.capacity import Limit, Space
from csi_driver.rpc.clients.agent_api import AgentApi
from csi_driver.rpc.clients.cli_client import PoolLimit
from csi_driver.rpc.clients.cli_messages import pool_space
from csi_driver.service.agents import FullPool


async def answering(space: Space) -> Space:
    return space


async def test_full_pools_of_a_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    port = AgentApi(cluster.channels)
    assert await port.full_pools() == {"n-1": [], "n-10": []}
    agent = cluster.agents["n-1"]
    await volume(cluster, "v", "n-1", capacity_range={"required_bytes": 8 * MIB})
    (made,) = agent.pool.volumes.values()
    fd = os.open(await agent.backend.access.attach(made), os.O_RDWR)
    os.pwrite(fd, os.urandom(MIB), 0)
    os.close(fd)
    monkeypatch.setattr(agent.backend, "space", lambda: answering(Space(64 * GIB, MIB)))
    assert (await port.full_pools())["n-1"] == [FullPool("n-1", "default", 64 * GIB, MIB)], "not counted yet"
    await agent.fullness.check(agent.pool)
    assert await port.full_pools() == {
        "n-1": [FullPool("n-1", "default", 64 * GIB, MIB, ("volume v (1 MiB)",))],
        "n-10": [],
    }
    pools = {pool.owner: pool for pool in (await cluster.tidemark.ListPools(T.ListPoolsRequest())).pools}
    assert (pools["n-1"].full, pools["n-10"].full) == (True, False)
    (freed,) = pools["n-1"].would_free
    assert (freed.id, freed.name, freed.kind, freed.exclusive_bytes) == (str(made.id), "v", T.TreeNode.VOLUME, MIB)
    await cluster.agents["n-10"].server.stop(0)
    assert set(await port.full_pools()) == {"n-1"}, "whoever does not answer is not known to have room"


async def test_what_a_pool_can_run_out_of_beside_its_data_reaches_the_command_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = Limit("thin metadata", 90 * MIB, 100 * MIB, 75 * MIB, "tidemark pool grow")
    monkeypatch.setattr(
        cluster.agents["n-1"].pool.backend, "space", lambda: answering(Space(64 * GIB, 32 * GIB, (limit,)))
    )
    pools = {pool.owner: pool_space(pool) for pool in (await cluster.tidemark.ListPools(T.ListPoolsRequest())).pools}
    assert pools["n-10"].limits == ()
    assert pools["n-1"].available == 0
    assert pools["n-1"].limits == (PoolLimit("thin metadata", 90 * MIB, 100 * MIB, 75 * MIB, "tidemark pool grow"),)

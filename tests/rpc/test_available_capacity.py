"""The capacity of a node, as its agent reports it."""

from __future__ import annotations

import pytest
from support.cluster_rig import Cluster
from support.rpc_rig import GIB
from test_router import volume

from csi_driver.domain.errors import Unavailable
from csi_driver.rpc.clients.agent_api import AgentApi


async def test_the_available_capacity_of_a_node(cluster: Cluster) -> None:
    agents = AgentApi(cluster.channels)
    before = await agents.available_capacity("n-1", "default", {"csi.storage.k8s.io/fstype": "xfs"})
    assert before == 128 * GIB, "twice what the pool has"
    await volume(cluster, "v", "n-1", capacity_range={"required_bytes": 8 * GIB})
    assert await agents.available_capacity("n-1", "", {}) == 120 * GIB
    assert await agents.available_capacity("n-10", "", {}) == 128 * GIB
    assert await agents.available_capacity("n-1", "default", {"pool": "another"}) == 0, "the class's own pool counts"
    await cluster.agents["n-1"].server.stop(0)
    with pytest.raises(Unavailable, match="n-1"):
        await agents.available_capacity("n-1", "", {})

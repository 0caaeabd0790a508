"""Which agent serves a call: that of the node for a pool of one node, one that reports it for a shared pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from csi_driver.domain.errors import Damaged, Unavailable, Unsupported
from csi_driver.domain.ids import ANY_OWNER, PoolRef
from csi_driver.service.agent_routing import AgentRouter, Purpose
from csi_driver.service.agents import AgentPool

LOCAL = PoolRef("n-2", "default")
SHARED = PoolRef(ANY_OWNER, "rbd")


class Agents:
    """Reports what a test says."""

    def __init__(self, **pools: Sequence[AgentPool]) -> None:
        self.pools = pools
        self.asked = 0

    async def list_pools(self) -> Mapping[str, Sequence[AgentPool]]:
        self.asked += 1
        return self.pools


@pytest.mark.parametrize("purpose", list(Purpose))
async def test_a_pool_of_one_node_is_served_there_and_nobody_is_asked(purpose: Purpose) -> None:
    agents = Agents()
    assert await AgentRouter(agents).agent_for(LOCAL, purpose, "n-2:default:" + "0" * 32) == "n-2"
    assert agents.asked == 0


async def test_a_shared_pool_is_served_by_an_agent_that_reports_it() -> None:
    pools = [AgentPool(SHARED, "u")]
    other = [AgentPool(PoolRef("n1", "rbd"), "v")]
    router = AgentRouter(Agents(n3=pools, n1=other, n2=pools))
    assert await router.agent_for(SHARED, Purpose.RECORD) == "n2"


async def test_a_shared_pool_that_no_agent_reports() -> None:
    with pytest.raises(Unavailable, match="no agent reports the shared pool rbd"):
        await AgentRouter(Agents(n1=[])).agent_for(SHARED, Purpose.RECORD)


async def test_two_pools_of_one_name_are_not_taken_for_one() -> None:
    agents = Agents(n1=[AgentPool(SHARED, "u")], n2=[AgentPool(SHARED, "v")])
    with pytest.raises(Damaged, match="u by n1, v by n2"):
        await AgentRouter(agents).agent_for(SHARED, Purpose.RECORD)


async def test_a_call_that_needs_the_node_of_a_volume_is_refused_in_a_shared_pool() -> None:
    """On any other node a freeze would find nothing to freeze, and the snapshot would not be consistent."""
    with pytest.raises(Unsupported, match="where its volumes are staged"):
        await AgentRouter(Agents(n1=[AgentPool(SHARED, "u")])).agent_for(SHARED, Purpose.NODE)

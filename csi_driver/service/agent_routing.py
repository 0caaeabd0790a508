"""Which agent serves a call: decided by the pool, by what the call does, and by the volume."""

from enum import Enum, auto

from csi_driver.domain.errors import Damaged, Unavailable, Unsupported
from csi_driver.domain.ids import PoolRef
from csi_driver.service.agents import PoolLister


class Purpose(Enum):
    """What a call does, as far as it matters which agent serves it."""

    RECORD = auto()
    """Reads or changes what the pool records: every agent that has the pool can do that."""
    NODE = auto()
    """Freezes, grows or looks for users of a volume: only the kernel of the node where it is staged can do that."""


class AgentRouter:
    """Chooses the agent of each call; keeps nothing between two calls."""

    def __init__(self, agents: PoolLister) -> None:
        self._agents = agents

    async def agent_for(self, pool: PoolRef, purpose: Purpose, volume_id: str = "") -> str:
        """Return the owner whose agent serves a call about a pool, or about a volume in it.

        A pool of one node is served by that node's agent, and nothing is asked. A shared pool is served by the first agent
        that reports it. Raises Unavailable if no agent does; Damaged if agents report different pools of that name; Unsupported
        for a call that needs the node of a volume in a shared pool: no agent reports yet where such a volume is staged.
        """
        if not pool.shared:
            return pool.owner
        if purpose is Purpose.NODE:
            raise Unsupported(
                f"{volume_id or pool} is in a shared pool, and this controller does not know where its volumes are staged"
            )
        uuids = {
            agent: agent_pool.uuid
            for agent, agent_pools in (await self._agents.list_pools()).items()
            for agent_pool in agent_pools
            if agent_pool.ref == pool
        }
        if not uuids:
            raise Unavailable(
                f"no agent reports the shared pool {pool.name}: look at the agents' pods and their --pool"
            )
        if len(set(uuids.values())) > 1:
            reported = ", ".join(f"{uuid} by {agent}" for agent, uuid in sorted(uuids.items()))
            raise Damaged(f"agents report different pools as {pool.name} ({reported}): correct their --pool")
        return min(uuids)

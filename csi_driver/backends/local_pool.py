"""What a backend says of agents beside its own where there are none: the pool of one node is this agent's alone."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from csi_driver.backends.base import Changes, VolumeAccess
from csi_driver.domain.model import Volume, VolumeUsage


class LocalPool:
    """The part of Backend that is about other agents, for a pool that only this agent changes. Locks of the agent suffice."""

    access: VolumeAccess

    @asynccontextmanager
    async def guard(
        self,
        exclusive: Collection[str],  # noqa: ARG002
        shared: Collection[str],  # noqa: ARG002
        existence: Collection[str],  # noqa: ARG002
    ) -> AsyncIterator[Changes | None]:
        """See Backend. Nobody has to be kept away, and the index is the truth."""
        yield None

    async def users(self, volume: Volume) -> VolumeUsage:
        """See Backend. The kernel of this node knows all of them."""
        return await self.access.use(volume)

    async def refresh(self) -> Changes | None:
        """See Backend."""
        return None

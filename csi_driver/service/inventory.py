"""The volumes that a cluster's agents have. A port: it is served over the agents."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Inventory(Protocol):
    """Read from time to time, never in the middle of a call."""

    async def volumes(self) -> Mapping[str, Sequence[str]]:
        """Ids by owner, of those owners alone whose agent answered: whoever is left out may have anything."""
        ...

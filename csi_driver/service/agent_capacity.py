"""How much room a node has for new volumes of a kind. A port: in a cluster the agents answer it."""

from collections.abc import Mapping
from typing import Protocol


class Rooms(Protocol):
    """Asked anew each time: room comes and goes."""

    async def room(self, owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        """Bytes that a new volume may have, for a class with these parameters, in `pool` where the class names none.

        Raises Unavailable where the agent does not answer.
        """
        ...

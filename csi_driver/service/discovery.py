"""Where the agents of a cluster are. A port: the Kubernetes API serves it in a cluster, a fixed list elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AgentEndpoint:
    """One node that has, or should have, an agent."""

    owner: str
    address: str
    """`host:port` of the agent's mutual-TLS listener; empty while it has none."""
    ready: bool = True
    """Whether the cluster takes the node to be alive. Reachability of the agent is found by calling it, not here."""


class Discovery(Protocol):
    """Answers from what is known now; nothing here waits."""

    def place(self, owner: str) -> AgentEndpoint | None:
        """The place of an owner, or None where the cluster knows no such node."""
        ...

    def owners(self) -> list[str]:
        """All owners that have an agent or should have one, in no order. One that is left out cannot be missed."""
        ...

    def known(self) -> bool:
        """Whether the list was read at least once: before that, a missing owner means nothing."""
        ...

    def forgotten(self, owner: str) -> bool:
        """Whether a person has said that this node, with all that was on it, will not come back; and it has not."""
        ...


class FixedDiscovery:
    """Agents by a list that never changes: for a rack without Kubernetes, and for tests."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._places = {owner: AgentEndpoint(owner, address) for owner, address in addresses.items()}

    def place(self, owner: str) -> AgentEndpoint | None:
        """See Discovery."""
        return self._places.get(owner)

    def owners(self) -> list[str]:
        """See Discovery."""
        return list(self._places)

    def known(self) -> bool:
        """See Discovery."""
        return True

    def forgotten(self, owner: str) -> bool:  # noqa: ARG002
        """See Discovery. Whoever keeps the list leaves such a node out of it."""
        return False

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
    """Whether the cluster reports the node as ready. Only a call tells whether the agent is reachable."""


class Discovery(Protocol):
    """Answers from memory; nothing here waits."""

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        """Return the endpoint of an owner's agent, or None if the cluster has no such node."""
        ...

    def owners(self) -> list[str]:
        """Return all owners that have an agent or should have one, in no order. No other owner can have anything."""
        ...

    def has_synced(self) -> bool:
        """Whether the list was read at least once: before that, a missing owner means nothing."""
        ...

    def is_decommissioned(self, owner: str) -> bool:
        """Whether a person has decommissioned the node, so that all that was on it is lost; and it has not come back."""
        ...


class FixedDiscovery:
    """Agents by a list that never changes: for a rack without Kubernetes, and for tests."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._endpoints = {owner: AgentEndpoint(owner, address) for owner, address in addresses.items()}

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        """See Discovery."""
        return self._endpoints.get(owner)

    def owners(self) -> list[str]:
        """See Discovery."""
        return list(self._endpoints)

    def has_synced(self) -> bool:
        """See Discovery."""
        return True

    def is_decommissioned(self, owner: str) -> bool:  # noqa: ARG002
        """See Discovery. A decommissioned node is taken out of the list."""
        return False

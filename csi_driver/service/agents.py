"""What the controller asks of the agents: one port for each use, so that a caller and its fake need no more than they use.

`AgentApi` is all of them together. rpc/clients/agent_api.py serves it over the agents' gRPC services.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from csi_driver.domain.ids import PoolRef
from csi_driver.domain.model import CompletedRollback, Hold
from csi_driver.service.rollbacks import RollbackRequest


@dataclass(frozen=True, slots=True)
class VolumeDescription:
    """A volume as its agent records it, and its use as the kernel of its node shows it.

    `snapshots` are the volume's own: the time of each (Unix nanoseconds by the node's clock) by id. The agent finds them by
    the volume's uid, so another volume's are never among them, whatever that is called. `used_by` are the paths where the
    volume is staged or published. `hold` is None unless a hold stands now. `rollbacks` are the last ones, oldest first.
    """

    id: str
    uid: str
    snapshots: Mapping[str, int] = field(default_factory=dict)
    used_by: tuple[str, ...] = ()
    hold: Hold | None = None
    rollbacks: tuple[CompletedRollback, ...] = ()

    def completed_rollback(self, name: str) -> CompletedRollback | None:
        """Return the rollback of that name, or None if it was not completed."""
        return next((rollback for rollback in self.rollbacks if rollback.name == name), None)


@dataclass(frozen=True, slots=True)
class FullPool:
    """A pool that has run full; sizes in bytes. `would_free` names what deleting would free most."""

    owner: str
    name: str
    total: int
    free: int
    would_free: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentPool:
    """A pool that an agent has. A shared pool is one pool only if all its agents report the same uuid."""

    ref: PoolRef
    uuid: str


class RollbackAgents(Protocol):
    """What a rollback needs of the agent that has its volume. Every call may be repeated.

    Each raises the refusals of domain.errors: Unavailable if the agent does not answer, Busy if the same call may succeed
    later, NotFound for an id that the agent does not know.
    """

    async def describe_volume(self, volume_id: str) -> VolumeDescription:
        """Return what the agent knows of a volume. Raises NotFound, Unavailable.

        A volume is also not found if its node was decommissioned and is not in the cluster.
        """
        ...

    async def hold(self, volume_id: str, holder: str) -> None:
        """Keep a volume out of use for five minutes, or for five more. Raises Precondition while it is used or held."""
        ...

    async def release(self, volume_id: str, holder: str) -> None:
        """Give a hold back; succeeds if there is none, or no volume. Raises Precondition if another holder has it."""
        ...

    async def roll_back(self, request: RollbackRequest) -> None:
        """Roll a volume back to one of its own snapshots, or find that the rollback of that name is completed.

        Raises Precondition if the hold has lapsed or the safety snapshot is older than it, InvalidRequest for another
        volume's snapshot. After Busy, Unavailable and Damaged the rollback may be completed all the same: describe the
        volume.
        """
        ...


class VolumeLister(Protocol):
    """Which volumes the agents have."""

    async def list_volumes(self) -> Mapping[str, Sequence[str]]:
        """Return ids by owner, without the owners whose agent did not answer: those may have anything."""
        ...


class AgentCapacity(Protocol):
    """How much an agent can still reserve."""

    async def available_capacity(self, owner: str, pool: str, parameters: Mapping[str, str]) -> int:
        """Return the bytes that new volumes of a class with these parameters may have, as of now.

        `pool` is used if the parameters name none. Raises Unavailable if the agent does not answer.
        """
        ...


class PoolLister(Protocol):
    """Which pools the agents have."""

    async def list_pools(self) -> Mapping[str, Sequence[AgentPool]]:
        """Return the pools by agent, without the agents that did not answer."""
        ...


class FullPoolLister(Protocol):
    """Which pools have run full."""

    async def full_pools(self) -> Mapping[str, Sequence[FullPool]]:
        """Return full pools by owner, without the owners whose agent did not answer; none for an owner without any."""
        ...


class AgentHealth(Protocol):
    """Which agents answer."""

    async def reachable_agents(self) -> Mapping[str, bool]:
        """Return whether the agent of each owner answers now; empty until the list of agents was read."""
        ...

    async def close_removed(self) -> None:
        """Close the connections to agents on nodes that the cluster no longer has."""
        ...


class CertificateReports(Protocol):
    """Which certificates the agents use."""

    async def loaded_certificates(self) -> Mapping[str, str]:
        """Return the fingerprint that each agent reports, by owner; empty text if an agent does not answer.

        Agents on nodes that are not ready are left out: their files are written again before they run again, and a node that
        is away for a month must not delay a rotation for as long. Raises Unavailable until the list of agents was read.
        """
        ...


class AgentApi(
    RollbackAgents, VolumeLister, AgentCapacity, PoolLister, FullPoolLister, AgentHealth, CertificateReports, Protocol
):
    """All of it."""

"""Decides when a pending PVC gets the node of its data source, and which event says why it does not. Pure."""

from dataclasses import dataclass

MAX_BACKOFF_SECONDS = 300.0
"""Between two selections for one PVC. The provisioner removes the annotation at each RESOURCE_EXHAUSTED and has no backoff
of its own: setting it again at once would be a hot loop."""


def backoff(attempts: int, longest: float) -> float:
    """Return the seconds to wait after so many attempts: 1, 2, 4 and so on, up to `longest`. Some PVCs wait for weeks."""
    return min(2.0 ** min(max(attempts, 1) - 1, 30), longest)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node."""

    node: str
    ready: bool = True
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often this process has selected a node for a PVC, and when last, by a clock in seconds."""

    count: int = 0
    last: float = 0.0

    @property
    def next(self) -> float:
        """When a node may be selected again: after 1 s, 2 s, 4 s, and so on up to 5 minutes."""
        return self.last + backoff(self.count, MAX_BACKOFF_SECONDS) if self.count else float("-inf")


@dataclass(frozen=True, slots=True)
class AgentUnreachable:
    """The agent does not answer."""


@dataclass(frozen=True, slots=True)
class PendingClaim:
    """A PVC without a volume whose data source is on a node, as observed."""

    source: str
    """For messages: VolumeSnapshot NAME."""
    owner: str
    source_node: NodeState | None
    """None: the cluster has no node for this owner."""
    selected_node: str | None
    requested: int
    """Bytes."""
    capacity: int | AgentUnreachable | None
    """Bytes that the node can still provision; None: not queried."""


@dataclass(frozen=True, slots=True)
class NoAction:
    """Do nothing now. `again_at`: when to plan again, by the clock; None: not before something changes."""

    again_at: float | None = None


@dataclass(frozen=True, slots=True)
class QueryCapacity:
    """Query the capacity of the node's agent, and plan again."""


@dataclass(frozen=True, slots=True)
class SelectNode:
    """Select this node for the PVC."""

    node: str


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Say why the PVC waits."""

    reason: str
    message: str


Action = NoAction | QueryCapacity | SelectNode | EmitEvent


def next_action(pvc: PendingClaim, attempts: Attempts, now: float) -> Action:
    """Return the next action for one PVC.

    A node is selected if none is, if the provisioner has removed it, and if another node was selected: the volume is made
    on the node of its source in any case, and the scheduler must know before it places the pod's other PVCs.
    """
    source_is_on = f"{pvc.source}, the data source of this PVC, is on node"
    if pvc.source_node is None:
        return EmitEvent(
            "SourceNodeGone",
            f"{source_is_on} {pvc.owner}, which does not exist in the cluster: the volume can be made when it is back",
        )
    if not pvc.source_node.ready:
        return EmitEvent(
            "SourceNodeNotReady",
            f"{source_is_on} {pvc.source_node.node}, which is not ready: the volume is made automatically when it is",
        )
    if pvc.selected_node == pvc.source_node.node:
        return NoAction()
    if now < attempts.next:
        return NoAction(attempts.next)
    if pvc.capacity is None:
        return QueryCapacity()
    if isinstance(pvc.capacity, AgentUnreachable):
        return EmitEvent(
            "SourceAgentUnreachable",
            f"{source_is_on} {pvc.source_node.node}, whose agent does not answer: check the agent's pod on that node; the "
            "volume is made automatically when the agent is back",
        )
    if pvc.capacity < pvc.requested:
        return EmitEvent(
            "SourceNodeFull",
            f"{source_is_on} {pvc.source_node.node}, which has a capacity of {pvc.capacity} bytes for {pvc.requested} "
            "requested: delete volumes or snapshots there, or enlarge the pool",
        )
    return SelectNode(pvc.source_node.node)

"""When a claim that waits is led to the node of its source, and what its owner is told where it cannot be. Pure."""

from dataclasses import dataclass

LONGEST_PAUSE = 300.0
"""Seconds between two pins of one claim. The provisioner takes a pin away at each RESOURCE_EXHAUSTED and has no back-off of
its own there: putting it back at once would be a hot loop."""


def backoff(tries: int, longest: float) -> float:
    """Seconds after so many tries: 1, 2, 4 and so on, up to `longest`. Some claims wait for weeks."""
    return min(2.0 ** min(max(tries, 1) - 1, 30), longest)


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node."""

    node: str
    ready: bool = True
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a claim was pinned here, and when last, by a clock in seconds."""

    pins: int = 0
    last: float = 0.0

    @property
    def next(self) -> float:
        """When it may be pinned again: after 1 s, 2 s, 4 s, and so on to 5 minutes."""
        return self.last + backoff(self.pins, LONGEST_PAUSE) if self.pins else float("-inf")


@dataclass(frozen=True, slots=True)
class AgentUnreachable:
    """The agent does not answer."""


@dataclass(frozen=True, slots=True)
class PendingClaim:
    """A claim without a volume whose source lies on a node, as it is seen now."""

    source: str
    """In words: VolumeSnapshot NAME."""
    owner: str
    site: NodeState | None
    """None: the cluster has no node that is this owner."""
    selected: str | None
    wanted: int
    """Bytes asked for."""
    room: int | AgentUnreachable | None
    """Bytes that the node has for it; None: it was not asked."""


@dataclass(frozen=True, slots=True)
class NoAction:
    """Nothing to do now."""


@dataclass(frozen=True, slots=True)
class QueryCapacity:
    """Ask the node's agent for its room, and decide again."""


@dataclass(frozen=True, slots=True)
class SelectNode:
    """Select this node for the claim."""

    node: str


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Tell why it waits."""

    reason: str
    words: str


Verdict = NoAction | QueryCapacity | SelectNode | EmitEvent


def decide(claim: PendingClaim, tries: Attempts, now: float) -> Verdict:
    """A pin is put where it is missing, where it was taken away, and where another node was selected in ignorance: the
    volume is made at its source all the same, and the scheduler must know before it settles the pod's other claims.
    """
    lies = f"{claim.source}, of which this claim is made, lies on node"
    if claim.site is None:
        return EmitEvent(
            "SourceNodeGone",
            f"{lies} {claim.owner}, and the cluster has no such node: the disk can be made when it is back",
        )
    if not claim.site.ready:
        return EmitEvent(
            "SourceNodeNotReady",
            f"{lies} {claim.site.node}, which is not ready: the disk is made by itself when the node is back",
        )
    if claim.selected == claim.site.node or now < tries.next:
        return NoAction()
    if claim.room is None:
        return QueryCapacity()
    if isinstance(claim.room, AgentUnreachable):
        return EmitEvent(
            "SourceAgentSilent",
            f"{lies} {claim.site.node}, whose agent does not answer: look at the agent's pod there; the disk is made by "
            "itself when it is back",
        )
    if claim.room < claim.wanted:
        return EmitEvent(
            "SourceNodeFull",
            f"{lies} {claim.site.node}, which has room for {claim.room} bytes, and {claim.wanted} are asked for: delete "
            "disks or snapshots there, or enlarge the pool",
        )
    return SelectNode(claim.site.node)

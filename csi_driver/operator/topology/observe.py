"""What the topology reconcilers observe: objects from informers, and what is remembered of pending PVCs."""

from dataclasses import dataclass, field

from csi_driver.kube.informer import Informer
from csi_driver.operator.agents.node_lookup import node_for_owner
from csi_driver.operator.topology.data_source import SourceLocation
from csi_driver.operator.topology.planner import Attempts, NodeState

Key = tuple[str, str]
"""Namespace and name of a PVC or a pod."""

RESYNC_SECONDS = 300.0
"""At the latest after which a pending PVC or its pod is reconciled again, for a change that no watch showed."""


@dataclass(frozen=True, slots=True)
class Informers:
    """PVCs and pods as trim.py trims them, nodes and PVs as agents/discovery.py does, storage classes whole."""

    pvcs: Informer
    pods: Informer
    nodes: Informer
    pvs: Informer
    storage_classes: Informer

    async def wait_synced(self) -> None:
        """Wait until each has read all its objects once."""
        for informer in (self.pvcs, self.pods, self.nodes, self.pvs, self.storage_classes):
            await informer.wait_synced()

    def node_state(self, owner: str) -> NodeState | None:
        """Return the node of an owner; None if the cluster has none."""
        node = node_for_owner(self.nodes, owner)
        return NodeState(node["metadata"]["name"], node["ready"], node["cordoned"]) if node is not None else None


@dataclass(slots=True)
class PvcState:
    """What is remembered of one PVC while it is pending; a new process does without it. Times are the clock's seconds."""

    uid: str
    location: SourceLocation | None = None
    attempts: Attempts = field(default_factory=Attempts)
    searches: int = 0
    search_at: float = float("-inf")


class PvcStates:
    """The states of all pending PVCs."""

    def __init__(self) -> None:
        self._states: dict[Key, PvcState] = {}

    def of(self, key: Key, uid: str) -> PvcState:
        """Return the state of this very PVC: one that was created again under the name is another."""
        if key not in self._states or self._states[key].uid != uid:
            self._states[key] = PvcState(uid)
        return self._states[key]

    def location(self, key: Key, uid: str) -> SourceLocation | None:
        """Return where the data source of a pending PVC is, if that is known already."""
        state = self._states.get(key)
        return state.location if state is not None and state.uid == uid else None

    def forget(self, key: Key) -> None:
        """Forget a PVC that is no longer pending."""
        self._states.pop(key, None)

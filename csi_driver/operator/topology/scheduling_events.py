"""Events for pods that cannot be scheduled because the volumes of their PVCs are on other nodes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from csi_driver.operator.topology.planner import NodeState

GRACE_PERIOD = timedelta(seconds=10)
"""For which a pod may be unschedulable without an event: every pod with a new volume is, for a moment."""


@dataclass(frozen=True, slots=True)
class UnscheduledPod:
    """A pod without a node."""

    name: str
    scheduler_message: str
    """Why, in the scheduler's words; empty if it has not tried."""
    since: datetime | None


@dataclass(frozen=True, slots=True)
class NodeBoundClaim:
    """A PVC whose volume is, or will be made, on one node."""

    pvc: str
    node: NodeState
    source: str
    """Its data source, for messages; empty if it has none."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event on a PVC, by its name, or on the pod if that is empty."""

    pvc: str
    reason: str
    message: str


def events_for(pod: UnscheduledPod, pvcs: Sequence[NodeBoundClaim], now: datetime) -> list[PodEvent]:
    """Return the events for one pod. PVCs without a data source get none, unless they conflict with others: the
    scheduler's own events explain the rest.
    """
    if len({pvc.node.node for pvc in pvcs}) > 1:
        nodes = ", ".join(f"PVC {pvc.pvc} on node {pvc.node.node}" for pvc in pvcs)
        message = (
            f"pod {pod.name} uses volumes on different nodes ({nodes}), and can run on one only: use PVCs of one node, or "
            "clone one of the volumes"
        )
        return [PodEvent(name, "SourceNodeConflict", message) for name in ("", *(pvc.pvc for pvc in pvcs))]
    events = []
    for pvc in pvcs:
        if not pvc.source:
            continue
        node = pvc.node.node
        bound_to = f"pod {pod.name} can only run on node {node}, because {pvc.source} is there"
        if not pvc.node.ready:
            message = f"{bound_to}; the node is not ready, and the pod runs when it is"
            events.append(PodEvent(pvc.pvc, "SourceNodeNotReady", message))
        elif pvc.node.cordoned:
            message = f"{bound_to}; the node is cordoned: kubectl uncordon {node}"
            events.append(PodEvent(pvc.pvc, "SourceNodeCordoned", message))
        elif pod.scheduler_message and pod.since is not None and now - pod.since >= GRACE_PERIOD:
            message = f"{bound_to}; the scheduler says: {pod.scheduler_message}"
            events.append(PodEvent(pvc.pvc, "SourceNodeExcluded", message))
    return events


def grace_left(pod: UnscheduledPod, now: datetime) -> float:
    """Return the seconds until the grace period of an unschedulable pod has passed; 0 if it has, or if there is none."""
    if pod.since is None:
        return 0.0
    return max(0.0, (pod.since + GRACE_PERIOD - now).total_seconds())

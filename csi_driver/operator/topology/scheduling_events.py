"""Pods that cannot run, because the disks of their claims lie where the pod cannot be: whom to tell what. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from csi_driver.operator.topology.planner import NodeState

PATIENCE = timedelta(seconds=10)
"""For which a pod may be unschedulable and nobody is told: every pod with a new disk is, for a moment."""


@dataclass(frozen=True, slots=True)
class UnscheduledPod:
    """A pod without a node."""

    name: str
    says: str
    """Why, in the scheduler's words; empty where it has not tried."""
    since: datetime | None


@dataclass(frozen=True, slots=True)
class NodeBoundClaim:
    """A claim whose disk lies, or will be made, on one node."""

    claim: str
    site: NodeState
    source: str
    """What it was made of, in words; empty: of nothing."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """An event: on a claim, by its name, or on the pod where that is empty."""

    claim: str
    reason: str
    words: str


def events_for(pod: UnscheduledPod, anchors: Sequence[NodeBoundClaim], now: datetime) -> list[PodEvent]:
    """What is to be told. Nothing of claims that have no source and stand in nobody's way: the scheduler says enough."""
    if len({anchor.site.node for anchor in anchors}) > 1:
        where = ", ".join(f"claim {anchor.claim} on node {anchor.site.node}" for anchor in anchors)
        words = (
            f"pod {pod.name} uses disks that lie on different nodes ({where}), and can run on one only: use claims of one "
            "node, or copy one of the disks"
        )
        return [PodEvent(claim, "SourceNodeConflict", words) for claim in ("", *(anchor.claim for anchor in anchors))]
    led = [anchor for anchor in anchors if anchor.source]
    found = []
    for anchor in led:
        lies = f"pod {pod.name} can only run on node {anchor.site.node}, where {anchor.source} lies"
        if not anchor.site.ready:
            found.append(
                PodEvent(
                    anchor.claim, "SourceNodeNotReady", f"{lies}, and which is not ready: it runs when that is back"
                )
            )
        elif anchor.site.cordoned:
            words = f"{lies}, and which is cordoned, so unschedulable: kubectl uncordon {anchor.site.node}"
            found.append(PodEvent(anchor.claim, "SourceNodeCordoned", words))
        elif pod.says and pod.since is not None and now - pod.since >= PATIENCE:
            found.append(PodEvent(anchor.claim, "SourceNodeExcluded", f"{lies}; the scheduler says: {pod.says}"))
    return found

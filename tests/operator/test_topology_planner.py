"""When a pending PVC gets the node of its source, and which events explain unschedulable pods."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from csi_driver.operator.topology.planner import (
    AgentUnreachable,
    Attempts,
    EmitEvent,
    NoAction,
    NodeState,
    PendingClaim,
    QueryCapacity,
    SelectNode,
    next_action,
)
from csi_driver.operator.topology.scheduling_events import NodeBoundClaim, PodEvent, UnscheduledPod, events_for

WAITING = PendingClaim("VolumeSnapshot s", "n-1", NodeState("n-1"), None, 10, None)


def event(claim: PendingClaim, attempts: Attempts | None = None, now: float = 0.0) -> EmitEvent:
    action = next_action(claim, attempts or Attempts(), now)
    assert isinstance(action, EmitEvent)
    return action


@pytest.mark.parametrize("selected", [None, "n-2"])
def test_a_node_with_capacity_is_selected(selected: str | None) -> None:
    """Where nothing is selected, and where another node was."""
    claim = replace(WAITING, selected_node=selected)
    assert next_action(claim, Attempts(), 0) == QueryCapacity()
    assert next_action(replace(claim, capacity=10), Attempts(), 0) == SelectNode("n-1")
    assert event(replace(claim, capacity=9)).reason == "SourceNodeFull"
    assert event(replace(claim, capacity=AgentUnreachable())).reason == "SourceAgentUnreachable"


def test_a_selected_node_is_left() -> None:
    assert next_action(replace(WAITING, selected_node="n-1"), Attempts(), 0) == NoAction()


def test_the_node_and_the_reason_are_told() -> None:
    away = event(replace(WAITING, source_node=NodeState("n-1", ready=False), selected_node="n-1"))
    assert away.reason == "SourceNodeNotReady"
    assert away.message == (
        "VolumeSnapshot s, the data source of this PVC, is on node n-1, which is not ready: the volume is made automatically "
        "when it is"
    )
    assert event(replace(WAITING, source_node=None)).reason == "SourceNodeGone"
    assert "a capacity of 9 bytes for 10 requested" in event(replace(WAITING, capacity=9)).message


def test_a_cordoned_node_can_still_make_the_volume() -> None:
    assert next_action(
        replace(WAITING, source_node=NodeState("n-1", cordoned=True), capacity=10), Attempts(), 0
    ) == SelectNode("n-1")


def test_selections_come_after_longer_and_longer_pauses() -> None:
    assert Attempts(5000, 1000.0).next == 1300.0, "after days"
    pauses = [Attempts(count, 1000.0).next - 1000.0 for count in range(1, 14)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    claim = replace(WAITING, capacity=10)
    assert next_action(claim, Attempts(3, 1000.0), 1003.9) == NoAction(again_at=1004.0)
    assert next_action(claim, Attempts(3, 1000.0), 1004.0) == SelectNode("n-1")


NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
POD = UnscheduledPod("p", "0/3 nodes are available: 3 node(s) didn't match", NOW - timedelta(seconds=30))
RESTORED = NodeBoundClaim("r", NodeState("n-1"), "VolumeSnapshot s")
EMPTY = NodeBoundClaim("e", NodeState("n-1"), "")


def test_volumes_on_different_nodes() -> None:
    """On the pod and on all of its PVCs, with both names and both nodes."""
    other = replace(EMPTY, node=NodeState("n-2"))
    found = events_for(POD, [RESTORED, other], NOW)
    assert [event_.pvc for event_ in found] == ["", "r", "e"]
    assert {event_.reason for event_ in found} == {"SourceNodeConflict"}
    for word in ("pod p", "PVC r on node n-1", "PVC e on node n-2"):
        assert all(word in event_.message for event_ in found)


@pytest.mark.parametrize(
    ("node", "reason", "word"),
    [
        (NodeState("n-1", ready=False), "SourceNodeNotReady", "not ready"),
        (NodeState("n-1", ready=False, cordoned=True), "SourceNodeNotReady", "not ready"),
        (NodeState("n-1", cordoned=True), "SourceNodeCordoned", "kubectl uncordon n-1"),
        (NodeState("n-1"), "SourceNodeExcluded", "the scheduler says: 0/3 nodes are available"),
    ],
)
def test_a_node_that_the_pod_cannot_have(node: NodeState, reason: str, word: str) -> None:
    (event_,) = events_for(POD, [replace(RESTORED, node=node), replace(EMPTY, node=node)], NOW)
    assert (event_.pvc, event_.reason) == ("r", reason)
    assert word in event_.message
    assert "pod p can only run on node n-1, because VolumeSnapshot s is there" in event_.message


@pytest.mark.parametrize(
    "pod",
    [
        replace(POD, since=NOW - timedelta(seconds=9)),
        replace(POD, scheduler_message="", since=None),
        UnscheduledPod("p", "", None),
    ],
)
def test_a_pod_that_has_only_just_come(pod: UnscheduledPod) -> None:
    assert events_for(pod, [RESTORED], NOW) == []


def test_pvcs_without_a_source() -> None:
    assert events_for(POD, [EMPTY], NOW) == []
    assert events_for(POD, [], NOW) == []


def test_two_restores_of_one_node() -> None:
    found = events_for(POD, [RESTORED, replace(RESTORED, pvc="r-2")], NOW)
    assert [event_.pvc for event_ in found] == ["r", "r-2"]
    assert all(isinstance(event_, PodEvent) for event_ in found)

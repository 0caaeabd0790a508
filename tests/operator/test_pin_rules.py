"""When a waiting claim is led to its source, and what is told of pods that cannot follow."""

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
    decide,
)
from csi_driver.operator.topology.scheduling_events import NodeBoundClaim, PodEvent, UnscheduledPod, events_for

WAITING = PendingClaim("VolumeSnapshot s", "n-1", NodeState("n-1"), None, 10, None)


def told(claim: PendingClaim, tries: Attempts | None = None, now: float = 0.0) -> EmitEvent:
    verdict = decide(claim, tries or Attempts(), now)
    assert isinstance(verdict, EmitEvent)
    return verdict


@pytest.mark.parametrize("selected", [None, "n-2"])
def test_a_pin_is_put_where_there_is_room(selected: str | None) -> None:
    """Where nothing is selected, and where another node was."""
    claim = replace(WAITING, selected=selected)
    assert decide(claim, Attempts(), 0) == QueryCapacity()
    assert decide(replace(claim, room=10), Attempts(), 0) == SelectNode("n-1")
    assert told(replace(claim, room=9)).reason == "SourceNodeFull"
    assert told(replace(claim, room=AgentUnreachable())).reason == "SourceAgentSilent"


def test_a_pin_that_stands_is_left() -> None:
    assert decide(replace(WAITING, selected="n-1"), Attempts(), 0) == NoAction()


def test_the_node_and_the_reason_are_told() -> None:
    away = told(replace(WAITING, site=NodeState("n-1", ready=False), selected="n-1"))
    assert away.reason == "SourceNodeNotReady"
    assert away.words == (
        "VolumeSnapshot s, of which this claim is made, lies on node n-1, which is not ready: the disk is made by itself "
        "when the node is back"
    )
    assert told(replace(WAITING, site=None)).reason == "SourceNodeGone"
    assert "room for 9 bytes, and 10 are asked for" in told(replace(WAITING, room=9)).words


def test_a_cordoned_node_can_still_make_the_disk() -> None:
    assert decide(replace(WAITING, site=NodeState("n-1", cordoned=True), room=10), Attempts(), 0) == SelectNode("n-1")


def test_pins_come_after_longer_and_longer_pauses() -> None:
    assert Attempts(5000, 1000.0).next == 1300.0, "after days"
    pauses = [Attempts(pins, 1000.0).next - 1000.0 for pins in range(1, 14)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]
    claim = replace(WAITING, room=10)
    assert decide(claim, Attempts(3, 1000.0), 1003.9) == NoAction()
    assert decide(claim, Attempts(3, 1000.0), 1004.0) == SelectNode("n-1")


NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
POD = UnscheduledPod("p", "0/3 nodes are available: 3 node(s) didn't match", NOW - timedelta(seconds=30))
RESTORED = NodeBoundClaim("r", NodeState("n-1"), "VolumeSnapshot s")
EMPTY = NodeBoundClaim("e", NodeState("n-1"), "")


def test_disks_on_different_nodes() -> None:
    """Told on the pod and on all of its claims, with both names and both nodes."""
    other = replace(EMPTY, site=NodeState("n-2"))
    found = events_for(POD, [RESTORED, other], NOW)
    assert [notice.claim for notice in found] == ["", "r", "e"]
    assert {notice.reason for notice in found} == {"SourceNodeConflict"}
    for word in ("pod p", "claim r on node n-1", "claim e on node n-2"):
        assert all(word in notice.words for notice in found)


@pytest.mark.parametrize(
    ("site", "reason", "word"),
    [
        (NodeState("n-1", ready=False), "SourceNodeNotReady", "not ready"),
        (NodeState("n-1", ready=False, cordoned=True), "SourceNodeNotReady", "not ready"),
        (NodeState("n-1", cordoned=True), "SourceNodeCordoned", "kubectl uncordon n-1"),
        (NodeState("n-1"), "SourceNodeExcluded", "the scheduler says: 0/3 nodes are available"),
    ],
)
def test_a_node_that_the_pod_cannot_have(site: NodeState, reason: str, word: str) -> None:
    (notice,) = events_for(POD, [replace(RESTORED, site=site), replace(EMPTY, site=site)], NOW)
    assert (notice.claim, notice.reason) == ("r", reason)
    assert word in notice.words
    assert "pod p can only run on node n-1, where VolumeSnapshot s lies" in notice.words


@pytest.mark.parametrize(
    "pod",
    [
        replace(POD, since=NOW - timedelta(seconds=9)),
        replace(POD, says="", since=None),
        UnscheduledPod("p", "", None),
    ],
)
def test_a_pod_that_has_only_just_come(pod: UnscheduledPod) -> None:
    assert events_for(pod, [RESTORED], NOW) == []


def test_claims_that_are_made_of_nothing() -> None:
    assert events_for(POD, [EMPTY], NOW) == []
    assert events_for(POD, [], NOW) == []


def test_two_restores_of_one_node() -> None:
    found = events_for(POD, [RESTORED, replace(RESTORED, claim="r-2")], NOW)
    assert [notice.claim for notice in found] == ["r", "r-2"]
    assert all(isinstance(notice, PodEvent) for notice in found)

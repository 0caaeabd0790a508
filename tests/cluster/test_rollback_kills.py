"""Rollbacks while parts of the system are killed, in each phase in turn, and while the disk's node is off."""

import functools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from rig.cluster import Cluster
from rig.kills import agent_on, kill_containers, reconciling
from rig.kubectl import Kubectl, KubectlError
from rig.node import Node
from rig.objects import claim, pod
from rollback_rig import ask, cut, ended, make, phase_of, read, reason_of, using, write

PHASES = ("WaitingForRelease", "SafetySnapshot", "RollingBack")
KILLS = (
    ("controller", "WaitingForRelease"),
    ("agent", "SafetySnapshot"),
    ("controller", "RollingBack"),
    ("agent", "RollingBack"),
)
"""Each phase, and each victim in the last one. tests/operator ends the operator before and after each of its calls."""


def node_of(cluster: Cluster, kubectl: Kubectl, of: str = "v1") -> Node:
    """The node that has the disk of a claim."""
    volume = kubectl.get("pv", kubectl.get("pvc", of)["spec"]["volumeName"])
    return cluster.node(volume["spec"]["csi"]["volumeHandle"].partition(":")[0])


def when(kubectl: Kubectl, name: str, phase: str, do: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a rollback is seen in a phase, or past it: it may pass through quicker than one can look."""
    past = (*PHASES[PHASES.index(phase) :], "Completed", "Failed")

    def wait() -> None:
        with closing(kubectl.watched("volumerollback", name)) as states:
            next(found for found in states if found and phase_of(found) in past)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def patient(kubectl: Kubectl, name: str) -> dict[str, object]:
    """The end of a rollback; the API itself may be away for a moment meanwhile."""
    deadline = time.monotonic() + 150
    while True:
        try:
            return ended(kubectl, name, 150)
        except KubectlError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@pytest.mark.slow(seconds=200)
@pytest.mark.disturbs
@pytest.mark.timeout(900)
def test_controller_and_agent_killed_in_each_phase(cluster: Cluster, kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    node = node_of(cluster, kubectl)
    victims = {"controller": lambda: reconciling(cluster), "agent": lambda: agent_on(cluster, node)}
    for victim, phase in KILLS:
        name = f"{victim}-{phase.lower()}"
        with using(kubectl) as writer:
            kubectl.sh(writer, f"echo {name} >/v1/a; sync")
            ask(kubectl, name, "s1")
            kubectl.until(lambda made: reason_of(made) == "VolumeInUse", "volumerollback", name)
            # Found before: a phase may be short.
            kill = functools.partial(kill_containers, cluster, victims[victim]())
            killer = when(kubectl, name, phase, kill)
            if phase == "WaitingForRelease":
                killer.join()
        killer.join()
        status = patient(kubectl, name)
        assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
        cluster.wait_installed()
        kubectl.apply(claim(f"kept-{name}", snapshot=str(status["safetySnapshotName"])))
        assert read(kubectl) == {"a": "old"}
        assert read(kubectl, f"kept-{name}") == {"a": name}, "what was there before is kept"


def written_since_s1(cluster: Cluster, kubectl: Kubectl) -> Node:
    """A volume on a node that may be switched off: `old` is in its snapshot s1, `new` was written since by a pod that runs."""
    node = cluster.nodes[-1]
    cluster.spare(node)
    kubectl.apply(claim("v1"), pod("writer", ["v1"], node=node.name))
    kubectl.ready("writer")
    kubectl.sh("writer", "echo old >/v1/a; sync")
    cut(kubectl, "s1")
    kubectl.sh("writer", "echo new >/v1/a; sync")
    return node


def assert_as_in_s1(kubectl: Kubectl, status: dict[str, Any]) -> None:
    """The volume is as in s1, and the safety snapshot has what was written since."""
    assert read(kubectl) == {"a": "old"}
    kubectl.apply(claim("kept", snapshot=str(status["safetySnapshotName"])))
    assert read(kubectl, "kept") == {"a": "new"}


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_a_node_that_is_off_while_the_disk_is_waited_for(cluster: Cluster, kubectl: Kubectl) -> None:
    node = written_since_s1(cluster, kubectl)
    ask(kubectl, "back", "s1", timeout="15m")
    kubectl.until(lambda made: reason_of(made) == "VolumeInUse", "volumerollback", "back")
    node.power_off()
    try:
        kubectl("delete", "pod", "writer", "--force", "--grace-period=0")
        waiting = kubectl.until(lambda made: reason_of(made) == "AgentUnreachable", "volumerollback", "back")
        assert node.name in waiting["status"]["message"]
    finally:
        node.power_on()
        cluster.wait_ready()
        cluster.wait_installed()
    status = patient(kubectl, "back")
    assert status["phase"] == "Completed", status
    assert_as_in_s1(kubectl, status)


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_a_node_that_loses_its_power_during_the_rollback(cluster: Cluster, kubectl: Kubectl) -> None:
    """Whether the exchange was made by then is found in the pool when the node is back."""
    node = written_since_s1(cluster, kubectl)
    kubectl.delete("pod", "writer")
    ask(kubectl, "back", "s1", timeout="15m")
    when(kubectl, "back", "RollingBack", node.power_off).join()
    try:
        time.sleep(2)
    finally:
        node.power_on()
        cluster.wait_ready()
        cluster.wait_installed()
    status = patient(kubectl, "back")
    assert (status["phase"], status["reason"]) == ("Completed", "RolledBack"), status
    assert_as_in_s1(kubectl, status)

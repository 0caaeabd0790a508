"""A restored disk is made where its snapshot is, and its pod follows: whatever drew it to another node."""

from collections.abc import Iterator
from typing import Any

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kills import reconciling
from rig.kubectl import Kubectl, is_ready
from rig.node import Node
from rig.objects import claim, pod, snapshot

pytestmark = pytest.mark.disturbs  # a node is full, cordoned, off


@pytest.fixture
def home(cluster: Cluster, kubectl: Kubectl) -> Iterator[Node]:
    """The node with disk `source`, which pod `source` uses, and its snapshot `cut`."""
    node = cluster.nodes[0]
    kubectl.apply(claim("source"), pod("source", {"/disk": "source"}, node=node.name))
    kubectl.ready("source")
    kubectl.sh("source", "echo content >/disk/file; sync")
    kubectl.apply(snapshot("cut", "source"))
    kubectl.until(is_ready, "volumesnapshot", "cut")
    try:
        yield node
    finally:
        cluster.kubectl("uncordon", node.name)


def drawn_to(node: str) -> dict[str, Any]:
    """An affinity that prefers a node, and does not insist."""
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    preferred = [{"weight": 100, "preference": term}]
    return {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}


def apart_from(app: str) -> dict[str, Any]:
    """An anti-affinity that insists."""
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    return {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def test_what_draws_a_pod_elsewhere_does_not_keep_it_from_running(
    cluster: Cluster, kubectl: Kubectl, home: Node
) -> None:
    """Four pods that would rather be on the other node, where there is far more room: no hand is needed for any of them."""
    away = cluster.nodes[1].name
    kubectl.apply(claim("large", "3Gi"), pod("large", ["large"], node=home.name))
    kubectl.ready("large")
    kubectl.apply(
        *(claim("restored", snapshot="cut"), pod("preferring", {"/disk": "restored"}, **drawn_to(away))),
        *(claim("copy", clone="source"), pod("cloned", {"/disk": "copy"}, **drawn_to(away))),
        # The empty disk could be anywhere, and is where the other one must be.
        *(claim("beside", snapshot="cut"), claim("empty")),
        pod("with-empty", {"/empty": "empty", "/disk": "beside"}, **drawn_to(away)),
        # A snapshot that does not exist yet when its claim is made.
        *(
            claim("at-once", snapshot="new"),
            pod("in-one", {"/disk": "at-once"}, **drawn_to(away)),
            snapshot("new", "source"),
        ),
    )
    pods = ("preferring", "cloned", "with-empty", "in-one")
    kubectl.ready(*pods, seconds=120)
    for name in pods:
        assert kubectl.get("pod", name)["spec"]["nodeName"] == home.name
        assert kubectl.sh(name, "cat /disk/file") == "content"


def test_a_rule_that_excludes_the_node_is_told_and_is_only_a_delay(
    cluster: Cluster, kubectl: Kubectl, home: Node
) -> None:
    """The node is cordoned; an anti-affinity insists. The claims say so, and the pods run once it is lifted."""
    kubectl.apply(pod("guard", node=home.name))
    kubectl.ready("guard")
    kubectl.apply(claim("kept-apart", snapshot="cut"), pod("apart", {"/disk": "kept-apart"}, **apart_from("guard")))
    tells(kubectl, "kept-apart", home.name, "anti-affinity")
    kubectl("cordon", home.name)
    kubectl.apply(claim("kept-out", snapshot="cut"), pod("out", {"/disk": "kept-out"}))
    tells(kubectl, "kept-out", home.name, "cordoned")
    # The next leader says the same: that is counted, and no second event.
    cluster.kubectl.within(NAMESPACE)("delete", "pod", reconciling(cluster), "--wait=false")
    kubectl.until(lambda _: counts(kubectl, "kept-out", "SourceNodeCordoned") >= [2], "pvc", "kept-out", seconds=150)
    for name in ("apart", "out"):
        assert kubectl.get("pod", name)["status"]["phase"] == "Pending"
    kubectl("uncordon", home.name)
    kubectl.delete("pod", "guard")
    kubectl.ready("apart", "out", seconds=150)
    for name in ("apart", "out"):
        assert kubectl.sh(name, "cat /disk/file") == "content"


@pytest.mark.slow(seconds=150)
@pytest.mark.timeout(600)
def test_a_restore_waits_for_the_node_of_its_snapshot(cluster: Cluster, kubectl: Kubectl, home: Node) -> None:
    cluster.spare(home)
    home.power_off()
    try:
        kubectl.apply(claim("restored", snapshot="cut"), pod("waiting", {"/disk": "restored"}))
        tells(kubectl, "restored", home.name)
        assert kubectl.get("pod", "waiting")["status"]["phase"] == "Pending"
    finally:
        home.power_on()
        cluster.wait_ready()
        cluster.wait_installed()
    kubectl.ready("waiting", seconds=180)
    assert kubectl.sh("waiting", "cat /disk/file") == "content"
    # And the disk that was in use when the power went.
    kubectl.ready("source", seconds=120)
    assert kubectl.sh("source", "cat /disk/file") == "content"


def tells(kubectl: Kubectl, name: str, *words: str, seconds: float = 150) -> None:
    """Wait until one event of the claim has all these words."""

    def told(_: object) -> bool:
        return any(all(word in event for word in words) for event in kubectl.events(name))

    kubectl.until(told, "pvc", name, seconds=seconds)


def counts(kubectl: Kubectl, name: str, reason: str) -> list[int]:
    """How often each event of a reason was said about an object."""
    events = kubectl.items("events", f"--field-selector=involvedObject.name={name},reason={reason}")
    return [int(event.get("count") or 1) for event in events]

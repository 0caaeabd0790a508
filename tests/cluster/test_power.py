"""A node loses its power and gets it back: its disks wait for it, and the rest of the cluster goes on."""

from collections.abc import Iterator

import pytest
from rig.cluster import Cluster
from rig.kubectl import Document, Kubectl, is_ready
from rig.node import Node
from rig.objects import claim, pod, snapshot

COUNT = """
touch /disk/log
n=$(wc -l </disk/log)
while :; do n=$((n + 1)); echo $n >>/disk/log; sync /disk/log; echo $n; sleep 0.1; done
"""
"""Writes a line, makes it durable, and only then says so; begun again, it goes on after the last line that is there."""


def is_node_ready(node: Document) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])


@pytest.fixture
def last(cluster: Cluster) -> Iterator[Node]:
    """The last node, which a test may switch off. It is on, known and Ready again when the test is over."""
    node = cluster.nodes[-1]
    cluster.spare(node)
    yield node
    if not node.running():
        node.power_on()
    cluster.wait_ready()
    cluster.wait_installed()


def acknowledged(kubectl: Kubectl, name: str) -> int:
    """The last line that a writer has told of."""
    return int(kubectl.logs(name, "", "--tail=1") or "0")


def written(kubectl: Kubectl, name: str) -> int:
    """How many lines are on its disk; none is missing between the first and the last."""
    found = [int(line) for line in kubectl.sh(name, "cat /disk/log").split()]
    assert found == list(range(1, len(found) + 1))
    return len(found)


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_power_off_and_on_again(cluster: Cluster, kubectl: Kubectl, last: Node) -> None:
    other = cluster.nodes[0]
    kubectl.apply(claim("disk"), pod("writer", ["disk"], script=COUNT, node=last.name))
    kubectl.ready("writer")
    kubectl.sh("writer", "while [ $(wc -l </disk/log) -lt 20 ]; do sleep 0.1; done")
    had = acknowledged(kubectl, "writer")
    last.power_off()
    cluster.kubectl.until(lambda node: not is_node_ready(node), "node", last.name)

    # What lies there waits, and says for what; the rest of the cluster goes on.
    kubectl.apply(snapshot("meanwhile", "disk"))
    kubectl.until(lambda each: last.name in _error(each), "volumesnapshot", "meanwhile")
    kubectl.apply(claim("elsewhere"), pod("user", ["elsewhere"], node=other.name))
    kubectl.ready("user")

    last.power_on()
    cluster.kubectl.until(is_node_ready, "node", last.name, seconds=180)
    kubectl.until(lambda each: _restarts(each) > 0, "pod", "writer", seconds=180)
    kubectl.ready("writer", seconds=180)
    assert written(kubectl, "writer") >= had
    kubectl.until(is_ready, "volumesnapshot", "meanwhile", seconds=180)
    kubectl.apply(claim("restored", snapshot="meanwhile"), pod("reader", {"/disk": "restored"}))
    kubectl.ready("reader")
    assert written(kubectl, "reader") >= had


def _error(found: Document) -> str:
    return str(((found.get("status") or {}).get("error") or {}).get("message", ""))


def _restarts(found: Document) -> int:
    return sum(each["restartCount"] for each in found["status"].get("containerStatuses", []))

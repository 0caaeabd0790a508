"""A node loses its power and gets it back: its disks wait for it. And a node that is given up, and comes back after all."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import Document, Kubectl, is_ready
from rig.node import Node
from rig.objects import claim, pod, snapshot
from rig.paths import KUBECONFIG

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
    yield node
    if not node.running():
        node.power_on()
    cluster.kubectl.until(is_node_ready, "node", node.name)
    tidemark("unforget", node.name, check=False)
    cluster.wait_installed()


def tidemark(*words: str, check: bool = True) -> str:
    """`tidemark node ...`, as the cluster's administrator has it."""
    argv = [sys.executable, "-m", "csi_driver.cli.main", "node", *words, f"--kubeconfig={KUBECONFIG}"]
    run = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0 or not check, run.stderr
    return run.stdout + run.stderr


def acknowledged(kubectl: Kubectl, name: str) -> int:
    """The last line that a writer has told of."""
    return int(kubectl.logs(name, "", "--tail=1") or "0")


def written(kubectl: Kubectl, name: str) -> int:
    """How many lines are on its disk; none is missing between the first and the last."""
    found = [int(line) for line in kubectl.sh(name, "cat /disk/log").split()]
    assert found == list(range(1, len(found) + 1))
    return len(found)


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
    cluster.kubectl.until(is_node_ready, "node", last.name)
    kubectl.until(lambda each: _restarts(each) > 0, "pod", "writer", seconds=180)
    kubectl.ready("writer", seconds=180)
    assert written(kubectl, "writer") >= had
    kubectl.until(is_ready, "volumesnapshot", "meanwhile", seconds=180)
    kubectl.apply(claim("restored", snapshot="meanwhile"), pod("reader", {"/disk": "restored"}))
    kubectl.ready("reader")
    assert written(kubectl, "reader") >= had


@pytest.mark.timeout(600)
def test_a_node_is_forgotten_and_comes_back(cluster: Cluster, kubectl: Kubectl, last: Node) -> None:
    kubectl.apply(claim("lost"), pod("user", ["lost"], node=last.name))
    kubectl.ready("user")
    kubectl.apply(snapshot("lost-too", "lost"))
    kubectl.until(is_ready, "volumesnapshot", "lost-too")
    volume = kubectl.get("pvc", "lost")["spec"]["volumeName"]
    handle = kubectl.get("pv", volume)["spec"]["csi"]["volumeHandle"]
    refused = tidemark("forget", last.name, check=False)
    assert last.name in refused, "a node whose agent answers is not given up"

    last.power_off()
    kubectl("delete", "node", last.name)
    kubectl("delete", "pod", "user", "--force", "--grace-period=0")
    kubectl("delete", "pvc", "lost", "--wait=false")
    kubectl("delete", "volumesnapshot", "lost-too", "--wait=false")
    # A Node object that is gone proves nothing.
    kubectl.until(lambda each: each["status"]["phase"] in ("Released", "Failed"), "pv", volume)
    assert volumes(cluster)[0] != 0, "lists are never shorter than they should be"

    tidemark("forget", last.name)
    kubectl.wait("delete", "pv", volume, seconds=180)
    kubectl.wait("delete", "volumesnapshot", "lost-too", seconds=180)
    status, listed = volumes(cluster)
    assert status == 0, listed

    last.power_on()
    cluster.kubectl.until(is_node_ready, "node", last.name)
    tidemark("unforget", last.name)
    cluster.wait_installed()
    status, listed = volumes(cluster)
    assert status == 0, listed
    assert handle in listed, "the node's agent has deleted nothing"
    release = cluster.kubectl.within(NAMESPACE)
    agent = next(
        each["metadata"]["name"]
        for each in release.items("pods", "--selector=app.kubernetes.io/component=agent")
        if each["spec"]["nodeName"] == last.name
    )
    for kind in ("snapshot", "volume"):
        for each in json.loads(_tool(release, agent, kind, "list", "--json")):
            if handle in (each["id"], each.get("parent_id")):
                _tool(release, agent, kind, "delete", each["id"])
    assert handle not in volumes(cluster)[1]


def volumes(cluster: Cluster) -> tuple[int, str]:
    """What a controller answers to a list of all volumes: the command's status, and what it printed."""
    words = ("exec", "deployment/tidemark-controller", "--container=controller", "--")
    script = "tidemark volume list --json --endpoint unix:///csi/csi.sock; echo status $?"
    told = cluster.kubectl.within(NAMESPACE)(*words, "sh", "-c", f"({script}) 2>&1")
    listed, _, status = told.rpartition("status ")
    return int(status), listed


def _tool(release: Kubectl, agent: str, *words: str) -> str:
    return release("exec", agent, "--", "tidemark", *words, "--endpoint=unix:///csi/csi.sock")


def _error(found: Document) -> str:
    return str(((found.get("status") or {}).get("error") or {}).get("message", ""))


def _restarts(found: Document) -> int:
    return sum(each["restartCount"] for each in found["status"].get("containerStatuses", []))

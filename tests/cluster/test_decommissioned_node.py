"""A node whose machine is lost: nothing says so but a person. And a node that comes back after all."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kills import agent_on
from rig.kubectl import Document, Kubectl, is_ready
from rig.node import Node
from rig.objects import claim, pod, snapshot
from rig.paths import KUBECONFIG


def tidemark(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user has it beside kubectl."""
    argv = [sys.executable, "-m", "csi_driver.cli.main", "node", *words, f"--namespace={NAMESPACE}"]
    return subprocess.run([*argv, f"--kubeconfig={KUBECONFIG}"], capture_output=True, text=True, check=False)


def in_agent(cluster: Cluster, node: Node, *words: str) -> str:
    """The command in the agent of a node."""
    release = cluster.kubectl.within(NAMESPACE)
    return release("exec", agent_on(cluster, node), "--container=agent", "--", "tidemark", *words)


def read_by_hand(kubectl: Kubectl, spec: Document) -> str:
    """What an orphan holds, through a PersistentVolume that is made for it as the one that is gone was."""
    kept = {key: spec[key] for key in ("capacity", "accessModes", "storageClassName", "nodeAffinity")}
    disk = {key: spec["csi"][key] for key in ("driver", "volumeHandle")}
    by_hand = kept | {"csi": disk, "persistentVolumeReclaimPolicy": "Retain"}
    name = f"{kubectl.namespace}-orphan"
    kubectl.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": by_hand})
    found = claim("orphan")
    found["spec"]["volumeName"] = name
    kubectl.apply(found, pod("reader", {"/disk": "orphan"}))
    kubectl.ready("reader")
    content = kubectl.sh("reader", "cat /disk/file")
    kubectl.delete("pod", "reader")
    kubectl.delete("pvc", "orphan")
    kubectl.delete("pv", name)
    return content


@pytest.fixture
def lost(cluster: Cluster) -> Iterator[Node]:
    """A node that a test may switch off and take out of the cluster; it is there again afterwards."""
    node = cluster.nodes[1]
    cluster.spare(node)
    yield node
    tidemark("recommission", node.name)
    if not node.running():
        node.power_on()
    cluster.wait_ready()
    cluster.wait_installed()


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_a_lost_node_is_decommissioned_and_comes_back(cluster: Cluster, kubectl: Kubectl, lost: Node) -> None:
    kubectl.apply(claim("data"), pod("writer", {"/disk": "data"}, node=lost.name))
    kubectl.ready("writer")
    kubectl.sh("writer", "echo content >/disk/file; sync")
    kubectl.apply(snapshot("cut", "data"))
    kubectl.until(is_ready, "volumesnapshot", "cut")
    volume = kubectl.get("pvc", "data")["spec"]["volumeName"]
    spec = kubectl.get("pv", volume)["spec"]
    handle = spec["csi"]["volumeHandle"]
    content = kubectl.get("volumesnapshot", "cut")["status"]["boundVolumeSnapshotContentName"]
    cut = kubectl.get("volumesnapshotcontent", content)["status"]["snapshotHandle"]

    refusal = tidemark("decommission", lost.name)
    assert (refusal.returncode, "answers" in refusal.stderr) == (1, True), refusal

    lost.power_off()
    kubectl("delete", "node", lost.name)
    kubectl("delete", "pod", "writer", "--force", "--grace-period=0")
    kubectl("delete", "volumesnapshot/cut", "pvc/data", "--wait=false")
    # A Node object that is gone proves nothing: the delete waits for the node, and names it.
    kubectl.until(lambda _: any(lost.name in event for event in kubectl.within("default").events(volume)), "pv", volume)
    assert kubectl.find("pv", volume) is not None

    done = tidemark("decommission", lost.name)
    assert done.returncode == 0, done.stderr
    for kind, name in (("pv", volume), ("volumesnapshotcontent", content)):
        kubectl("wait", "--for=delete", f"{kind}/{name}", "--timeout=150s", seconds=160)

    lost.power_on()
    cluster.wait_ready()
    cluster.wait_installed()
    listed = {row["node"]: row for row in json.loads(tidemark("list", "--json").stdout)}
    assert (listed[lost.name]["agent"], bool(listed[lost.name]["decommissioned"])) == ("ready", True)
    # Nothing was deleted there by itself, and the node serves as before.
    there = {each["id"] for each in json.loads(in_agent(cluster, lost, "volume", "list", "--json"))}
    assert handle in there
    kubectl.apply(claim("new"), pod("again", {"/disk": "new"}, node=lost.name))
    kubectl.ready("again", seconds=120)
    assert tidemark("recommission", lost.name).returncode == 0
    assert read_by_hand(kubectl, spec) == "content"
    in_agent(cluster, lost, "snapshot", "delete", cut)
    in_agent(cluster, lost, "volume", "delete", handle)

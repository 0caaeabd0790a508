"""A node whose agent is away for a while, as in an upgrade that takes long: what runs goes on, what waits is served later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import Document, Kubectl
from rig.objects import claim, pod

AGENTS = ("daemonset", "tidemark-agent")
WRITE = "i=0; while :; do i=$((i+1)); echo $i >>/disk/log; sync /disk/log; sleep 0.05; done"
WHOLE = "awk 'NR != $1 { exit 1 }' /disk/log && wc -l </disk/log"


@contextmanager
def no_agents(cluster: Cluster) -> Iterator[None]:
    """Send the agents away by a node selector that no node has."""
    release = cluster.kubectl.within(NAMESPACE)

    def select(value: str) -> None:
        patch = f'{{"spec": {{"template": {{"spec": {{"nodeSelector": {{"tidemark.test/none": {value}}}}}}}}}}}'
        release("patch", *AGENTS, "--type=merge", "--patch", patch)

    select('"none"')
    try:
        deadline = time.monotonic() + 150  # each may take a minute to end
        while release.items("pods", "--selector=app.kubernetes.io/component=agent"):
            assert time.monotonic() < deadline, "an agent does not end"
            time.sleep(0.5)
        yield
    finally:
        select("null")
        cluster.wait_installed()


def is_registered(csi_node: Document) -> bool:
    return [driver["name"] for driver in csi_node["spec"]["drivers"] or []] == ["csi.tidemark.dev"]


@pytest.mark.slow(seconds=60)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_what_runs_goes_on_without_an_agent(cluster: Cluster, kubectl: Kubectl) -> None:
    node = cluster.nodes[0].name
    kubectl.apply(claim("written"), claim("left"))
    kubectl.apply(
        pod("writer", {"/disk": "written"}, script=WRITE, node=node), pod("leaves", {"/disk": "left"}, node=node)
    )
    kubectl.ready("writer", "leaves")
    with no_agents(cluster):
        before = int(kubectl.sh("writer", WHOLE))
        kubectl("delete", "pod", "leaves", "--wait=false")
        kubectl.apply(pod("reader", {"/disk": "written"}, node=node))
        time.sleep(5)
        assert int(kubectl.sh("writer", WHOLE)) > before
        # Registered still: else the kubelet would refuse the pod that comes and the one that ends, and forget the driver.
        assert is_registered(kubectl.get("csinode", node))
        assert kubectl.get("pod", "reader")["status"]["phase"] == "Pending"
    # The kubelet tries again after as long as it has tried in vain, up to two minutes.
    kubectl.ready("reader", seconds=180)
    kubectl.wait("delete", "pod", "leaves", seconds=180)
    assert int(kubectl.sh("reader", WHOLE)) > before
    assert kubectl.get("pod", "writer")["status"]["containerStatuses"][0]["restartCount"] == 0
    # The kubelet registers an agent that is back again, and has none for a moment meanwhile.
    kubectl.until(is_registered, "csinode", node)

"""Each part of the system is killed in the middle of work: the work ends right all the same, and nothing is left over."""

import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kills import agent_on, kill_containers
from rig.kubectl import Kubectl, KubectlError, is_ready
from rig.node import Node
from rig.objects import CLASS, claim, pod, snapshot

SECONDS = 180
"""What Kubernetes and we together may take to go on after any one kill, on a slow machine.

Also where scenarios before have killed the same container: the kubelet waits longer each time before it starts it again.
"""


DISKS = ("0", "1", "restored", "older", "clone")
"""What each round makes, as pods with a disk of the same name."""
SIZES = ("64Mi", "320Mi")
GROWN = "352Mi"
"""The second disk of each round grows to that in the next one."""

# A disk's content is written once, by its first pod.
SCRIPT = "[ -e /disk/file ] || { echo content >/disk/file; sync; }; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"


def leader(cluster: Cluster) -> str:
    """The controller's pod whose provisioner makes the disks."""
    release = cluster.kubectl.within(NAMESPACE)
    holders = [lease["spec"].get("holderIdentity") or "" for lease in release.items("leases")]
    pods = release.items("pods", "--selector=app.kubernetes.io/component=controller")
    names = [each["metadata"]["name"] for each in pods]
    return max(names, key=lambda name: sum(name in holder for holder in holders))


KILLS: dict[str, Callable[[Cluster, Node], None]] = {
    "agent": lambda cluster, node: kill_containers(cluster, agent_on(cluster, node)),
    "controller": lambda cluster, _: kill_containers(cluster, leader(cluster)),
    "kubelet": lambda _, node: node.kill("kubelet"),
    "containerd": lambda _, node: node.kill("containerd"),
    "apiserver": lambda cluster, _: cluster.control_plane.kill("apiserver"),
}


@pytest.mark.slow(seconds=240)
@pytest.mark.disturbs
@pytest.mark.timeout(1200)
def test_fifty_operations_and_five_kills_in_their_middle(cluster: Cluster, kubectl: Kubectl, xfs: str) -> None:
    """Ten at a time: disks made, cut, restored, cloned, grown and deleted."""
    node = cluster.nodes[0]
    begin(kubectl, node, xfs)
    before = "begin"
    for name, kill in KILLS.items():
        ask(kubectl, node, xfs, name, before)
        kill(cluster, node)
        wait_done(kubectl, name, before)
        before = name
    for each in [each["metadata"]["name"] for each in kubectl.items("pods")]:
        assert kubectl.sh(each, "cat /disk/file") == "content"
    cluster.wait_installed()
    wait_nothing_left_over(cluster)
    # All at once. Not the namespace: that may wait minutes for a finalizer of the provisioner on a snapshot, which it lets
    # go in its next round if the API was away for it.
    kubectl("delete", "pods,pvc", "--all", "--timeout=240s", seconds=250)
    kubectl("delete", "volumesnapshots", "--all", "--wait=false")
    wait_nothing_left_over(cluster)


def begin(kubectl: Kubectl, node: Node, xfs: str) -> None:
    """What the first round works on."""
    for name in ("begin-0", "begin-1", "begin-clone"):
        disk = claim(name, SIZES[1], storage_class=xfs) if name == "begin-1" else claim(name, SIZES[0])
        kubectl.apply(disk, pod(name, {"/disk": name}, script=SCRIPT, node=node.name))
    kubectl.ready("begin-0", "begin-1", "begin-clone")
    kubectl.apply(snapshot("begin-cut0", "begin-0"), snapshot("begin-cut1", "begin-1"))
    for name in ("begin-cut0", "begin-cut1"):
        kubectl.until(is_ready, "volumesnapshot", name)


def ask(kubectl: Kubectl, node: Node, xfs: str, now: str, before: str) -> None:
    """Ask for ten operations on what the round before has made, and wait for none of them."""
    sources = {
        "restored": {"snapshot": f"{now}-cut0"},
        "older": {"snapshot": f"{before}-cut0"},
        "clone": {"clone": f"{before}-0"},
    }
    documents = [snapshot(f"{now}-cut{n}", f"{before}-{n}") for n in range(2)]
    for n, used in enumerate((CLASS, xfs)):
        name = f"{now}-{n}"
        disk = claim(name, SIZES[n], storage_class=used)
        documents += [disk, pod(name, {"/disk": name}, script=SCRIPT, node=node.name)]
    for kind, source in sources.items():
        name = f"{now}-{kind}"
        documents += [claim(name, SIZES[0], **source), pod(name, {"/disk": name}, script=SCRIPT)]
    kubectl.apply(*documents)
    grown = json.dumps({"spec": {"resources": {"requests": {"storage": GROWN}}}})
    kubectl("patch", "pvc", f"{before}-1", "--patch", grown)
    kubectl("delete", "--wait=false", f"pod/{before}-clone", f"pvc/{before}-clone", f"volumesnapshot/{before}-cut1")


def wait_done(kubectl: Kubectl, now: str, before: str) -> None:
    """Wait until all ten are done. A call that the kill interrupted is made again, as a user's would be."""
    deadline = time.monotonic() + SECONDS

    def left() -> float:
        return max(1.0, deadline - time.monotonic())

    def grown(found: dict[str, Any]) -> bool:
        return bool(found["status"]["capacity"]["storage"] == GROWN)

    waits: list[Callable[[], object]] = [
        lambda: kubectl.ready(*(f"{now}-{kind}" for kind in DISKS), seconds=left()),
        *(functools.partial(kubectl.until, is_ready, "volumesnapshot", f"{now}-cut{n}", left()) for n in range(2)),
        lambda: kubectl.until(grown, "pvc", f"{before}-1", left()),
        lambda: kubectl.wait("delete", "pvc", f"{before}-clone", seconds=left()),
        lambda: kubectl.wait("delete", "volumesnapshot", f"{before}-cut1", seconds=left()),
    ]
    for wait in waits:
        while True:
            try:
                wait()
                break
            except KubectlError as error:
                # The API itself was away for a moment.
                if time.monotonic() > deadline or not re.search(
                    "refused|reset|EOF|handshake|shutting down|watch has ended|unable to handle|initializing|connection lost",
                    str(error),
                ):
                    raise
                time.sleep(0.5)


def wait_nothing_left_over(cluster: Cluster, seconds: float = 180.0) -> None:
    """Wait until each node has what Kubernetes knows of, and nothing else.

    Deletions end in the background, and what fails in one is tried again after up to two minutes.
    """
    deadline = time.monotonic() + seconds
    while differences := [told for node in cluster.nodes for told in differing(cluster, node)]:
        assert time.monotonic() < deadline, "\n".join(differences)
        time.sleep(1)


def differing(cluster: Cluster, node: Node) -> Iterator[str]:
    """Compare volumes, snapshots, loop devices and mounts on a node with the objects of Kubernetes."""
    kubectl, pool = cluster.kubectl, "/var/lib/tidemark/pool"

    def compare(what: str, there: set[str] | int, known: set[str] | int) -> Iterator[str]:
        if there != known:
            yield f"{node.name} has {what} {there}, and Kubernetes knows of {known}"

    def hashes(handles: Iterator[str]) -> set[str]:
        return {handle.rpartition(":")[2] for handle in handles if handle.startswith(f"{node.name}:")}

    volumes = kubectl.items("pv")
    handles = {
        each["spec"]["claimRef"]["uid"]: each["spec"]["csi"]["volumeHandle"]
        for each in volumes
        if "csi" in each["spec"]
    }
    yield from compare("volumes", set(node.on_node("ls", f"{pool}/volumes").split()), hashes(iter(handles.values())))
    contents = kubectl.items("volumesnapshotcontents")
    known = hashes(each.get("status", {}).get("snapshotHandle", "") for each in contents)
    yield from compare("snapshots", set(node.on_node("ls", f"{pool}/snapshots").split()), known)
    yield from compare("things in the making", set(node.on_node("ls", f"{pool}/.new").split()), set())

    # A disk is attached and staged once, and published once for each pod that runs there.
    claims = {(c["metadata"]["namespace"], c["metadata"]["name"]): c for c in kubectl.items("pvc", "--all-namespaces")}
    used: list[str] = []
    for each in kubectl.items("pods", "--all-namespaces", f"--field-selector=spec.nodeName={node.name}"):
        for volume in each["spec"].get("volumes", ()):
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            bound = claims.get((each["metadata"]["namespace"], name), {}).get("spec", {}).get("volumeName")
            used += [bound] if bound else []
    yield from compare("loop devices", len(node.pool_loops()[0]), len(set(used)))
    points = [line.split()[4] for line in node.on_node("cat", "/proc/self/mountinfo").splitlines()]
    staged = [point for point in points if point.startswith("/var/lib/kubelet/plugins/kubernetes.io/csi/")]
    published = [point for point in points if "/volumes/kubernetes.io~csi/" in point]
    yield from compare("staged disks", len(set(staged)), len(set(used)))
    yield from compare("published disks", len(set(published)), len(used))

"""Killing parts of Tidemark, as the kernel or a power cut would."""

from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import Document
from rig.node import Node


def kill_containers(cluster: Cluster, pod_name: str) -> None:
    """Kill every container of one of Tidemark's pods at once, as the kernel would; the kubelet starts them again."""
    found = cluster.kubectl.within(NAMESPACE).get("pod", pod_name)
    node, status = cluster.node(found["spec"]["nodeName"]), found["status"]
    for each in (*status.get("initContainerStatuses", ()), *status["containerStatuses"]):
        if "running" in each["state"]:
            name = each["containerID"].removeprefix("containerd://")
            # A sidecar ends by itself when it has lost the controller, perhaps before its turn.
            node.on_node("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", name, check=False)


def agent_on(cluster: Cluster, node: Node) -> str:
    """The agent's pod on a node."""
    return next(
        str(each["metadata"]["name"]) for each in cluster.living("agent") if each["spec"].get("nodeName") == node.name
    )


def reconciling(cluster: Cluster) -> str:
    """The controller's pod that leads the operator. A lease names for a while who is gone, or nobody: that is waited out."""

    def is_held(lease: Document) -> bool:
        names = {each["metadata"]["name"] for each in cluster.living("controller")}
        return lease["spec"].get("holderIdentity") in names

    lease = cluster.kubectl.within(NAMESPACE).until(is_held, "lease", "tidemark-operator")
    return str(lease["spec"]["holderIdentity"])

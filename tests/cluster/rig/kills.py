"""Killing parts of Tidemark, as the kernel or a power cut would."""

from rig.cluster import NAMESPACE, Cluster
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
    pods = cluster.kubectl.within(NAMESPACE).items("pods", "--selector=app.kubernetes.io/component=agent")
    return next(str(each["metadata"]["name"]) for each in pods if each["spec"]["nodeName"] == node.name)


def reconciling(cluster: Cluster) -> str:
    """The controller's pod that leads the operator."""
    holder: str = cluster.kubectl.within(NAMESPACE).get("lease", "tidemark-operator")["spec"]["holderIdentity"]
    return holder

"""Where the agents of a Kubernetes cluster are: from informers of nodes, agent pods and PersistentVolumes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from csi_driver.domain.ids import owner_of_node
from csi_driver.domain.routing import TOPOLOGY_KEY, owner_of
from csi_driver.kube.client import Object
from csi_driver.kube.informers import InformerFactory
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVS
from csi_driver.operator.installation import AGENT_LABELS, Installation
from csi_driver.operator.trim import trim_metadata
from csi_driver.service.discovery import AgentEndpoint

AGENT_PORT = 9807
"""Of an agent whose pod has no port named `grpc`."""


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent's pod on a node. `ready`: its node is ready, and the kubelet's probe passes.

    The pod of a node that is not ready, or deleted, may stay Ready until it is garbage-collected.
    """

    address: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the API says about owners, at one moment. The mappings are keyed by owner."""

    agents: Mapping[str, Agent]
    nodes: Mapping[str, bool]
    """Whether each Node object is Ready."""
    labelled: frozenset[str]
    """Owners whose Node has the topology label."""
    volumes: Mapping[str, int]
    """How many of our PersistentVolumes are on each owner."""
    decommissioned_at: Mapping[str, str]
    """When a person decommissioned each owner that is on the list."""

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        """Return where the owner's agent is, or should be."""
        agent = self.agents.get(owner)
        if agent is None and owner not in self.nodes:
            return None
        return AgentEndpoint(owner, agent.address if agent else "", self.nodes.get(owner, False))

    def is_decommissioned(self, owner: str) -> bool:
        """Return whether the node is decommissioned and its agent has not come back."""
        agent = self.agents.get(owner)
        return owner in self.decommissioned_at and not (agent is not None and agent.ready)

    def owners(self) -> list[str]:
        """Return all that have, or should have, volumes of ours, including decommissioned ones."""
        return sorted({*self.labelled, *self.agents, *self.volumes})


def read(
    pods: Iterable[Object],
    nodes: Iterable[Object],
    volumes: Mapping[str, int],
    decommissioned: Object | None,
    installation: Installation,
) -> Cluster:
    """Combine trimmed pods and nodes, the number of volumes of each owner, and the ConfigMap of decommissioned nodes."""
    all_nodes = list(nodes)
    ready = {owner_of_node(node["metadata"]["name"]): node["ready"] for node in all_nodes}
    agents = {}
    for pod in sorted((pod for pod in pods if installation.owns_agent(pod)), key=_precedence):
        owner = owner_of_node(pod["node"])
        agents[owner] = Agent(pod["address"], pod["ready"] and ready.get(owner, False))
    return Cluster(
        agents,
        ready,
        frozenset(node["labelled"] for node in all_nodes if node["labelled"]),
        volumes,
        (decommissioned or {}).get("data") or {},
    )


def owner_of_pv(pv: Object, installation: Installation) -> str | None:
    """Return the owner of a trimmed PersistentVolume; None if it is another driver's."""
    return owner_of(pv["handle"]) if pv["driver"] == installation.driver else None


class ClusterDiscovery:
    """Implements service.discovery.Discovery over informers: answers from memory."""

    def __init__(self, informers: InformerFactory, installation: Installation) -> None:
        self._installation = installation
        self._pods = informers.for_kind(PODS, installation.namespace, labels=AGENT_LABELS, transform=trim_agent_pod)
        self._nodes = informers.for_kind(NODES, transform=trim_node)
        self._pvs = informers.for_kind(PVS, transform=trim_pv)
        self._decommissioned = informers.for_kind(
            CONFIG_MAPS, installation.namespace, fields=f"metadata.name={installation.decommissioned_nodes}"
        )
        self._informers = (self._pods, self._nodes, self._pvs, self._decommissioned)
        self._cluster: Cluster | None = None
        self._owners: list[str] = []
        self._volume_counts: Counter[str] = Counter()
        for informer in (self._pods, self._nodes, self._decommissioned):
            informer.subscribe(self._on_change)
        self._pvs.subscribe(self._on_pv_change)

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        """Return the endpoint of an owner, or None if the cluster has no such node."""
        return self.cluster().endpoint(owner)

    def owners(self) -> list[str]:
        """Return all owners that have an agent, or should have one, without decommissioned ones."""
        self.cluster()
        return self._owners

    def has_synced(self) -> bool:
        """Return whether all kinds have been read at least once."""
        return not self.unread()

    def unread(self) -> list[str]:
        """Return the kinds that have not been read yet."""
        return [str(informer.kind) for informer in self._informers if not informer.has_synced]

    def is_decommissioned(self, owner: str) -> bool:
        """Return whether the node is decommissioned and has not come back."""
        # The ConfigMap may be read before the pods: an agent that came back would be missed.
        return self.has_synced() and self.cluster().is_decommissioned(owner)

    def cluster(self) -> Cluster:
        """Return all that is known now."""
        if self._cluster is None:
            installation = self._installation
            decommissioned = self._decommissioned.get(installation.decommissioned_nodes, installation.namespace)
            cluster = read(self._pods.all(), self._nodes.all(), self._volume_counts, decommissioned, installation)
            self._cluster = cluster
            self._owners = [owner for owner in cluster.owners() if not cluster.is_decommissioned(owner)]
        return self._cluster

    def _on_pv_change(self, old: Object | None, new: Object | None) -> None:
        """Count volumes one by one: there may be ten thousand, and most calls add or remove one."""
        for pv, by in ((new, 1), (old, -1)):
            if pv is None or (owner := owner_of_pv(pv, self._installation)) is None:
                continue
            self._volume_counts[owner] += by
            if self._volume_counts[owner] == 0:
                del self._volume_counts[owner]
            if self._volume_counts[owner] == max(by, 0):  # its first one, or its last
                self._cluster = None

    def _on_change(self, old: Object | None, new: Object | None) -> None:
        # A node's status is written every few minutes, mostly without a change.
        if old is None or new is None or _without_metadata(old) != _without_metadata(new):
            self._cluster = None


def trim_agent_pod(pod: Object) -> Object:
    """Return what is read of an agent's pod."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    ip = status.get("podIP") or ""
    host = f"[{ip}]" if ":" in ip else ip
    ports = [port for container in spec.get("containers") or [] for port in container.get("ports") or []]
    port = next((port["containerPort"] for port in ports if port.get("name") == "grpc"), AGENT_PORT)
    running = bool(ip) and status.get("phase") not in {"Failed", "Succeeded"}
    return {
        "metadata": trim_metadata(pod),
        "owners": [owner.get("name", "") for owner in pod["metadata"].get("ownerReferences") or []],
        "node": spec.get("nodeName") or "",
        "address": f"{host}:{port}" if running else "",
        "ready": running and _has_condition(status, "Ready"),
        "deleting": "deletionTimestamp" in pod["metadata"],
        "created": pod["metadata"].get("creationTimestamp") or "",
    }


def trim_node(node: Object) -> Object:
    """Return what is read of a Node."""
    return {
        "metadata": trim_metadata(node),
        "labelled": (node["metadata"].get("labels") or {}).get(TOPOLOGY_KEY, ""),
        "ready": _has_condition(node.get("status") or {}, "Ready"),
        "cordoned": bool((node.get("spec") or {}).get("unschedulable")),
    }


def trim_pv(pv: Object) -> Object:
    """Return what is read of a PersistentVolume: of other drivers' the name alone."""
    spec = pv.get("spec") or {}
    csi = spec.get("csi") or {}
    return {
        "metadata": trim_metadata(pv),
        "driver": csi.get("driver") or "",
        "handle": csi.get("volumeHandle") or "",
    }


def _has_condition(status: Object, kind: str) -> bool:
    conditions = status.get("conditions") or []
    return any(condition.get("type") == kind and condition.get("status") == "True" for condition in conditions)


def _without_metadata(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key != "metadata"}


def _precedence(pod: Object) -> tuple[bool, bool, bool, str]:
    """Sort key for several pods of one node, of which the last counts: while a pod is replaced, both exist."""
    return bool(pod["address"]), not pod["deleting"], pod["ready"], pod["created"]

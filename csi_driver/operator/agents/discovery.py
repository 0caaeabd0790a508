"""Where the agents of a Kubernetes cluster are, from mirrors of its nodes, the agents' pods and our PersistentVolumes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from csi_driver.domain.ids import owner_of_node
from csi_driver.domain.routing import TOPOLOGY_KEY, owner_of
from csi_driver.kube.client import Object
from csi_driver.kube.informers import Mirrors
from csi_driver.kube.resources import CONFIG_MAPS, NODES, PODS, PVS
from csi_driver.operator.installation import AGENT_LABELS, Installation
from csi_driver.service.discovery import AgentEndpoint

AGENT_PORT = 9807
"""Of an agent whose pod names no port `grpc`."""


@dataclass(frozen=True, slots=True)
class Agent:
    """The pod that speaks for a node. `ready`: a kubelet that lives has an answer from it.

    A pod of a node that is not ready, or gone, may stay Ready on paper until somebody cleans up.
    """

    address: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the API tells of owners, at one moment. All are keyed by owner; see `owners` for which ones are ours."""

    agents: Mapping[str, Agent]
    nodes: Mapping[str, bool]
    """Whether each Node object is Ready."""
    labelled: frozenset[str]
    volumes: Mapping[str, int]
    """How many of our PersistentVolumes name the owner."""
    noted: Mapping[str, str]
    """Given up by a person, and when."""

    def place(self, owner: str) -> AgentEndpoint | None:
        """Where its agent is, or should be."""
        agent = self.agents.get(owner)
        if agent is None and owner not in self.nodes:
            return None
        return AgentEndpoint(owner, agent.address if agent else "", self.nodes.get(owner, False))

    def given_up(self, owner: str) -> bool:
        """Whether the node was given up, and has not come back by itself."""
        agent = self.agents.get(owner)
        return owner in self.noted and not (agent is not None and agent.ready)

    def owners(self) -> list[str]:
        """All that have, or should have, volumes of ours; those that were given up too."""
        return sorted({*self.labelled, *self.agents, *self.volumes})


def read(
    pods: Iterable[Object],
    nodes: Iterable[Object],
    volumes: Mapping[str, int],
    noted: Object | None,
    ours: Installation,
) -> Cluster:
    """Put together what keep_pod and keep_node made, how many volumes each owner has, and the ConfigMap of the forgotten."""
    known = list(nodes)
    alive = {owner_of_node(node["metadata"]["name"]): node["ready"] for node in known}
    agents = {}
    for pod in sorted((pod for pod in pods if ours.has(pod)), key=_worth):
        owner = owner_of_node(pod["node"])
        agents[owner] = Agent(pod["address"], pod["ready"] and alive.get(owner, False))
    return Cluster(
        agents,
        alive,
        frozenset(node["labelled"] for node in known if node["labelled"]),
        volumes,
        (noted or {}).get("data") or {},
    )


def owner_in(volume: Object, ours: Installation) -> str | None:
    """The owner that a PersistentVolume of ours names, as keep_volume made it."""
    return owner_of(volume["handle"]) if volume["driver"] == ours.driver else None


class ClusterDiscovery:
    """Answers from memory. See service.discovery.Discovery."""

    def __init__(self, mirrors: Mirrors, ours: Installation) -> None:
        self._ours = ours
        self._pods = mirrors.of(PODS, ours.namespace, labels=AGENT_LABELS, keep=keep_pod)
        self._nodes = mirrors.of(NODES, keep=keep_node)
        self._volumes = mirrors.of(PVS, keep=keep_volume)
        self._forgotten = mirrors.of(CONFIG_MAPS, ours.namespace, fields=f"metadata.name={ours.forgotten}")
        self._sources = (self._pods, self._nodes, self._volumes, self._forgotten)
        self._read: Cluster | None = None
        self._owners: list[str] = []
        self._owned: Counter[str] = Counter()
        for mirror in (self._pods, self._nodes, self._forgotten):
            mirror.subscribe(self._changed)
        self._volumes.subscribe(self._counted)

    def endpoint(self, owner: str) -> AgentEndpoint | None:
        """See Discovery."""
        return self.cluster().place(owner)

    def owners(self) -> list[str]:
        """See Discovery."""
        self.cluster()
        return self._owners

    def has_synced(self) -> bool:
        """See Discovery."""
        return not self.unread()

    def unread(self) -> list[str]:
        """The kinds that were not read once yet."""
        return [str(mirror.kind) for mirror in self._sources if not mirror.synced]

    def is_decommissioned(self, owner: str) -> bool:
        """See Discovery."""
        # The note may be read before the agents' pods: the one that came back would not be seen yet.
        return self.has_synced() and self.cluster().given_up(owner)

    def cluster(self) -> Cluster:
        """All that is known now."""
        if self._read is None:
            noted = self._forgotten.get(self._ours.forgotten, self._ours.namespace)
            self._read = read(self._pods.all(), self._nodes.all(), self._owned, noted, self._ours)
            self._owners = [owner for owner in self._read.owners() if not self._read.given_up(owner)]
        return self._read

    def _counted(self, old: Object | None, new: Object | None) -> None:
        """There may be ten thousand volumes, and one comes or goes with most calls: they are never counted anew."""
        for volume, by in ((new, 1), (old, -1)):
            if volume is None or (owner := owner_in(volume, self._ours)) is None:
                continue
            self._owned[owner] += by
            if self._owned[owner] == 0:
                del self._owned[owner]
            if self._owned[owner] == max(by, 0):  # its first one, or its last
                self._read = None

    def _changed(self, old: Object | None, new: Object | None) -> None:
        # A node's status is written every few minutes, and mostly says the same.
        if old is None or new is None or _told(old) != _told(new):
            self._read = None


def keep_pod(pod: Object) -> Object:
    """What is read of an agent's pod."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    ip = status.get("podIP") or ""
    host = f"[{ip}]" if ":" in ip else ip
    ports = [port for one in spec.get("containers") or [] for port in one.get("ports") or []]
    port = next((port["containerPort"] for port in ports if port.get("name") == "grpc"), AGENT_PORT)
    running = bool(ip) and status.get("phase") not in {"Failed", "Succeeded"}
    return {
        "metadata": _identity(pod),
        "owners": [one.get("name", "") for one in pod["metadata"].get("ownerReferences") or []],
        "node": spec.get("nodeName") or "",
        "address": f"{host}:{port}" if running else "",
        "ready": running and _condition(status, "Ready"),
        "leaving": "deletionTimestamp" in pod["metadata"],
        "created": pod["metadata"].get("creationTimestamp") or "",
    }


def keep_node(node: Object) -> Object:
    """What is read of a Node."""
    return {
        "metadata": _identity(node),
        "labelled": (node["metadata"].get("labels") or {}).get(TOPOLOGY_KEY, ""),
        "ready": _condition(node.get("status") or {}, "Ready"),
        "cordoned": bool((node.get("spec") or {}).get("unschedulable")),
    }


def keep_volume(volume: Object) -> Object:
    """What is read of a PersistentVolume; those of other drivers are kept as names alone."""
    spec = volume.get("spec") or {}
    csi = spec.get("csi") or {}
    return {
        "metadata": _identity(volume),
        "driver": csi.get("driver") or "",
        "handle": csi.get("volumeHandle") or "",
    }


def _identity(obj: Object) -> Object:
    wanted = ("name", "namespace", "uid", "resourceVersion")
    return {key: obj["metadata"][key] for key in wanted if key in obj["metadata"]}


def _condition(status: Object, kind: str) -> bool:
    return any(one.get("type") == kind and one.get("status") == "True" for one in status.get("conditions") or [])


def _told(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key != "metadata"}


def _worth(pod: Object) -> tuple[bool, bool, bool, str]:
    """Which of several pods of one node speaks for it, the last: while one is replaced, both are there."""
    return bool(pod["address"]), not pod["leaving"], pod["ready"], pod["created"]

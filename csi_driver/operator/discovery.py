"""Where the agents of a Kubernetes cluster are, from mirrors of its nodes, the agents' pods and our PersistentVolumes."""

from csi_driver.domain.ids import owner_of_node
from csi_driver.domain.routing import TOPOLOGY_KEY, owner_of
from csi_driver.kube.api import Object
from csi_driver.kube.kinds import CONFIG_MAPS, NODES, PODS, VOLUMES
from csi_driver.kube.mirrors import Mirrors
from csi_driver.operator.names import AGENT_LABELS, forgotten_map
from csi_driver.service.discovery import Place

AGENT_PORT = 9807
"""Of an agent whose pod names no port `grpc`."""


class ClusterDiscovery:
    """Answers from memory. See service.discovery.Discovery."""

    def __init__(self, mirrors: Mirrors, namespace: str, release: str, driver: str) -> None:
        self._driver = driver
        self._daemon_set = f"{release}-agent"
        self._pods = mirrors.of(PODS, namespace, labels=AGENT_LABELS, keep=keep_pod)
        self._nodes = mirrors.of(NODES, keep=keep_node)
        self._volumes = mirrors.of(VOLUMES, keep=keep_volume)
        self._forgotten = mirrors.of(CONFIG_MAPS, namespace, fields=f"metadata.name={forgotten_map(release)}")
        self._sources = (self._pods, self._nodes, self._volumes, self._forgotten)
        self._stale = True
        self._places: dict[str, Place] = {}
        self._owners: list[str] = []
        self._given_up: frozenset[str] = frozenset()
        for mirror in self._sources:
            mirror.subscribe(self._changed)

    def place(self, owner: str) -> Place | None:
        """See Discovery."""
        self._refresh()
        return self._places.get(owner)

    def owners(self) -> list[str]:
        """See Discovery."""
        self._refresh()
        return self._owners

    def known(self) -> bool:
        """See Discovery."""
        return all(mirror.synced for mirror in self._sources)

    def forgotten(self, owner: str) -> bool:
        """See Discovery."""
        self._refresh()
        return owner in self._given_up

    def _changed(self, old: Object | None, new: Object | None) -> None:
        # A node's status is written every few minutes, and mostly says the same.
        if old is None or new is None or _told(old) != _told(new):
            self._stale = True

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._stale = False
        agents: dict[str, Object] = {}
        for pod in sorted((pod for pod in self._pods.all() if self._is_agent(pod)), key=_worth):
            agents[owner_of_node(pod["node"])] = pod
        nodes = {owner_of_node(node["metadata"]["name"]): node for node in self._nodes.all()}
        self._places = {
            owner: Place(
                owner,
                agents[owner]["address"] if owner in agents else "",
                owner in nodes and nodes[owner]["ready"],
            )
            for owner in {*agents, *nodes}
        }
        back = {owner for owner, pod in agents.items() if pod["ready"]}
        named = {owner for one in self._forgotten.all() for owner in one.get("data") or {}}
        self._given_up = frozenset(named - back)
        labelled = {node["labelled"] for node in nodes.values() if node["labelled"]}
        handles = (volume["handle"] for volume in self._volumes.all() if volume["driver"] == self._driver)
        recorded = {owner for owner in map(owner_of, handles) if owner is not None}
        self._owners = sorted((labelled | set(agents) | recorded) - self._given_up)

    def _is_agent(self, pod: Object) -> bool:
        # Several releases may share a namespace; node groups have a DaemonSet each, named after the first.
        names = (self._daemon_set, f"{self._daemon_set}-")
        return bool(pod["node"]) and any(one == names[0] or one.startswith(names[1]) for one in pod["owners"])


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

"""The cluster as a whole: up, down, and Tidemark on it, installed by helm as a user would."""

import functools
import http.client
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rig import addons, cgroups, images, network, shared
from rig.control_plane import ControlPlane
from rig.kubectl import Document, Kubectl, KubectlError
from rig.machine import RigError, until
from rig.node import CNI_PLUGINS, Node
from rig.paths import CHART, KUBECONFIG, STATE, programs

NAMESPACE = RELEASE = "tidemark"
COMMANDS = (
    "busybox",
    "conntrack",
    "containerd",
    "ctr",
    "etcd",
    "ip",
    "iptables-restore",
    "nsenter",
    "runc",
    "sysctl",
    "unshare",
)
VALUES: dict[str, Any] = {
    "image": dict(zip(("repository", "tag"), images.TIDEMARK.rsplit(":", 1), strict=True)),
    "poolImage": {"size": "4Gi"},
    "agent": {"overcommit": 12},
}
"""What differs from the default install: the image that was built here, pools that fit on a shared disk, and disks of 10G in them."""


def why_not() -> str:
    """Why a cluster cannot be had here; empty where it can. Programs that are missing are built first."""
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts, control groups and loop devices"
    missing = [name for name in (*COMMANDS, "buildah", "debootstrap") if shutil.which(name) is None]
    if not Path(CNI_PLUGINS, "ptp").exists():
        missing.append(f"{CNI_PLUGINS}/ptp")
    if missing:
        return f"needs {', '.join(missing)}: `sh tests/tools/system-packages.sh cluster image` installs Debian's"
    if not os.access("/dev/loop-control", os.W_OK):
        return "needs /dev/loop-control"
    try:
        programs()
    except subprocess.CalledProcessError:
        return "needs the programs of Kubernetes: `sh tests/tools/kubernetes.sh` does not manage to build them"
    return ""


class Cluster:
    """The control plane and `count` nodes. All that it knows lies in its state directory, so any process can go on."""

    def __init__(self, count: int = 2) -> None:
        self.control_plane = ControlPlane()
        self.nodes = [Node(index, count) for index in range(1, count + 1)]
        self.kubectl = Kubectl()

    @classmethod
    def present(cls) -> "Cluster | None":
        """The cluster of this machine, if one is up."""
        found = cls(shared.nodes())
        return found if found.control_plane.running() else None

    def up(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Bring it up to two and more Ready nodes with all images, and the add-ons; Tidemark is not installed yet."""
        if reason := why_not():
            raise RigError(reason)
        self.down()
        shared.note(len(self.nodes))
        network.make_bridge()
        with ThreadPoolExecutor() as pool:
            built = pool.submit(images.tidemark_archive)
            small = pool.submit(images.write_archive, images.small_images(), STATE / "small-images.tar")
            say("control plane and nodes start")
            self.control_plane.up()
            _all(pool.map(Node.up, self.nodes))
            say("images are imported")
            _all(pool.map(Node.import_images, self.nodes, [small.result()] * len(self.nodes)))
            addons.install(self.kubectl)
            archive = built.result()
            _all(pool.map(Node.import_images, self.nodes, [archive] * len(self.nodes)))
        self.wait_ready()

    def wait_ready(self, seconds: float = 180.0) -> None:
        names = [node.name for node in self.nodes]
        until("all nodes have registered", lambda: len(self.kubectl.items("nodes")) >= len(names), seconds, 0.5)
        self.kubectl.wait("condition=Ready", "node", *names, seconds=seconds)
        self.kubectl.within("kube-system").wait("condition=Available", "deployment", addons.NAME, seconds=seconds)

    def down(self) -> None:
        """Remove it, and all that it had on this machine, also of one that came up in part."""
        count = shared.nodes()
        with ThreadPoolExecutor() as pool:
            _all(pool.map(Node.down, [Node(index, count) for index in range(1, count + 1)]))
        self.control_plane.cut()
        network.remove_bridge()
        cgroups.remove()
        shared.forget()

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def spare(self, node: Node) -> None:
        """Before a test switches the node off: have one of the release's controllers elsewhere.

        Where all of them are on a node that is lost, Kubernetes takes two minutes to have others do their work. Where they
        are is chance: they stay where they went when the scenario before switched off the other node.
        """
        release = self.kubectl.within(NAMESPACE)

        def is_one_elsewhere() -> bool:
            return any(each["spec"].get("nodeName", node.name) != node.name for each in self.living("controller"))

        # One that has yet to start there would be no help.
        self.wait_installed()
        if is_one_elsewhere():
            return
        self.kubectl("cordon", node.name)
        try:
            release.delete("pod", self.living("controller")[0]["metadata"]["name"])
            until(f"a controller is not on {node.name}", is_one_elsewhere, 60)
        finally:
            self.kubectl("uncordon", node.name)
        self.wait_installed()

    def living(self, component: str) -> list[Document]:
        """The release's pods of a component, agent or controller, without those that go or have ended."""
        pods = self.kubectl.within(NAMESPACE).items("pods", f"--selector=app.kubernetes.io/component={component}")
        ended = ("Failed", "Succeeded")
        return [p for p in pods if "deletionTimestamp" not in p["metadata"] and p["status"].get("phase") not in ended]

    def helm(self, *words: object, seconds: float = 300.0) -> str:
        """Run helm in the release's namespace. Raises RigError with what it said."""
        argv = [str(programs() / "helm"), f"--kubeconfig={KUBECONFIG}", f"--namespace={NAMESPACE}", *map(str, words)]
        homes = {f"HELM_{name}_HOME": str(STATE / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        run = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, **homes},
        )
        if run.returncode:
            raise RigError(f"helm {' '.join(map(str, words))}: {run.stderr.strip()}")
        return run.stdout

    def install(self, values: Mapping[str, Any] | None = None) -> None:
        """`helm install`, and wait until the driver is registered on every node."""
        self.helm("install", RELEASE, CHART, "--create-namespace", "--values", self.values_file(values))
        self.wait_installed()

    def values_file(self, values: Mapping[str, Any] | None = None) -> Path:
        path = STATE / "values.json"
        path.write_text(json.dumps({**VALUES, **(values or {})}))
        return path

    def wait_installed(self, seconds: float = 240.0) -> None:
        """Wait until agents and controllers are ready and each node's kubelet knows the driver.

        They are asked themselves, too: of a container that was killed, or a node that was off for some seconds, the API
        says for a while what was. And each agent that starts is registered again: until it says that it is, CSINode has the
        driver still, and loses it once more for a moment.
        """
        release = self.kubectl.within(NAMESPACE)
        release("rollout", "status", "daemonset/tidemark-agent", f"--timeout={seconds:.0f}s", seconds=seconds + 10)
        release(
            "rollout", "status", "deployment/tidemark-controller", f"--timeout={seconds:.0f}s", seconds=seconds + 10
        )
        until("controllers answer", lambda: all(map(_answer, self.living("controller"))), seconds, 0.5)
        until("agents are registered", self._agents_are_registered, seconds, 0.5)
        for node in self.nodes:
            self.kubectl.until(_knows_driver, "csinode", node.name, seconds=seconds)

    def _agents_are_registered(self) -> bool:
        # One that has no node yet has none in its spec.
        registered = {
            each["spec"].get("nodeName") for each in self.living("agent") if "registered: yes" in _answer(each)
        }
        return registered >= {node.name for node in self.nodes}

    def described(self, namespace: str) -> str:
        """What somebody wants to see who looks for the cause of a failure: objects, events and logs."""
        here, release = self.kubectl.within(namespace), self.kubectl.within(NAMESPACE)
        kinds = "pods,pvc,volumesnapshots,volumesnapshotcontents,pv,nodes"
        logs = [
            _told("objects", lambda: here("get", kinds, "--output=wide")),
            _told("events", lambda: "\n".join(here.events()[-60:])),
            _told("tidemark", lambda: release("get", "pods", "--output=wide")),
            _told("tidemark's events", lambda: "\n".join(release.events()[-30:])),
        ]
        for pod in release.items("pods"):
            name, spec = pod["metadata"]["name"], pod["spec"]
            for container in (each["name"] for each in (*spec.get("initContainers", ()), *spec["containers"])):
                logs.append(_told(f"{name} {container}", functools.partial(release.logs, name, container, "--tail=60")))
        return "\n".join(logs)


def _told(title: str, ask: Callable[[], str]) -> str:
    try:
        return f"--- {title}\n{ask()}"
    except KubectlError as error:
        return f"--- {title}\n{error}"


def _answer(pod: Document) -> str:
    """What one of the release's pods says to a readiness probe; nothing where it is not ready or not there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{pod['status'].get('podIP')}:9808/readyz", timeout=5) as answer:
            return str(answer.read().decode())
    except (OSError, http.client.HTTPException):
        return ""


def _knows_driver(csi_node: dict[str, Any]) -> bool:
    return any(driver["name"] == "csi.tidemark.dev" for driver in csi_node["spec"].get("drivers") or [])


def _all(results: Iterable[object]) -> None:
    """Have the first exception of `map` raised, and all calls ended."""
    for _ in results:
        pass

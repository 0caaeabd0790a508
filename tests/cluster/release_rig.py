"""What the scenarios of releases share: a writer that shows every line that is lost, and helm's steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rig.cluster import NAMESPACE, RELEASE, Cluster
from rig.kubectl import Kubectl, is_ready
from rig.objects import claim, pod, snapshot
from rig.paths import CHART

COUNT = "n=0; while :; do n=$((n + 1)); echo $n >>/disk/log; sync /disk/log; sleep 0.05; done"
"""A line at a time, each made durable before the next: a disk that stops for long, or loses one, shows."""


AMBIENT = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "NO_PROXY": "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/nowhere",
    "SSL_CERT_FILE": "/nowhere",
    "LANG": "de_DE.ISO-8859-1",
}
"""What a cluster may put into every pod: a proxy that leads out of it, and what other programs are told."""


def lines(kubectl: Kubectl) -> list[int]:
    """What the writer has written so far. Its pod is the first one still, and nothing is missing between the lines."""
    container = kubectl.get("pod", "writer")["status"]["containerStatuses"][0]
    assert container["restartCount"] == 0, container
    assert "running" in container["state"], container
    return counted(kubectl.sh("writer", "cat /disk/log"))


def counted(log: str) -> list[int]:
    """The lines of a log, of which none is missing."""
    found = [int(line) for line in log.split()]
    assert found == list(range(1, len(found) + 1))
    return found


def goes_on(kubectl: Kubectl) -> None:
    """Wait until the writer has written more than it had."""
    had = lines(kubectl)[-1]
    kubectl.sh("writer", f"while [ $(tail -n 1 /disk/log) -le {had} ]; do sleep 0.1; done", seconds=30)


def agents(cluster: Cluster) -> set[str]:
    release = cluster.kubectl.within(NAMESPACE)
    selector = "--selector=app.kubernetes.io/component=agent"
    return {each["metadata"]["uid"] for each in release.items("pods", selector)}


def cut(kubectl: Kubectl, name: str) -> int:
    """A snapshot of the disk as it is now; how many lines were there before it at least."""
    had = lines(kubectl)[-1]
    kubectl.apply(snapshot(name, "disk"))
    kubectl.until(is_ready, "volumesnapshot", name)
    return had


def restored(kubectl: Kubectl, name: str, had: int) -> None:
    """A new disk from that snapshot holds what was there."""
    kubectl.apply(claim(f"of-{name}", snapshot=name), pod(f"reads-{name}", {"/disk": f"of-{name}"}))
    kubectl.ready(f"reads-{name}")
    assert len(counted(kubectl.sh(f"reads-{name}", "cat /disk/log"))) >= had


def helm_upgrade(cluster: Cluster, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> None:
    cluster.helm("upgrade", RELEASE, chart, "--values", cluster.values_file(values))


def upgrade(cluster: Cluster, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> None:
    helm_upgrade(cluster, values, chart)
    cluster.wait_installed()

"""The life of the release, by helm: an upgrade, the way back, and an uninstallation disturb no disk that is in use."""

from typing import Any

import pytest
from rig.cluster import NAMESPACE, RELEASE, Cluster
from rig.kubectl import Kubectl, is_ready
from rig.machine import RigError
from rig.objects import claim, pod, snapshot
from rig.paths import CHART

COUNT = "n=0; while :; do n=$((n + 1)); echo $n >>/disk/log; sync /disk/log; sleep 0.05; done"
"""A line at a time, each made durable before the next: a disk that stops for long, or loses one, shows."""


def lines(kubectl: Kubectl) -> list[int]:
    """What the writer has written so far. Its pod is the first one still, and nothing is missing between the lines."""
    container = kubectl.get("pod", "writer")["status"]["containerStatuses"][0]
    assert container["restartCount"] == 0, container
    assert "running" in container["state"], container
    found = [int(line) for line in kubectl.sh("writer", "cat /disk/log").split()]
    assert found == list(range(1, len(found) + 1))
    return found


def goes_on(kubectl: Kubectl) -> None:
    """Wait until the writer has written more than it had."""
    had = lines(kubectl)[-1]
    kubectl.sh("writer", f"while [ $(tail -n 1 /disk/log) -le {had} ]; do sleep 0.1; done", seconds=30)


AMBIENT = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "NO_PROXY": "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/nowhere",
    "SSL_CERT_FILE": "/nowhere",
    "LANG": "de_DE.ISO-8859-1",
}
"""What a cluster may put into every pod: a proxy that leads out of it, and what other programs are told."""


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
    found = [int(line) for line in kubectl.sh(f"reads-{name}", "cat /disk/log").split()]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= had


def upgrade(cluster: Cluster, values: dict[str, Any]) -> None:
    cluster.helm("upgrade", RELEASE, CHART, "--values", cluster.values_file(values))
    cluster.wait_installed()


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_an_upgrade_and_the_way_back_disturb_nothing(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl.apply(claim("disk"), pod("writer", ["disk"], script=COUNT))
    kubectl.ready("writer")
    before = agents(cluster)
    ambient = [{"name": name, "value": value} for name, value in AMBIENT.items()]
    agent = {"freezeDeadline": 4, "extraEnv": ambient}
    upgrade(cluster, {"agent": agent, "controller": {"extraEnv": ambient}, "logFormat": "console"})
    upgraded = agents(cluster)
    assert not before & upgraded, "the upgrade has replaced the agents"
    goes_on(kubectl)
    restored(kubectl, "upgraded", cut(kubectl, "upgraded"))
    cluster.helm("rollback", RELEASE)
    cluster.wait_installed()
    assert not upgraded & agents(cluster)
    goes_on(kubectl)
    restored(kubectl, "rolled-back", cut(kubectl, "rolled-back"))


@pytest.mark.slow(seconds=120)
@pytest.mark.disturbs
@pytest.mark.timeout(600)
def test_an_uninstallation_is_refused_or_forced_and_the_next_one_finds_the_disks(
    cluster: Cluster, kubectl: Kubectl
) -> None:
    kubectl.apply(claim("disk"), pod("writer", ["disk"], script=COUNT))
    kubectl.ready("writer")
    kept = cut(kubectl, "kept")
    before = agents(cluster)
    named = r"(?s)\d+ PersistentVolumes? of csi\.tidemark\.dev.*\d+ VolumeSnapshotContents? of csi\.tidemark\.dev"
    with pytest.raises(RigError, match=named) as refused:
        cluster.helm("uninstall", RELEASE)
    assert agents(cluster) == before, "a refused uninstallation has removed nothing"
    goes_on(kubectl)
    told = str(refused.value)
    cluster.helm(*told[told.index("helm rollback") :].partition("`")[0].split()[1:])

    upgrade(cluster, {"uninstall": {"force": True}})
    cluster.helm("uninstall", RELEASE, "--wait")
    pods = "--selector=app.kubernetes.io/component in (agent, controller)"
    cluster.kubectl.within(NAMESPACE)("wait", "--for=delete", "pod", pods, "--timeout=90s", seconds=100)
    goes_on(kubectl)
    cluster.install()
    goes_on(kubectl)
    restored(kubectl, "kept", kept)
    restored(kubectl, "installed-again", cut(kubectl, "installed-again"))

    # The pod goes and comes back: its disk is mounted by agents that did not know it.
    kubectl.delete("pod", "writer")
    kubectl.apply(pod("reader", ["disk"]))
    kubectl.ready("reader")
    found = [int(line) for line in kubectl.sh("reader", "cat /disk/log").split()]
    assert found == list(range(1, len(found) + 1))

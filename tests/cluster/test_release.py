"""The end of the release, by helm: an uninstallation is refused or forced, and disturbs no disk that is in use."""

import pytest
from release_rig import COUNT, agents, counted, cut, goes_on, restored, upgrade
from rig.cluster import NAMESPACE, RELEASE, Cluster
from rig.kubectl import Kubectl
from rig.machine import RigError
from rig.objects import claim, pod


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
    message = str(refused.value)
    cluster.helm(*message[message.index("helm rollback") :].partition("`")[0].split()[1:])

    upgrade(cluster, {"uninstall": {"force": True}})
    cluster.helm("uninstall", RELEASE, "--wait")
    pods = "--selector=app.kubernetes.io/component in (agent, controller)"
    cluster.kubectl.within(NAMESPACE)("wait", "--for=delete", "pod", pods, "--timeout=180s", seconds=190)
    goes_on(kubectl)
    cluster.install()
    goes_on(kubectl)
    restored(kubectl, "kept", kept)
    restored(kubectl, "installed-again", cut(kubectl, "installed-again"))

    # The pod goes and comes back: its disk is mounted by agents that did not know it.
    kubectl.delete("pod", "writer")
    kubectl.apply(pod("reader", ["disk"]))
    kubectl.ready("reader")
    counted(kubectl.sh("reader", "cat /disk/log"))

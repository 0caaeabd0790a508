"""Ordinary life shows no Warning: `kubectl describe` of a claim that was used and deleted as claims are has nothing to explain."""

import json
import re
from collections.abc import Iterable

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import Kubectl, is_ready
from rig.objects import claim, pod, snapshot

USERS = [f"user-{number}" for number in range(4)]
PATIENCE_MS = 2000
"""What has taken longer is no short operation, and whoever meets it may be told so (csi_driver/service/locks.py)."""
BUSY = ("is in progress on the same object", "unpublish and unstage it first")
NOT_OURS = {"default-scheduler"}
"""Says of pods why they wait, also where that is as it should be: while a claim is bound, or led to its node."""
CONFLICT = "the object has been modified"
"""Two of Kubernetes' own controllers have written one object at once, and one of them tries again."""


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(420)
def test_disks_that_live_and_go_with_their_pods_leave_no_warning(cluster: Cluster, kubectl: Kubectl) -> None:
    """Made, written, cut in use, restored, copied, and deleted together with the pods that use them, all at once."""
    kubectl.apply(
        *(claim(f"disk-{name}", "64Mi") for name in USERS),
        *(claim(f"raw-{name}", "64Mi", block=True) for name in USERS[:2]),
        *(pod(name, {"/disk": f"disk-{name}"}, devices={"/dev/raw": f"raw-{name}"}) for name in USERS[:2]),
        *(pod(name, {"/disk": f"disk-{name}"}) for name in USERS[2:]),
    )
    kubectl.ready(*USERS)
    for name in USERS:
        kubectl.sh(name, f"echo {name} >/disk/file; sync")
    cuts = {f"cut-{name}": f"disk-{name}" for name in USERS[1:]}
    kubectl.apply(*(snapshot(cut, of) for cut, of in cuts.items()))
    for cut in cuts:
        kubectl.until(is_ready, "volumesnapshot", cut)
    kubectl.apply(
        claim("disk-restored", "64Mi", snapshot=f"cut-{USERS[1]}"),
        claim("disk-copied", "64Mi", clone=f"disk-{USERS[2]}"),
        pod("restored", {"/disk": "disk-restored"}),
        pod("copied", {"/disk": "disk-copied"}),
    )
    kubectl.ready("restored", "copied", seconds=150)
    assert kubectl.sh("restored", "cat /disk/file") == USERS[1]
    assert kubectl.sh("copied", "cat /disk/file") == USERS[2]

    claims = [found["metadata"]["name"] for found in kubectl.items("pvc")]
    # Those of other tests may have no claim.
    every = kubectl.items("pv")
    disks = [found for found in every if found["spec"].get("claimRef", {}).get("namespace") == kubectl.namespace]
    volumes = [found["metadata"]["name"] for found in disks]
    contents = [found["status"]["boundVolumeSnapshotContentName"] for found in kubectl.items("volumesnapshots")]
    # A warning about a pod names the disk.
    names = [
        {found["metadata"]["name"], found["spec"]["csi"]["volumeHandle"], found["spec"]["claimRef"]["name"]}
        for found in disks
    ]
    names += [
        {found["metadata"]["name"], found["status"]["snapshotHandle"], found["spec"]["volumeSnapshotRef"]["name"]}
        for found in kubectl.items("volumesnapshotcontent")
        if found["metadata"]["name"] in contents
    ]
    assert len(volumes) == len(claims) == 8
    everything = [f"pod/{name}" for name in (*USERS, "restored", "copied")]
    everything += [f"pvc/{name}" for name in claims] + [f"volumesnapshot/{cut}" for cut in cuts]
    kubectl("delete", "--wait=false", *everything)
    kubectl.wait("delete", "pv", *volumes, seconds=180)
    kubectl.wait("delete", "volumesnapshotcontent", *contents, seconds=90)

    lines = warnings(cluster, kubectl, [*claims, *volumes, *cuts, *contents])
    slow = slow_calls(cluster)
    assert unexplained(lines, slow, names) == []


def test_a_slow_call_explains_refusals_of_its_own_disk_alone() -> None:
    names = [{"pvc-1", "n1:default:ab", "disk-user-1"}, {"pvc-2", "n1:default:cd", "raw-user-1"}]
    slow = ['{"method": "csi.v1.Node/NodeUnstageVolume", "ms": 2100.5, "volume_id": "n1:default:ab"}']
    busy = "NodeUnstageVolume of n1:default:ab is in progress on the same object: try again"
    mine = f"PersistentVolume pvc-1: VolumeFailedDelete {busy} (provisioner)"
    others = [
        mine.replace("pvc-1", "pvc-2").replace(":ab", ":cd"),
        f"PersistentVolumeClaim disk-user-10: ProvisioningFailed {busy.replace(':ab', ':abc')} (provisioner)",
        "PersistentVolume pvc-1: VolumeFailedDelete no space is left (provisioner)",
    ]
    assert unexplained([mine, *others], slow, names) == others
    assert unexplained([mine, *others], [], names) == [mine, *others]


def warnings(cluster: Cluster, kubectl: Kubectl, names: list[str]) -> list[str]:
    """What events report about these objects, and about pods because of them. Of objects without a namespace events lie in `default`."""
    found = []
    for event in [*kubectl.items("events"), *cluster.kubectl.within("default").items("events")]:
        about, message = event["involvedObject"], event.get("message", "")
        reporter = event.get("reportingComponent") or (event.get("source") or {}).get("component", "")
        ours = about["name"] in names or (
            about.get("namespace") == kubectl.namespace and any(name in message for name in names)
        )
        if event["type"] == "Warning" and ours and reporter not in NOT_OURS and CONFLICT not in message:
            found.append(f"{about['kind']} {about['name']}: {event['reason']} {message} ({reporter})")
    return found


def slow_calls(cluster: Cluster) -> list[str]:
    """The lines of agents about calls that took so long that nobody need wait for them."""
    release = cluster.kubectl.within(NAMESPACE)
    found = []
    for agent in release.items("pods", "--selector=app.kubernetes.io/component=agent"):
        for line in release.logs(agent["metadata"]["name"], "agent", "--since=15m").splitlines():
            if line.startswith("{") and json.loads(line).get("ms", 0) >= PATIENCE_MS:
                found.append(line)
    return found


def unexplained(lines: list[str], slow: list[str], names: list[set[str]]) -> list[str]:
    """The warnings but for refusals that a slow call explains: those about its disk or snapshot, by its `names`."""
    busy = [of for of in names if any(_mentions(line, of) for line in slow)]
    if busy:
        print(f"this machine was too busy to judge refusals of {busy} by: {slow}")
    return [
        each for each in lines if not (any(word in each for word in BUSY) and any(_mentions(each, of) for of in busy))
    ]


def _mentions(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names is there as a whole: `disk-1` is not in `disk-10`."""
    return any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) for name in names)

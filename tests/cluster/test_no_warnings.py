"""Ordinary life shows no Warning: `kubectl describe` of a claim that was used and deleted as claims are has nothing to explain."""

import json
from typing import Any

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
    volumes = {
        found["metadata"]["name"]: found["spec"]["csi"]["volumeHandle"]
        for found in kubectl.items("pv")
        if found["spec"]["claimRef"]["namespace"] == kubectl.namespace
    }
    contents = [found["status"]["boundVolumeSnapshotContentName"] for found in kubectl.items("volumesnapshots")]
    assert len(volumes) == len(claims) == 8
    everything = [f"pod/{name}" for name in (*USERS, "restored", "copied")]
    everything += [f"pvc/{name}" for name in claims] + [f"volumesnapshot/{cut}" for cut in cuts]
    kubectl("delete", "--wait=false", *everything)
    kubectl.wait("delete", "pv", *volumes, seconds=180)
    kubectl.wait("delete", "volumesnapshotcontent", *contents, seconds=90)

    told = warnings(cluster, kubectl, [*claims, *volumes, *cuts, *contents])
    if slow := slow_calls(cluster, list(volumes.values())):
        print(f"this machine was too busy to judge refusals by: {slow}")
        told = [each for each in told if not any(word in each for word in BUSY)]
    assert told == []


def warnings(cluster: Cluster, kubectl: Kubectl, names: list[str]) -> list[str]:
    """What was told about these objects, and about pods because of them. Of objects without a namespace events lie in `default`."""
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


def slow_calls(cluster: Cluster, handles: list[str]) -> list[dict[str, Any]]:
    """What agents have written about calls on these disks that took so long that nobody need wait for them."""
    release = cluster.kubectl.within(NAMESPACE)
    found = []
    for agent in release.items("pods", "--selector=app.kubernetes.io/component=agent"):
        for line in release.logs(agent["metadata"]["name"], "agent", "--since=15m").splitlines():
            if any(handle in line for handle in handles) and line.startswith("{"):
                call = json.loads(line)
                if call.get("ms", 0) >= PATIENCE_MS:
                    found.append({key: call.get(key) for key in ("method", "code", "ms", "volume_id")})
    return found

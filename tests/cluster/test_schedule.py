"""Schedules of every minute on the cluster: single and grouped ones, a restore that retention waits for, a suspension."""

import time
from typing import Any

import pytest
from rig.cluster import Cluster
from rig.kills import agent_on, kill_containers, reconciling
from rig.kubectl import Kubectl, KubectlError
from rig.objects import claim, pod, storage_class

from csi_driver.domain.timestamps import parse_timestamp

# A line is begun on the second disk when it is durable on the first one, and the first disk's file is marked before each.
WRITE = """
n=0
while :; do
    n=$((n + 1))
    echo $n >>/log/lines
    sync -d /log/lines
    echo $n >>/data/lines
    sync -d /data/lines
done
"""


def schedule(name: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    """Every minute, for the claims with these labels."""
    wanted = {"cron": "* * * * *", "selector": {"matchLabels": labels}, **spec}
    return {
        "apiVersion": "tidemark.dev/v1alpha1",
        "kind": "SnapshotSchedule",
        "metadata": {"name": name},
        "spec": wanted,
    }


def times(kubectl: Kubectl, name: str, kind: str = "volumesnapshot") -> list[str]:
    """The nominal times of what a schedule has made, oldest first."""
    said = [each["metadata"].get("annotations", {}) for each in kubectl.items(kind)]
    return sorted(a["tidemark.dev/scheduled-for"] for a in said if a.get("tidemark.dev/schedule") == name)


def ran(kubectl: Kubectl, name: str, more: int, seconds: float = 200.0) -> str:
    """Wait for so many more runs to succeed; the nominal time of the last."""
    last = ""
    for _ in range(more):
        before = kubectl.get("snapshotschedule", name).get("status", {}).get("lastSuccessfulTime", "")
        done = kubectl.until(
            lambda found, before=before: found.get("status", {}).get("lastSuccessfulTime", "") > before,
            "snapshotschedule",
            name,
            seconds,
        )
        last = done["status"]["lastSuccessfulTime"]
    return last


@pytest.mark.slow(seconds=420)
@pytest.mark.timeout(900)
def test_every_minute(kubectl: Kubectl) -> None:
    kubectl.apply(
        claim("one", "32Mi", labels={"app": "single"}),
        claim("never-bound", "32Mi", labels={"app": "single"}),
        pod("one", {"/disk": "one"}, script="echo first >/disk/file; sync; sleep infinity"),
        *(claim(name, "64Mi", labels={"app": "pair"}) for name in ("log", "data")),
        pod("writer", ["log", "data"], script=WRITE),
    )
    kubectl.ready("one", "writer")
    kubectl.apply(
        schedule("single", {"app": "single"}, retention={"keepLast": 2}),
        schedule("pair", {"app": "pair"}, grouped=True, retention={"keepLast": 1}),
        schedule("paused", {"app": "single"}, suspend=True),
    )
    ran(kubectl, "single", 1)
    oldest = times(kubectl, "single")[0]
    kept = next(
        each["metadata"]["name"] for each in kubectl.items("volumesnapshot") if _for(each) == ("single", oldest)
    )
    # Somebody restores from it, into a class that is not there yet: the snapshot is in use until the claim is bound.
    later = f"later-{kubectl.namespace}"
    kubectl.apply(claim("restored", "32Mi", snapshot=kept, storage_class=later))
    kubectl.sh("one", "echo second >/disk/file; sync")
    ran(kubectl, "single", 3)
    kubectl.until(lambda found: found["status"]["snapshots"] == 3, "snapshotschedule", "single", seconds=150)
    assert times(kubectl, "single")[0] == oldest
    kubectl.apply(storage_class(later), pod("reader", {"/disk": "restored"}))
    try:
        kubectl.ready("reader")
    finally:
        kubectl.delete("storageclass", later)
    assert kubectl.sh("reader", "cat /disk/file") == "first"
    kubectl.wait("delete", "volumesnapshot", kept, seconds=150)
    assert oldest not in times(kubectl, "single")

    # Each minute there is a run under way for a while, and one snapshot more until retention has seen it.
    def between_runs(found: dict[str, Any]) -> bool:
        return found["status"]["snapshots"] == 2 and "run" not in found["status"]

    status = kubectl.until(between_runs, "snapshotschedule", "single", seconds=150)["status"]
    skipped = {each["name"]: each.get("skipped", "") for each in status["claims"]}
    assert skipped == {"never-bound": "it is not bound", "one": ""}
    conditions = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
    assert conditions == {
        "Ready": ("True", "Scheduled"),
        "ClaimsSelected": ("False", "ClaimsSkipped"),
        "Complete": ("True", "AllReady"),
    }
    shown = kubectl("get", "snapshotschedule", "single", "--no-headers").split()
    assert shown[:9] == ["single", *"* * * * * UTC".split(), "false", "Scheduled"]

    _both_disks_are_of_one_moment(kubectl)
    _nothing_is_made_up_for_after_a_suspension(kubectl)
    # Its snapshots outlive the schedule.
    at_rest(kubectl, "single", "volumesnapshot", 2)
    kept_on = times(kubectl, "single")
    kubectl.delete("snapshotschedule", "single")
    assert times(kubectl, "single") == kept_on
    assert len(kept_on) == 2


def at_rest(kubectl: Kubectl, name: str, kind: str, count: int) -> None:
    """Suspend a schedule, and wait until it has heard of that, ended its run, and retention has left so many."""
    kubectl("patch", "snapshotschedule", name, "--type=merge", '--patch={"spec": {"suspend": true}}')

    def rests(found: dict[str, Any]) -> bool:
        status = found["status"]
        heard = status["conditions"][0]["reason"] == "Suspended" and "run" not in status
        return heard and len(times(kubectl, name, kind)) == count

    kubectl.until(rests, "snapshotschedule", name, seconds=150)


def _both_disks_are_of_one_moment(kubectl: Kubectl) -> None:
    """One group is kept, and holds the two disks as of one moment; only groups were ever deleted, members went with them."""
    at_rest(kubectl, "pair", "volumegroupsnapshot", 1)
    (group,) = (each["metadata"]["uid"] for each in kubectl.items("volumegroupsnapshot"))
    # Of this group: those of the one before may be there yet, until Kubernetes collects what has lost its owner.
    members = {
        each["spec"]["source"]["persistentVolumeClaimName"]: each["metadata"]["name"]
        for each in kubectl.items("volumesnapshot")
        if group in (owner["uid"] for owner in each["metadata"].get("ownerReferences", ()))
    }
    assert sorted(members) == ["data", "log"]
    kubectl.apply(
        *(claim(f"again-{of}", "64Mi", snapshot=member) for of, member in members.items()),
        pod("again", {f"/{of}": f"again-{of}" for of in members}),
    )
    kubectl.ready("again")
    log, data = (kubectl.sh("again", f"cat /{of}/lines").splitlines() for of in ("log", "data"))
    assert log[: len(data)] == data
    assert len(log) - len(data) in (0, 1), "the two disks were not cut at one moment"


def _nothing_is_made_up_for_after_a_suspension(kubectl: Kubectl) -> None:
    assert times(kubectl, "paused") == []
    assert kubectl.get("snapshotschedule", "paused")["status"]["conditions"][0]["reason"] == "Suspended"
    resumed = int(time.time())
    kubectl("patch", "snapshotschedule", "paused", "--type=merge", '--patch={"spec": {"suspend": false}}')
    ran(kubectl, "paused", 1)
    made = [parse_timestamp(when) or 0 for when in times(kubectl, "paused")]
    # Where a run takes long, the next minute's may have begun by now.
    assert len(set(made)) == len(made) > 0
    assert made[0] > resumed - 5


def _for(snapshot: dict[str, Any]) -> tuple[str, str]:
    said = snapshot["metadata"].get("annotations", {})
    return said.get("tidemark.dev/schedule", ""), said.get("tidemark.dev/scheduled-for", "")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"every": "1h"}, "set exactly one of cron and every"),
        ({"claimName": "x"}, "set exactly one of selector and claimName"),
        ({"retention": {"keepLast": 9}, "maxSnapshotsPerVolume": 9}, "keepLast must be below"),
        ({"template": {"labels": {"tidemark.dev/keep": "x"}}}, "cannot be set by a template"),
        ({"template": {"annotations": {"snapshot.storage.kubernetes.io/x": "x"}}}, "cannot be set by a template"),
        ({"volumeGroupSnapshotClassName": "x"}, "set grouped"),
        ({"grouped": True, "volumeSnapshotClassName": "x"}, "not grouped"),
        ({"startingDeadline": "soon"}, "startingDeadline"),
    ],
)
def test_a_spec_that_the_api_refuses(kubectl: Kubectl, spec: dict[str, Any], why: str) -> None:
    with pytest.raises(KubectlError, match=why):
        kubectl.create(schedule("bad", {"app": "x"}, **spec))


@pytest.mark.slow(seconds=400)
@pytest.mark.disturbs
@pytest.mark.timeout(900)
def test_a_node_that_is_away_holds_up_nobody_else(cluster: Cluster, kubectl: Kubectl) -> None:
    """And the operator's process is killed on the way: the next one goes on, and nothing is made twice."""
    near, far = cluster.nodes[:2]
    cluster.spare(far)
    for name, node in (("near", near), ("far", far)):
        kubectl.apply(claim(name, "32Mi", labels={"app": "x"}), pod(name, {"/disk": name}, node=node.name))
    kubectl.ready("near", "far")
    kubectl.apply(schedule("s", {"app": "x"}, retention={"keepLast": 100}))
    ran(kubectl, "s", 1)
    agent = agent_on(cluster, far)
    far.hold("kubelet")  # so that it does not start the agent again
    try:
        kill_containers(cluster, agent)
        before = len(_of(kubectl, "near"))
        kill_containers(cluster, reconciling(cluster))
        kubectl.until(lambda _: len(_of(kubectl, "near")) >= before + 2, "snapshotschedule", "s", 200)
        # The near one's is not ready either for the moment that it takes.
        kubectl.until(lambda _: _waiting(kubectl) == ["far"], "snapshotschedule", "s")
    finally:
        far.resume("kubelet")
        cluster.wait_ready()
        cluster.wait_installed()
    # The snapshotter tries the far one's again after as long as it has tried in vain, and then a whole run is waited for.
    ran(kubectl, "s", 1, 360)
    for name in ("near", "far"):
        made = _of(kubectl, name)
        assert len(made) == len(set(made))
    minutes = [(parse_timestamp(when) or 0) // 60 for when in _of(kubectl, "near")]
    assert minutes == list(range(minutes[0], minutes[0] + len(minutes))), "a minute was left out"


def _waiting(kubectl: Kubectl) -> list[str]:
    """The claims of the snapshots that are not ready."""
    return [
        each["spec"]["source"]["persistentVolumeClaimName"]
        for each in kubectl.items("volumesnapshot")
        if not each.get("status", {}).get("readyToUse")
    ]


def _of(kubectl: Kubectl, claim_name: str) -> list[str]:
    """The nominal times of a claim's snapshots that are ready."""
    return sorted(
        each["metadata"]["annotations"]["tidemark.dev/scheduled-for"]
        for each in kubectl.items("volumesnapshot")
        if each["spec"]["source"].get("persistentVolumeClaimName") == claim_name
        and each.get("status", {}).get("readyToUse")
    )

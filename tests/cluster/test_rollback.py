"""A rollback as users see it: the example of the introduction, pods that keep a disk in use, and who may touch what."""

import functools
import json
import subprocess
import sys

import pytest
from rig.cluster import Cluster
from rig.kubectl import Kubectl, KubectlError
from rig.machine import until
from rig.objects import SNAPSHOT_API, claim, pod, snapshot
from rig.paths import KUBECONFIG
from rollback_rig import ask, completed, cut, ended, make, read, read_in, reason_of, refused, using, write


@pytest.mark.slow(seconds=60)
def test_the_example_from_end_to_end(kubectl: Kubectl) -> None:
    """Blocks d1 and d2, s1; d3 and d4, s2; a disk from s1 elsewhere; back to s1, forth to s2, and to what was before."""
    make(kubectl)
    with using(kubectl) as name:
        kubectl.sh(name, "echo d1 >/v1/1; echo d2 >/v1/2; sync")
        cut(kubectl, "s1")
        kubectl.sh(name, "echo d3 >/v1/2; echo d4 >/v1/3; sync")
        cut(kubectl, "s2")
        kubectl.sh(name, "echo d5 >/v1/1; sync")
        kubectl.apply(claim("w", snapshot="s1"), pod("other", ["w"]))
        kubectl.ready("other")
        assert read_in(kubectl, "other", "w") == {"1": "d1", "2": "d2"}
    first = completed(kubectl, "to-s1", "s1")
    assert read(kubectl) == {"1": "d1", "2": "d2"}
    completed(kubectl, "to-s2", "s2")
    assert read(kubectl) == {"1": "d1", "2": "d3", "3": "d4"}
    completed(kubectl, "to-before", first["safetySnapshotName"])
    assert read(kubectl) == {"1": "d5", "2": "d3", "3": "d4"}
    claimed = f"--claim={kubectl.namespace}/v1"
    output = tidemark("rollback", claimed, "--snapshot=s1", "--name=to-s1-again", f"--kubeconfig={KUBECONFIG}")
    assert "Completed: the volume has the content of VolumeSnapshot s1" in output
    assert read(kubectl) == {"1": "d1", "2": "d2"}

    refused(kubectl, "another", "s1", "SnapshotOfOtherVolume", "/w", "/s1", "dataSource", of="w")
    assert read_in(kubectl, "other", "w") == {"1": "d1", "2": "d2"}
    # A snapshot that is deleted goes when its content has gone.
    safeties = functools.partial(kubectl.items, "volumesnapshots", "--selector=tidemark.dev/safety")
    until("beyond keepSafety they are gone", lambda: len(safeties()) <= 3, 60, 0.5)
    assert len(safeties()) == 3
    shown = kubectl("get", "volumerollbacks")
    assert "to-s1-again" in shown
    assert "RolledBack" in shown
    events = kubectl.events("v1")
    assert any(line.startswith("RolledBack VolumeRollback to-s1:") for line in events), events


def tidemark(*argv: str) -> str:
    """Our own command, as a person on any machine types it."""
    command = [sys.executable, "-m", "csi_driver.cli.main", *argv]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_pod_is_waited_for_by_name_and_nothing_is_refused_meanwhile(kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    with using(kubectl) as name:
        ask(kubectl, "back", "s1")
        waiting = kubectl.until(lambda made: reason_of(made) == "VolumeInUse", "volumerollback", "back")
        assert waiting["status"]["phase"] == "WaitingForRelease"
        assert (
            f"pod writer: delete it (kubectl -n {kubectl.namespace} delete pod writer)" in waiting["status"]["message"]
        )
        assert not waiting["metadata"].get("finalizers")
        kubectl.sh(name, "echo new >/v1/a; echo late >/v1/b; sync")
    status = ended(kubectl, "back")
    assert status["phase"] == "Completed"
    assert read(kubectl) == {"a": "old"}
    kubectl.apply(claim("kept", snapshot=status["safetySnapshotName"]))
    assert read(kubectl, "kept") == {"a": "new", "b": "late"}, "nothing that the pod wrote is lost"


def test_a_deployment_that_brings_its_pod_back_makes_it_time_out(kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    template = pod("web", ["v1"])
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "strategy": {"type": "Recreate"}}
    template = {"metadata": template["metadata"] | {"name": ""}, "spec": template["spec"]}
    kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": spec | {"template": template},
        }
    )
    kubectl.wait("condition=Available", "deployment", "web")
    pods = kubectl.items("pods", "--selector=app=web")
    kubectl.sh(pods[0]["metadata"]["name"], "echo new >/v1/a; sync")
    ask(kubectl, "once", "s1", timeout="15s")
    kubectl.until(lambda made: reason_of(made) == "VolumeInUse", "volumerollback", "once")
    kubectl.delete("pod", pods[0]["metadata"]["name"])
    status = ended(kubectl, "once")
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded"), status
    for word in ("(Deployment web)", "scale deployment/web --replicas=0", "The volume was not changed"):
        assert word in status["message"]
    kubectl.wait("condition=Available", "deployment", "web")
    back = kubectl.items("pods", "--selector=app=web")[0]["metadata"]["name"]
    assert read_in(kubectl, back) == {"a": "new"}
    kubectl("scale", "deployment/web", "--replicas=0")
    completed(kubectl, "twice", "s1")
    kubectl("scale", "deployment/web", "--replicas=1")
    kubectl.wait("condition=Available", "deployment", "web", seconds=150)
    assert read_in(kubectl, kubectl.items("pods", "--selector=app=web")[0]["metadata"]["name"]) == {"a": "old"}


@pytest.mark.slow(seconds=40)
def test_a_pod_that_comes_writes_and_leaves_before_the_disk_is_held_loses_nothing(kubectl: Kubectl) -> None:
    """To undo it takes a second, pre-provisioned snapshot with a content of its own and the same handle."""
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    first = kubectl.get("volumesnapshotcontent", bound(kubectl, "s1"))
    ask(kubectl, "back", "later")
    kubectl.until(lambda made: reason_of(made) == "SnapshotNotFound", "volumerollback", "back")
    write(kubectl, b="between")
    name = f"again-{kubectl.namespace}"
    content = {
        "apiVersion": SNAPSHOT_API,
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": name},
        "spec": {
            "deletionPolicy": "Retain",
            "driver": first["spec"]["driver"],
            "source": {"snapshotHandle": first["status"]["snapshotHandle"]},
            "volumeSnapshotRef": {"name": "later", "namespace": kubectl.namespace},
        },
    }
    second = snapshot("later", "v1")
    second["spec"] = {"source": {"volumeSnapshotContentName": name}}
    kubectl.apply(content, second)
    try:
        status = ended(kubectl, "back")
        assert status["phase"] == "Completed", status
        assert status["snapshotHandle"] == first["status"]["snapshotHandle"]
        assert read(kubectl) == {"a": "old"}
        kubectl.apply(claim("kept", snapshot=status["safetySnapshotName"]))
        assert read(kubectl, "kept") == {"a": "old", "b": "between"}
        completed(kubectl, "from-the-first", "s1")
    finally:
        # Contents have no namespace, and this one is nobody's to delete.
        kubectl.delete("volumesnapshot", "later")
        kubectl.delete("volumesnapshotcontent", name)


def test_after_mkfs_in_a_pod_on_a_raw_block_claim(kubectl: Kubectl) -> None:
    make(kubectl, claim("v1", "16Mi", block=True))
    device = {"/dev/disk": "v1"}

    def on_disk(script: str) -> str:
        kubectl.apply(pod("raw", devices=device))
        kubectl.ready("raw")
        output = kubectl.sh("raw", script)
        kubectl.delete("pod", "raw")
        return output

    on_disk("printf before | dd of=/dev/disk bs=4096 seek=3 conv=notrunc,fsync")
    cut(kubectl, "s1")
    on_disk("mke2fs -F /dev/disk; dd if=/dev/zero of=/dev/disk bs=4096 seek=3 count=1 conv=notrunc; sync")
    completed(kubectl, "back", "s1")
    assert on_disk("dd if=/dev/disk bs=4096 skip=3 count=1 2>/dev/null | head -c 6") == "before"


def test_after_an_expansion_the_size_stays_and_the_file_system_fills_it(kubectl: Kubectl) -> None:
    make(kubectl, claim("v1", "64Mi"))
    size = "df -k /v1 | tail -1 | awk '{print $2}'"
    with using(kubectl) as name:
        kubectl.sh(name, "echo old >/v1/a; sync")
        small = int(kubectl.sh(name, size))
    cut(kubectl, "s1")
    kubectl.apply(claim("v1", "256Mi"))
    volume = kubectl.get("pvc", "v1")["spec"]["volumeName"]
    kubectl.wait("jsonpath={.spec.capacity.storage}=256Mi", "pv", volume)
    with using(kubectl) as name:
        kubectl.sh(name, "echo new >/v1/a; sync")
        assert int(kubectl.sh(name, size)) > 3 * small
    completed(kubectl, "back", "s1")
    assert kubectl.get("pv", volume)["spec"]["capacity"]["storage"] == "256Mi"
    with using(kubectl) as name:
        assert read_in(kubectl, name) == {"a": "old"}
        assert int(kubectl.sh(name, size)) > 3 * small


def test_the_same_object_applied_again_changes_nothing(kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    write(kubectl, a="new")
    completed(kubectl, "back", "s1")
    write(kubectl, a="newer")
    kubectl.delete("volumerollback", "back")
    ask(kubectl, "back", "s1")
    status = ended(kubectl, "back")
    assert (status["phase"], status["reason"]) == ("Completed", "AlreadyCompleted")
    assert read(kubectl) == {"a": "newer"}
    with pytest.raises(KubectlError, match="cannot be changed"):
        kubectl("patch", "volumerollback", "back", "--type=merge", '--patch={"spec":{"snapshotName":"s2"}}')


def test_deleted_while_it_waits_it_is_cancelled(kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, a="old")
    cut(kubectl, "s1")
    with using(kubectl):
        ask(kubectl, "back", "s1")
        kubectl.until(lambda made: reason_of(made) == "VolumeInUse", "volumerollback", "back")
        kubectl.delete("volumerollback", "back", seconds=20)
    write(kubectl, a="new")
    assert read(kubectl) == {"a": "new"}


# ---- two namespaces


def bound(kubectl: Kubectl, name: str) -> str:
    """The content of a VolumeSnapshot."""
    return str(kubectl.get("volumesnapshot", name)["status"]["boundVolumeSnapshotContentName"])


def point(kubectl: Kubectl, name: str, content: str) -> None:
    """Have a VolumeSnapshot name a content, as nobody but the snapshot-controller should."""
    patch = json.dumps({"status": {"boundVolumeSnapshotContentName": content}})
    kubectl("patch", "volumesnapshot", name, "--subresource=status", "--type=merge", f"--patch={patch}")


@pytest.mark.slow(seconds=50)
def test_nobody_reaches_what_is_not_in_their_own_namespace(cluster: Cluster, kubectl: Kubectl) -> None:
    make(kubectl)
    write(kubectl, secret="mine")
    cut(kubectl, "s1")
    write(kubectl, secret="newer")
    theirs = f"{kubectl.namespace}-b"
    cluster.kubectl("create", "namespace", theirs)
    try:
        intruder = cluster.kubectl.within(theirs)
        make(intruder)
        write(intruder, a="b")
        cut(intruder, "s9")
        # By name: what is in another namespace does not exist here.
        refused(
            intruder,
            "their-snapshot",
            "s1",
            "DeadlineExceeded",
            f"waiting for VolumeSnapshot {theirs}/s1",
            timeout="3s",
        )
        refused(intruder, "their-claim", "s9", "DeadlineExceeded", f"{theirs}/nothing", of="nothing", timeout="3s")
        intruder.apply(claim("stolen", snapshot="s1"))
        # By a content that somebody re-pointed by hand, with rights that users do not have.
        bound = intruder.get("volumesnapshot", "s9")["status"]["boundVolumeSnapshotContentName"]
        foreign = kubectl.get("volumesnapshot", "s1")["status"]["boundVolumeSnapshotContentName"]
        patch = {"status": {"boundVolumeSnapshotContentName": foreign}}
        intruder(
            "patch", "volumesnapshot", "s9", "--subresource=status", "--type=merge", f"--patch={json.dumps(patch)}"
        )
        ask(intruder, "re-pointed", "s9", timeout="5s")
        status = ended(intruder, "re-pointed")
        assert status["phase"] == "Failed", status
        assert status["reason"] in ("SnapshotContentMisbound", "DeadlineExceeded", "SnapshotOfOtherVolume"), status
        assert bound != foreign
        assert read(intruder) == {"a": "b"}
        assert intruder.get("pvc", "stolen")["status"]["phase"] == "Pending"
        assert intruder.find("pod", "writer") is None
    finally:
        cluster.kubectl("delete", "namespace", theirs, "--wait=false")
    assert read(kubectl) == {"secret": "newer"}

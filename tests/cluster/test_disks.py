"""Disks as pods have them: written, cut while they are written, restored larger, cloned, grown, shared, kept for one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig.cluster import Cluster
from rig.kubectl import Document, Kubectl, KubectlError, is_ready
from rig.objects import CLASS, claim, pod, snapshot, storage_class
from writers import WRITE, WRITE_BLOCKS, acknowledged

MIB = 1 << 20
CAP_SYS_RESOURCE = 24
SIZES = {"ext4": (64, 128), "xfs": (320, 448), "block": (64, 128)}
"""MiB of the disk, and of the one that is restored from its snapshot."""


@pytest.fixture
def immediate(cluster: Cluster) -> Iterator[str]:
    """A StorageClass whose claims are bound before any pod uses them."""
    cluster.kubectl.apply(storage_class("test-immediate", immediate=True))
    yield "test-immediate"
    cluster.kubectl.delete("storageclass", "test-immediate")


def test_a_disk_in_use_is_cut_and_restored_to_a_larger_one(kubectl: Kubectl, xfs: str) -> None:
    """ext4, XFS and raw block at once."""
    for kind, (size, _) in SIZES.items():
        name, block = f"{kind}-disk", kind == "block"
        used = xfs if kind == "xfs" else CLASS
        places = {"devices": {"/dev/disk": name}} if block else {"claims": {"/disk": name}}
        script = WRITE_BLOCKS if block else WRITE
        kubectl.apply(claim(name, f"{size}Mi", block=block, storage_class=used), pod(kind, script=script, **places))
    kubectl.ready(*SIZES)
    before = {kind: acknowledged(kubectl, kind) for kind in SIZES}
    kubectl.apply(*(snapshot(f"{kind}-cut", f"{kind}-disk") for kind in SIZES))
    for kind in SIZES:
        kubectl.until(is_ready, "volumesnapshot", f"{kind}-cut")
    after = {kind: acknowledged(kubectl, kind) for kind in SIZES}
    for kind, (_, larger) in SIZES.items():
        name, block = f"{kind}-restored", kind == "block"
        used = xfs if kind == "xfs" else CLASS
        places = {"devices": {"/dev/disk": name}} if block else {"claims": {"/disk": name}}
        restored = claim(name, f"{larger}Mi", snapshot=f"{kind}-cut", block=block, storage_class=used)
        kubectl.apply(restored, pod(f"{kind}-again", **places))
    kubectl.ready(*(f"{kind}-again" for kind in SIZES))
    for kind in ("ext4", "xfs"):
        lines = kubectl.sh(f"{kind}-again", "sha256sum -c /disk/sum >&2; cat /disk/lines").splitlines()
        assert lines == [str(n + 1) for n in range(len(lines))], f"{kind}: lines are missing, or in the wrong order"
        # What was acknowledged before the snapshot was asked for is in it, and nothing that was begun after its answer.
        assert before[kind] <= len(lines) <= after[kind] + 1
        size = SIZES[kind][1] * MIB
        assert size * 0.8 < file_system_bytes(kubectl, f"{kind}-again") <= size
    blocks = kubectl.sh("block-again", "tr -d '\\0' </dev/disk").splitlines()
    assert blocks == [str(n + 1) for n in range(len(blocks))]
    assert before["block"] <= len(blocks) <= after["block"] + 1
    assert int(kubectl.sh("block-again", "blockdev --getsize64 /dev/disk")) == SIZES["block"][1] * MIB
    # The first disks were never disturbed.
    assert all(acknowledged(kubectl, kind) > after[kind] for kind in SIZES)


def file_system_bytes(kubectl: Kubectl, name: str, place: str = "/disk") -> int:
    """The size of the file system there, as `df` tells it."""
    return int(kubectl.sh(name, f"df -k {place} | tail -n 1").split()[-5]) * 1024


def grow(kubectl: Kubectl, name: str, size: str) -> None:
    kubectl("patch", "pvc", name, "--patch", json.dumps({"spec": {"resources": {"requests": {"storage": size}}}}))


def has_size(size: str) -> Callable[[Document], bool]:
    return lambda found: bool(found["status"]["capacity"]["storage"] == size)


def test_one_disk_for_two_pods_grows_while_they_use_it_and_is_cloned(kubectl: Kubectl, xfs: str) -> None:
    """With fsGroup, and one of the two sees it read-only."""
    user = {"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "fsGroup": 2000}
    disk = claim("disk", "320Mi", storage_class=xfs)
    kubectl.apply(disk, pod("writer", {"/disk": "disk"}, securityContext=user))
    kubectl.ready("writer")
    kubectl.sh("writer", "echo content >/disk/file; sync")
    assert kubectl.sh("writer", "stat -c '%u %g' /disk/file") == "1000 2000"

    reader = pod("reader", {"/disk": "disk"}, securityContext=user)
    reader["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = True
    copy = claim("copy", "320Mi", clone="disk", storage_class=xfs)
    kubectl.apply(reader, copy, pod("cloned", {"/disk": "copy"}))
    kubectl.ready("reader", "cloned")
    assert kubectl.get("pod", "reader")["spec"]["nodeName"] == kubectl.get("pod", "writer")["spec"]["nodeName"]
    assert kubectl.sh("reader", "cat /disk/file") == "content"
    with pytest.raises(KubectlError, match="Read-only file system"):
        kubectl.sh("reader", "echo other >/disk/file")

    assert kubectl.sh("cloned", "cat /disk/file") == "content"
    kubectl.sh("cloned", "echo changed >/disk/file; sync")
    assert kubectl.sh("reader", "cat /disk/file") == "content"

    assert file_system_bytes(kubectl, "writer") <= 320 * MIB
    grow(kubectl, "disk", "448Mi")
    kubectl.until(has_size("448Mi"), "pvc", "disk")
    assert 320 * MIB < file_system_bytes(kubectl, "writer") == file_system_bytes(kubectl, "reader")
    assert kubectl.sh("writer", "cat /disk/file") == "content"
    assert file_system_bytes(kubectl, "cloned") <= 320 * MIB


def test_an_ext4_disk_grows(kubectl: Kubectl) -> None:
    """Under its pod where the kernel lets it (docs/adr/0001), and for the next pod everywhere."""
    kubectl.apply(claim("disk", "64Mi"), pod("user", {"/disk": "disk"}))
    kubectl.ready("user")
    kubectl.sh("user", "echo content >/disk/file; sync")
    grow(kubectl, "disk", "128Mi")
    if capable(CAP_SYS_RESOURCE):
        kubectl.until(has_size("128Mi"), "pvc", "disk")
        assert file_system_bytes(kubectl, "user") > 64 * MIB
    else:
        kubectl.until(lambda found: found["status"].get("allocatedResources") == {"storage": "128Mi"}, "pvc", "disk")
        # That is written before the disk has grown; this, after it. What the next pod mounts must have its size already.
        volume = kubectl.get("pvc", "disk")["spec"]["volumeName"]
        kubectl.wait("jsonpath={.spec.capacity.storage}=128Mi", "pv", volume)
    kubectl.delete("pod", "user")
    kubectl.apply(pod("next", {"/disk": "disk"}))
    kubectl.ready("next")
    kubectl.until(has_size("128Mi"), "pvc", "disk")
    assert file_system_bytes(kubectl, "next") > 64 * MIB
    assert kubectl.sh("next", "cat /disk/file") == "content"


def capable(number: int) -> bool:
    """Whether this machine's root has a capability, and so a privileged container."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> number & 1)


def test_a_claim_for_one_pod_an_ephemeral_disk_and_one_that_waits_for_no_pod(kubectl: Kubectl, immediate: str) -> None:
    template = {"spec": claim("")["spec"]}
    volumes = [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]
    ephemeral = pod("ephemeral")
    ephemeral["spec"]["volumes"] = volumes
    ephemeral["spec"]["containers"][0]["volumeMounts"] = [{"name": "scratch", "mountPath": "/disk"}]
    kubectl.apply(
        *(claim("only", mode="ReadWriteOncePod"), pod("first", {"/disk": "only"})),
        ephemeral,
        claim("at-once", storage_class=immediate),
    )
    kubectl.wait("jsonpath={.status.phase}=Bound", "pvc", "at-once")
    kubectl.ready("first", "ephemeral")
    kubectl.apply(pod("second", {"/disk": "only"}), pod("late", {"/disk": "at-once"}))
    kubectl.ready("late")
    kubectl.sh("late", "echo content >/disk/file")
    kubectl.sh("ephemeral", "echo content >/disk/file")
    kubectl.sh("first", "echo first >/disk/file")

    waiting = kubectl.until(lambda found: found["status"].get("conditions"), "pod", "second")
    assert waiting["status"]["conditions"][0]["reason"] == "Unschedulable"
    volume = kubectl.get("pvc", "ephemeral-scratch")["spec"]["volumeName"]
    kubectl.delete("pod", "first", "ephemeral")
    kubectl.ready("second")
    assert kubectl.sh("second", "cat /disk/file") == "first"
    kubectl.wait("delete", "pvc", "ephemeral-scratch")
    kubectl.wait("delete", "pv", volume)

"""Claims that are restored as they were written, by the cluster's own csi-provisioner, and disks that a backup tool has written."""

import pytest
from rig.kubectl import Document, Kubectl, is_ready
from rig.objects import CLASS, claim, pod, snapshot

from csi_driver.kube.quantity import parse_quantity

MODE_MAY_CHANGE = "snapshot.storage.kubernetes.io/allow-volume-mode-change=true"
MOUNTED_AS = "grep ' /disk ' /proc/mounts | cut -d' ' -f3"


def cut(kubectl: Kubectl, *names: str) -> dict[str, Document]:
    """A snapshot of each claim, called as the claim; their status."""
    kubectl.apply(*(snapshot(name, name) for name in names))
    return {name: kubectl.until(is_ready, "volumesnapshot", name)["status"] for name in names}


@pytest.mark.slow(seconds=45)
def test_the_same_claim_is_restored_from_its_own_snapshot(kubectl: Kubectl, xfs: str) -> None:
    """Sizes that no image has: of 10^6 bytes, and below what the file system needs."""
    asked = {"uneven": ("10G", CLASS), "small": ("5M", CLASS), "raised": ("100M", xfs)}
    for name, (size, used) in asked.items():
        kubectl.apply(claim(name, size, storage_class=used), pod(f"{name}-user", {"/disk": name}))
    kubectl.apply(claim("device", "100M", block=True), pod("device-user", devices={"/dev/disk": "device"}))
    kubectl.ready(*(f"{name}-user" for name in (*asked, "device")))
    for name in asked:
        kubectl.sh(f"{name}-user", f"echo {name} >/disk/file; sync")
    kubectl.sh("device-user", "echo device | dd of=/dev/disk bs=4096 conv=sync,notrunc,fsync 2>/dev/null")
    statuses = cut(kubectl, *asked, "device")
    for name, (size, _) in asked.items():
        assert parse_quantity(statuses[name]["restoreSize"]) == parse_quantity(size), name

    for name, (size, used) in asked.items():
        again = claim(f"{name}-again", size, snapshot=name, storage_class=used)
        kubectl.apply(again, pod(f"{name}-reader", {"/disk": f"{name}-again"}))
    # A class that names no file system takes the source's, whatever it is.
    by_default = claim("by-default", "100M", snapshot="raised")
    clone = claim("clone", "10G", clone="uneven")
    kubectl.apply(
        *(by_default, pod("by-default-reader", {"/disk": "by-default"})),
        *(clone, pod("clone-reader", {"/disk": "clone"})),
        claim("device-again", "100M", snapshot="device", block=True),
        pod("device-reader", devices={"/dev/disk": "device-again"}),
    )
    found = {f"{name}-reader": name for name in asked} | {"by-default-reader": "raised", "clone-reader": "uneven"}
    kubectl.ready(*found, "device-reader", seconds=120)
    for reader, content in found.items():
        assert kubectl.sh(reader, "cat /disk/file") == content
        assert kubectl.sh(reader, MOUNTED_AS) == ("xfs" if content == "raised" else "ext4")
    assert kubectl.sh("device-reader", "tr -d '\\0' </dev/disk") == "device"
    assert int(kubectl.sh("device-reader", "blockdev --getsize64 /dev/disk")) == 100_003_840


@pytest.mark.slow(seconds=45)
def test_a_disk_that_was_written_as_a_block_device_is_mounted(kubectl: Kubectl) -> None:
    """As backup tools restore: read a snapshot as a block device, write an empty disk as one, then a new PersistentVolume."""
    kubectl.apply(claim("source", "64M"), pod("writer", {"/disk": "source"}))
    kubectl.ready("writer")
    kubectl.sh("writer", "echo content >/disk/file; sync")
    content = cut(kubectl, "source")["source"]["boundVolumeSnapshotContentName"]
    kubectl("annotate", "volumesnapshotcontent", content, MODE_MAY_CHANGE)
    mover = pod("mover", devices={"/dev/from": "as-block", "/dev/to": "target"})
    kubectl.apply(claim("as-block", "64M", snapshot="source", block=True), claim("target", "64M", block=True), mover)
    kubectl.ready("mover")
    kubectl.sh("mover", "dd if=/dev/from of=/dev/to bs=1M conv=fsync 2>/dev/null")
    volume = kubectl.get("pvc", "target")["spec"]["volumeName"]
    kubectl("patch", "pv", volume, "--patch", '{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}')
    spec = kubectl.get("pv", volume)["spec"]
    kubectl.delete("pod", "mover")
    kubectl.delete("pvc", "target")
    kubectl.delete("pv", volume)

    name = f"{kubectl.namespace}-target"
    disk = {key: spec["csi"][key] for key in ("driver", "volumeHandle")}
    kept = {key: spec[key] for key in ("capacity", "accessModes", "storageClassName", "nodeAffinity")}
    # Deleted with its claim, as a provisioned one: the disk goes with it.
    made = kept | {"csi": disk, "volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Delete"}
    metadata = {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": disk["driver"]}}
    kubectl.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": made})
    restored = claim("restored", "64M")
    restored["spec"]["volumeName"] = name
    kubectl.apply(restored, pod("reader", {"/disk": "restored"}))
    kubectl.ready("reader")
    assert kubectl.sh("reader", "cat /disk/file") == "content"
    assert kubectl.sh("reader", MOUNTED_AS) == "ext4"
    kubectl.delete("pod", "reader")
    kubectl.delete("pvc", "restored")
    kubectl.wait("delete", "pv", name)

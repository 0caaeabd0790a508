"""Who is who: every link from the names in a VolumeRollback to a disk and a snapshot, cut or bent one at a time."""

from __future__ import annotations

from typing import Any

import pytest
from support.rollback_cases import DRIVER, NAMESPACE, SPEC, TARGET, claim, content, objects, pod, snapshot, volume

from csi_driver.operator.rollback.pods_using_claim import describe_users, pods_using
from csi_driver.operator.rollback.references import UnresolvedReference, resolve

ENDING = {"deletionTimestamp": "2027-01-01T00:00:00Z"}


def spec_of(made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return made | {"spec": made["spec"] | changes}


def meta_of(made: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return made | {"metadata": made["metadata"] | changes}


def ref(made: dict[str, Any], field: str, **changes: str) -> dict[str, Any]:
    return spec_of(made, **{field: made["spec"][field] | changes})


def test_all_links_whole() -> None:
    assert resolve(SPEC, objects(), DRIVER) == TARGET


@pytest.mark.parametrize(
    ("spoilt", "reason", "final", "named"),
    [
        ({"pvc": None}, "ClaimNotFound", False, "shop/v1"),
        ({"pvc": meta_of(claim(), **ENDING)}, "ClaimTerminating", True, "shop/v1"),
        ({"pvc": claim(status={"phase": "Pending"})}, "ClaimNotBound", False, "shop/v1"),
        ({"pvc": claim(status={"phase": "Lost"})}, "ClaimNotBound", False, "Lost"),
        ({"pvc": claim(spec={})}, "ClaimNotBound", False, "shop/v1"),
        ({"pv": None}, "VolumeNotFound", True, "pvc-1"),
        ({"pv": ref(volume(), "claimRef", uid="of-the-claim-before")}, "ClaimMisbound", True, "pvc-1"),
        ({"pv": ref(volume(), "claimRef", namespace="other")}, "ClaimMisbound", True, "other/v1"),
        ({"pv": ref(volume(), "claimRef", name="v2")}, "ClaimMisbound", True, "shop/v2"),
        ({"pv": spec_of(volume(), claimRef=None)}, "ClaimMisbound", True, "pvc-1"),
        ({"pv": meta_of(volume(), **ENDING)}, "VolumeTerminating", True, "pvc-1"),
        ({"pv": ref(volume(), "csi", driver="ebs.csi.aws.com")}, "WrongDriver", True, "ebs.csi.aws.com"),
        ({"pv": spec_of(volume(), csi=None, nfs={})}, "WrongDriver", True, "no CSI driver"),
        ({"snapshot": None}, "SnapshotNotFound", False, "shop/s1"),
        ({"snapshot": meta_of(snapshot(), **ENDING)}, "SnapshotTerminating", True, "shop/s1"),
        ({"snapshot": snapshot(status={})}, "SnapshotNotReady", False, "shop/s1"),
        ({"snapshot": snapshot(status={"readyToUse": True})}, "SnapshotNotReady", False, "shop/s1"),
        (
            {"snapshot": snapshot(status={"readyToUse": False, "error": {"message": "the pool is full"}})},
            "SnapshotNotReady",
            False,
            "the pool is full",
        ),
        ({"content": None}, "SnapshotContentMissing", True, "content-1"),
        (
            {"content": ref(content(), "volumeSnapshotRef", uid="of-the-one-before")},
            "SnapshotContentMisbound",
            True,
            "s1",
        ),
        (
            {"content": ref(content(), "volumeSnapshotRef", namespace="victim")},
            "SnapshotContentMisbound",
            True,
            "victim/s1",
        ),
        ({"content": ref(content(), "volumeSnapshotRef", name="s9")}, "SnapshotContentMisbound", True, "shop/s9"),
        ({"content": spec_of(content(), driver="ebs.csi.aws.com")}, "WrongDriver", True, "ebs.csi.aws.com"),
        ({"content": content(status={})}, "SnapshotNotReady", False, "shop/s1"),
    ],
)
def test_a_link_that_is_not_as_it_must_be_is_named(spoilt: Any, reason: str, final: bool, named: str) -> None:
    found = resolve(SPEC, objects(**spoilt), DRIVER)
    assert isinstance(found, UnresolvedReference)
    assert (found.reason, found.final) == (reason, final)
    assert named in found.message


# ---- who uses the claim


def test_a_pod_uses_a_claim_from_when_it_has_a_node_until_it_has_ended() -> None:
    using = [pod("running"), pod("starting", status={"phase": "Pending"}), pod("ending", metadata=ENDING)]
    using.append(pod("web", spec={"volumes": [{"name": "cache"}, {"name": "x", "ephemeral": {}}]}))
    idle = [
        pod("unscheduled", spec={"nodeName": ""}),
        pod("done", status={"phase": "Succeeded"}),
        pod("broken", status={"phase": "Failed"}),
        pod("elsewhere", claim_name="v2"),
        pod("none", spec={"volumes": None}),
    ]
    found = pods_using(using[:3] + idle, "v1")
    assert [p["metadata"]["name"] for p in found] == ["running", "starting", "ending"]
    assert [p["metadata"]["name"] for p in pods_using(using, "web-x")] == ["web"], "a generic ephemeral volume's claim"


@pytest.mark.parametrize(
    ("owner", "labels", "named", "advice"),
    [
        (None, {}, "pod web-1:", "delete it (kubectl -n shop delete pod web-1)"),
        (
            ("ReplicaSet", "web-7f"),
            {"pod-template-hash": "7f"},
            "(Deployment web)",
            "scale deployment/web --replicas=0",
        ),
        (("ReplicaSet", "web-7f"), {}, "(ReplicaSet web-7f)", "scale replicaset/web-7f --replicas=0"),
        (("StatefulSet", "web"), {}, "(StatefulSet web)", "scale statefulset/web --replicas=0"),
        (("Job", "copy"), {}, "(Job copy)", "wait for Job copy"),
        (("DaemonSet", "d"), {}, "(DaemonSet d)", "stop DaemonSet d"),
        (("Cluster", "pg"), {}, "(Cluster pg)", "scale it to 0"),
    ],
)
def test_what_brings_a_pod_back_is_named_with_what_to_do(
    owner: tuple[str, str] | None, labels: dict[str, str], named: str, advice: str
) -> None:
    text = describe_users([pod(owner=owner, metadata={"labels": labels})], NAMESPACE, "v1")
    assert named in text
    assert advice in text
    assert text.startswith("PVC shop/v1 is in use by ")
    assert "the rollback continues" in text


def test_many_pods_make_no_long_message() -> None:
    text = describe_users([pod(f"web-{i:03}", owner=("StatefulSet", "web")) for i in range(200)], NAMESPACE, "v1")
    assert "web-000" in text
    assert "197 more" in text
    assert text.count("statefulset/web") == 1
    assert len(text) < 400
    assert "is terminating" in describe_users([pod(metadata=ENDING)], NAMESPACE, "v1")

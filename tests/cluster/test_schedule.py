"""A schedule of every minute on the cluster, with a restore that retention waits for; and what the API refuses."""

from typing import Any

import pytest
from rig.kubectl import Kubectl, KubectlError
from rig.objects import claim, pod, storage_class


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
        before = kubectl.get("snapshotschedule", name).get("status", {}).get("lastSuccessful", "")
        done = kubectl.until(
            lambda found, before=before: found.get("status", {}).get("lastSuccessful", "") > before,
            "snapshotschedule",
            name,
            seconds,
        )
        last = done["status"]["lastSuccessful"]
    return last


@pytest.mark.timeout(600)
def test_every_minute(kubectl: Kubectl) -> None:
    kubectl.apply(
        claim("one", "32Mi", labels={"app": "single"}),
        claim("never-bound", "32Mi", labels={"app": "single"}),
        pod("one", {"/disk": "one"}, script="echo first >/disk/file; sync; sleep infinity"),
    )
    kubectl.ready("one")
    kubectl.apply(schedule("single", {"app": "single"}, retention={"keepLast": 2}))
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
    kubectl.until(lambda found: found["status"]["snapshots"] == 3, "snapshotschedule", "single")
    assert times(kubectl, "single")[0] == oldest
    kubectl.apply(storage_class(later), pod("reader", {"/disk": "restored"}))
    try:
        kubectl.ready("reader")
    finally:
        kubectl.delete("storageclass", later)
    assert kubectl.sh("reader", "cat /disk/file") == "first"
    kubectl.wait("delete", "volumesnapshot", kept)
    assert oldest not in times(kubectl, "single")


def _for(snapshot: dict[str, Any]) -> tuple[str, str]:
    said = snapshot["metadata"].get("annotations", {})
    return said.get("tidemark.dev/schedule", ""), said.get("tidemark.dev/scheduled-for", "")


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"every": "1h"}, "either by cron or by every"),
        ({"claimName": "x"}, "either by selector or by claimName"),
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

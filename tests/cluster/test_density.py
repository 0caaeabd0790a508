"""Many claims at once: all are bound, and what that took is written down, not judged.

TIDEMARK_DENSITY_CLAIMS=N makes N: the figures of docs/benchmarks.md are of 100.
"""

import json
import os
import time
from typing import Any

import pytest
from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import Kubectl
from rig.objects import claim, pod, storage_class
from rig.paths import STATE

CLAIMS = int(os.environ.get("TIDEMARK_DENSITY_CLAIMS") or 30)
A_SECOND = 10


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(900)
def test_many_claims_on_two_nodes(cluster: Cluster, kubectl: Kubectl) -> None:
    names = [f"disk{number:03}" for number in range(CLAIMS)]
    kubectl.apply(storage_class("at-once", immediate=True))
    before = memory(cluster)
    began = time.monotonic()
    for first in range(0, CLAIMS, A_SECOND):
        kubectl.apply(*(claim(name, "16Mi", storage_class="at-once") for name in names[first : first + A_SECOND]))
        time.sleep(max(0.0, began + first / A_SECOND + 1 - time.monotonic()))
    kubectl.wait("jsonpath={.status.phase}=Bound", "pvc", *names, seconds=300)
    bound = time.monotonic() - began
    # Those of other tests may have no claim.
    every = kubectl.items("pv")
    volumes = [each for each in every if each["spec"].get("claimRef", {}).get("namespace") == kubectl.namespace]
    assert len({each["spec"]["csi"]["volumeHandle"] for each in volumes}) == CLAIMS, "each claim has a disk of its own"

    # One pod of each node takes all disks that lie there, and each holds what is written to it and nothing else.
    there: dict[str, list[str]] = {}
    for each in volumes:
        there.setdefault(place(each), []).append(each["spec"]["claimRef"]["name"])
    kubectl.apply(*(pod(f"on-{node}", disks) for node, disks in there.items()))
    kubectl.ready(*(f"on-{node}" for node in there), seconds=300)
    ready = time.monotonic() - began
    for node, disks in there.items():
        kubectl.sh(f"on-{node}", "; ".join(f"[ ! -e /{one}/name ]; echo {one} >/{one}/name" for one in disks))
        output = kubectl.sh(f"on-{node}", "cat " + " ".join(f"/{one}/name" for one in disks))
        assert output.split() == disks

    record = {
        "claims": CLAIMS,
        "bound_after_seconds": round(bound, 1),
        "mounted_after_seconds": round(ready, 1),
        "of_each_node": {node: len(disks) for node, disks in there.items()},
        "resident_mib_before": before,
        "resident_mib_after": memory(cluster),
    }
    (STATE / "density.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))

    kubectl.delete("pod", *(f"on-{node}" for node in there), seconds=300)
    kubectl.delete("pvc", *names, seconds=300)
    kubectl.wait("delete", "pv", *(each["metadata"]["name"] for each in volumes), seconds=300)
    kubectl.delete("storageclass", "at-once")


def place(volume: dict[str, Any]) -> str:
    """The node that a PersistentVolume says it is on."""
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    return str(terms[0]["matchExpressions"][0]["values"][0])


def memory(cluster: Cluster) -> dict[str, list[int]]:
    """Resident MiB of our containers, one number a pod, all its processes together."""
    release = cluster.kubectl.within(NAMESPACE)
    # By way of cat, which goes on where a process has ended meanwhile: awk would end without a word.
    script = "cat /proc/[0-9]*/status 2>/dev/null | awk '/^VmRSS/ {sum += $2} END {print int(sum / 1024)}'"
    found: dict[str, list[int]] = {}
    for component in ("agent", "controller"):
        for each in release.items("pods", f"--selector=app.kubernetes.io/component={component}"):
            words = ("exec", each["metadata"]["name"], f"--container={component}", "--", "sh", "-c", script)
            found.setdefault(component, []).append(int(release(*words)))
    return found

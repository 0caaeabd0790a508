"""A control plane without nodes, on which the chart is installed and upgraded as the definitions of snapshots come.

Run by test_chart_definitions.py in a process of its own, since TIDEMARK_CLUSTER says which cluster a process talks to. Prints
one JSON object: what there was without definitions, with those of snapshots, and with those of groups.
"""

import functools
import json
import sys
from typing import Any

from rig import network, shared
from rig.cluster import NAMESPACE, Cluster
from rig.kubectl import KubectlError
from rig.machine import until
from rig.paths import CHART, NUMBER, programs


def seen(cluster: Cluster) -> dict[str, Any]:
    """What the release has of snapshots."""
    release = cluster.kubectl.within(NAMESPACE)
    containers = release.get("deployment", "tidemark-controller")["spec"]["template"]["spec"]["containers"]
    gates = [arg for one in containers for arg in one["args"] if arg.startswith("--feature-gates=")]
    classes = {}
    for kind in ("volumesnapshotclass", "volumegroupsnapshotclass"):
        try:
            classes[kind] = [one["metadata"]["name"] for one in cluster.kubectl.items(kind)]
        except KubectlError:
            classes[kind] = None  # the API knows no such kind
    return {
        "sidecars": [one["name"] for one in containers],
        "gates": gates,
        "classes": classes,
        "notes": cluster.helm("get", "notes", "tidemark"),
    }


def lists(cluster: Cluster, resource: str) -> bool:
    """Whether the API's list of what it serves, by which helm decides, has it: a definition is established before that."""
    return resource in cluster.kubectl("api-resources", "--output=name").split()


def stages(cluster: Cluster) -> dict[str, Any]:
    """Install, and upgrade twice."""
    values = cluster.values_file()
    found = {}
    cluster.helm("install", "tidemark", CHART, "--create-namespace", "--values", values)
    found["none"] = seen(cluster)
    for stage, group, kind in (
        ("snapshots", "snapshot", "volumesnapshotclasses"),
        ("groups", "groupsnapshot", "volumegroupsnapshotclasses"),
    ):
        for path in sorted((programs() / "crd").glob(f"{group}.storage.k8s.io_*.yaml")):
            cluster.kubectl("apply", "--server-side", f"--filename={path}")
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        until(f"the API lists {kind}", functools.partial(lists, cluster, f"{kind}.{group}.storage.k8s.io"), 30)
        cluster.helm("upgrade", "tidemark", CHART, "--values", values)
        found[stage] = seen(cluster)
    return found


def main() -> None:
    assert NUMBER, "TIDEMARK_CLUSTER must name a cluster beside the first one"
    cluster = Cluster(0)
    cluster.down()
    try:
        shared.note(0)
        network.make_bridge()
        cluster.control_plane.up()
        json.dump(stages(cluster), sys.stdout)
    finally:
        cluster.down()


if __name__ == "__main__":
    main()

"""A group snapshot is one moment for all its disks: what a program wrote to one after the other is cut in that order."""

import pytest
from rig.cluster import Cluster
from rig.kubectl import Document, Kubectl, is_ready
from rig.objects import claim, group_snapshot, pod
from writers import acknowledged

# A line is begun on the second disk when it is durable on the first one: in any one moment the first is ahead by at most one.
WRITE = """
n=0
while :; do
    n=$((n + 1))
    echo $n >>/log/lines
    sync -d /log/lines
    echo $n >>/data/lines
    sync -d /data/lines
    echo $n >/acknowledged
done
"""
GROUPS = 3
LABELS = {"group": "one"}


@pytest.mark.slow(seconds=50)
def test_both_members_are_restored_as_of_one_moment(kubectl: Kubectl) -> None:
    kubectl.apply(
        *(claim(name, "64Mi", labels=LABELS) for name in ("log", "data")),
        pod("writer", ["log", "data"], script=WRITE),
    )
    kubectl.ready("writer")
    names = [f"cut{n}" for n in range(GROUPS)]
    least = {}
    for name in names:
        least[name] = acknowledged(kubectl, "writer")
        kubectl.apply(group_snapshot(name, LABELS))
        kubectl.until(is_ready, "volumegroupsnapshot", name)
    most = acknowledged(kubectl, "writer") + 1
    for name in names:
        # By their owner: the name of the group in their status comes later than the group is ready.
        members = {
            member["spec"]["source"]["persistentVolumeClaimName"]: member["metadata"]["name"]
            for member in kubectl.items("volumesnapshots")
            if name in [owner["name"] for owner in member["metadata"]["ownerReferences"]]
        }
        assert sorted(members) == ["data", "log"]
        kubectl.apply(
            *(claim(f"{name}-{of}", "64Mi", snapshot=member) for of, member in members.items()),
            pod(name, {f"/{of}": f"{name}-{of}" for of in members}),
        )
    kubectl.ready(*names)
    for name in names:
        log, data = (kubectl.sh(name, f"cat /{of}/lines").splitlines() for of in ("log", "data"))
        assert log == [str(n + 1) for n in range(len(log))]
        assert log[: len(data)] == data
        assert len(log) - len(data) in (0, 1), "the two disks were not cut at one moment"
        assert least[name] <= len(data) <= most
    # The members go with the group.
    kubectl.delete("volumegroupsnapshot", *names)
    kubectl("wait", "volumesnapshot", "--all", "--for=delete", "--timeout=60s", seconds=70)
    assert kubectl.items("volumesnapshots") == []


def test_disks_of_two_nodes_are_no_group(cluster: Cluster, kubectl: Kubectl) -> None:
    """The claim is refused with both nodes' names, and nothing of it stays."""
    nodes = [node.name for node in cluster.nodes[:2]]
    for name in nodes:
        kubectl.apply(claim(name, "64Mi", labels=LABELS), pod(f"on-{name}", [name], node=name))
    kubectl.ready(*(f"on-{name}" for name in nodes))
    kubectl.apply(group_snapshot("apart", LABELS))

    def names_both(found: Document) -> bool:
        message = ((found.get("status") or {}).get("error") or {}).get("message", "")
        return all(name in message for name in nodes)

    # What the snapshotter and the snapshot-controller tell of their own retries may come before it.
    kubectl.until(names_both, "volumegroupsnapshot", "apart")
    kubectl.delete("volumegroupsnapshot", "apart")
    assert kubectl.items("volumesnapshots") == []

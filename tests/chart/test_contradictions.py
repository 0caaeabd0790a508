"""Values that contradict each other are refused, with the place and the way out; those that look alike and do not, are not."""

from __future__ import annotations

from typing import Any

import pytest
from chart_rig import Chart, Document, Refused

from csi_driver.domain.routing import TOPOLOGY_KEY

FAST = {"name": "fast", "path": "/srv/nvme"}
BULK = {"name": "bulk", "path": "/srv/disk"}
THIN = {"name": "fast", "volumeGroup": "vg-nvme"}


def group(**more: Any) -> Document:
    """A group of nodes."""
    return {"nodes": {"label": "example.com/disks", "values": ["nvme"]}, **more}


def of_pool(name: str) -> Document:
    """One class, which asks for a pool."""
    return {"storageClasses": {"mine": {"parameters": {"pool": name}}}}


def on_nodes(key: str) -> Document:
    """One class, whose disks may be made on one node."""
    terms = [{"matchLabelExpressions": [{"key": key, "values": ["worker-1"]}]}]
    return {"storageClasses": {"mine": {"allowedTopologies": terms}}}


MARK = "storageclass.kubernetes.io/is-default-class"

REFUSED: list[tuple[Document, str]] = [
    (
        {"pools": [FAST, {"name": "fast", "path": "/srv/disk"}]},
        r"pools: two pools are called fast, one in /srv/nvme and one in /srv/disk",
    ),
    (
        {"nodeGroups": {"nvme": group(pools=[FAST, FAST | {"path": "/srv/disk"}])}},
        r"nodeGroups\.nvme\.pools: two pools are called fast",
    ),
    ({"pools": [FAST, {"name": "bulk", "path": "/srv/nvme"}]}, r"fast and bulk both lie in /srv/nvme"),
    ({"pools": [FAST | THIN]}, r"pools: the pool fast has a path \(/srv/nvme\) and a volumeGroup \(vg-nvme\)"),
    ({"pools": [{"name": "fast"}]}, r"pools: the pool fast has neither a path nor a volumeGroup"),
    (
        {"nodeGroups": {"nvme": group(pools=[FAST | {"thinPool": "data"}])}},
        r"nodeGroups\.nvme\.pools: the pool fast has a thinPool \(data\), but no volumeGroup",
    ),
    (
        {"pools": [THIN, FAST]},
        r"two pools are called fast, one in the volume group vg-nvme and one in /srv/nvme",
    ),
    # Two thin pools of one volume group: it says in one place whose it is.
    (
        {"pools": [THIN | {"thinPool": "a"}, {"name": "bulk", "volumeGroup": "vg-nvme", "thinPool": "b"}]},
        r"fast and bulk both lie in the volume group vg-nvme\. A volume group has one pool",
    ),
    (of_pool("fast"), r"storageClasses\.mine\.parameters\.pool: no node has a pool called fast; there are: default\."),
    ({**of_pool("default"), "pools": [FAST, BULK]}, r"called default; there are: bulk, fast\."),
    (
        {**of_pool("bulk"), "nodeGroups": {"nvme": group(pools=[FAST])}},
        r"called bulk; there are: default, fast\.",
    ),
    (
        {"storageClasses": {"tidemark": {"default": True}, "mine": {"default": True}}},
        r"storageClasses: mine, tidemark are all the default class",
    ),
    ({"snapshots": {"classes": {"mine": {"default": True}}}}, r"snapshots: mine, tidemark are all the default class"),
    ({"groupSnapshots": {"classes": {"mine": {"default": True}}}}, r"groupSnapshots: mine, tidemark are all"),
    ({"storageClasses": {"mine": {"annotations": {MARK: "true"}}}}, rf"the annotation {MARK} of the class mine"),
    (
        {"snapshots": {"class": {"annotations": {"snapshot.storage.kubernetes.io/is-default-class": "false"}}}},
        r"of the class tidemark is made from its value `default`",
    ),
    ({"snapshots": {"classes": {"tidemark": {}}}}, r"snapshots\.class makes the class of that name"),
    (
        on_nodes("topology.kubernetes.io/zone"),
        rf"topology\.kubernetes\.io/zone is not a topology key .* {TOPOLOGY_KEY}",
    ),
    (
        {"agent": {"extraVolumes": [{"name": "dev", "emptyDir": {}}]}},
        r"agent\.extraVolumes: dev is a volume of the chart",
    ),
    (
        {"pools": [THIN], "agent": {"extraVolumes": [{"name": "lvm-locks", "emptyDir": {}}]}},
        r"agent\.extraVolumes: lvm-locks is a volume of the chart",
    ),
    (
        {"agent": {"extraVolumes": [{"name": "runtime", "emptyDir": {}}]}},
        r"agent\.extraVolumes: runtime is a volume of the chart",
    ),
    ({"controller": {"extraVolumes": [{"name": "socket", "emptyDir": {}}]}}, r"controller\.extraVolumes: socket"),
    ({"agent": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}}, r"'rollingUpdate'"),
    ({"commonAnnotations": {"helm.sh/hook": "pre-install"}}, r"'helm\.sh/hook'"),
]

TAKEN: list[Document] = [
    of_pool("default"),
    {**of_pool("fast"), "pools": [FAST, BULK]},
    {**of_pool("bulk"), "pools": [FAST], "nodeGroups": {"nvme": group(pools=[BULK])}},
    {**of_pool("default"), "pools": [FAST], "nodeGroups": {"old": group(poolImage={"size": "5Gi"})}},
    # Pools of one name on nodes of several sorts are what a class asks for.
    {**of_pool("fast"), "pools": [FAST], "nodeGroups": {"nvme": group(pools=[{"name": "fast", "path": "/srv/other"}])}},
    {"storageClasses": {"tidemark": {"default": True}, "mine": {"default": False}, "none": None}},
    {"snapshots": {"class": {"default": False}, "classes": {"mine": {"default": True}, "none": None}}},
    {"snapshots": {"class": {"create": False}, "classes": {"tidemark": {"deletionPolicy": "Retain"}}}},
    on_nodes(TOPOLOGY_KEY),
    {**of_pool("fast"), "pools": [THIN, BULK], "poolInit": True},
    # One name for pools of two technologies: a class gets either.
    {**of_pool("fast"), "pools": [THIN], "nodeGroups": {"old": group(pools=[FAST], poolInit=True)}},
    # Names that only an LVM pool would take.
    {"pools": [FAST], "agent": {"extraVolumes": [{"name": "lvm-locks", "emptyDir": {}}]}},
    {"pools": [THIN], "agent": {"extraVolumes": [{"name": "pool-fast", "emptyDir": {}}]}},
]


@pytest.mark.parametrize(("values", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_a_contradiction_is_refused_with_its_reason(chart: Chart, values: Document, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        chart.render(values)


@pytest.mark.parametrize("values", TAKEN, ids=range(len(TAKEN)))
def test_what_only_looks_like_one_is_taken(chart: Chart, values: Document) -> None:
    documents = chart.render(values)
    for kind in ("StorageClass", "VolumeSnapshotClass"):
        wanted = values.get({"StorageClass": "storageClasses", "VolumeSnapshotClass": "snapshots"}[kind], {})
        classes = wanted.get("classes", {}) if kind == "VolumeSnapshotClass" else wanted
        named = {name for name, one in classes.items() if one is not None}
        assert documents.names(kind) == named | {"tidemark"}, "and a class that is null is none"

"""Classes for snapshots: as many as values name, with labels and annotations by which backup tools find theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart_rig import EVERYTHING, SNAPSHOTS, Chart, Document, values_in

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "how-to" / "backup-tools.md"

MARKS = [
    ("Velero", "VolumeSnapshotClass", "labels", "velero.io/csi-volumesnapshot-class"),
    ("Velero", "VolumeGroupSnapshotClass", "labels", "velero.io/csi-volumegroupsnapshot-class"),
    ("Kasten", "VolumeSnapshotClass", "annotations", "k10.kasten.io/is-snapshot-class"),
    ("Kasten", "StorageClass", "annotations", "k10.kasten.io/sc-supports-block-mode-exports"),
    ("CloudCasa", "VolumeSnapshotClass", "labels", "cloudcasa.io/csi-volumesnapshot-class"),
]
"""What each tool looks for, by its own documentation."""


def examples(tool: str) -> list[Document]:
    """The values that the page shows for a tool, block by block."""
    return list(values_in(PAGE.read_text().partition(f"\n## {tool}\n")[2].partition("\n## ")[0]))


@pytest.mark.parametrize(("tool", "kind", "where", "mark"), MARKS)
def test_the_first_example_of_the_page_marks_one_class(
    chart: Chart, tool: str, kind: str, where: str, mark: str
) -> None:
    documents = chart.render(examples(tool)[0])
    marked = [one["metadata"]["name"] for one in documents.of(kind) if one["metadata"][where].get(mark) == "true"]
    assert marked == ["tidemark"]


def test_a_class_of_its_own_for_one_tool(chart: Chart) -> None:
    _, own = examples("Velero")
    made = chart.render(own).one("VolumeSnapshotClass", "tidemark-velero")
    assert made["deletionPolicy"] == "Retain"
    assert made["metadata"]["labels"]["velero.io/csi-volumesnapshot-class"] == "true"


@pytest.mark.parametrize(
    ("section", "kind", "group"),
    [
        ("snapshots", "VolumeSnapshotClass", "snapshot.storage"),
        ("groupSnapshots", "VolumeGroupSnapshotClass", "groupsnapshot.storage"),
    ],
)
def test_several_classes_of_a_kind(chart: Chart, section: str, kind: str, group: str) -> None:
    mine = {
        "default": True,
        "deletionPolicy": "Retain",
        "labels": {"example.com/part": "mine"},
        "annotations": {"example.com/note": "mine"},
    }
    values = {
        "extraLabels": {"example.com/part": "all"},
        "driverName": "disks.example.com",
        section: {"class": {"default": False}, "classes": {"mine": mine, "plain": {}}},
    }
    documents = chart.render(values)
    assert documents.names(kind) == {"tidemark", "mine", "plain"}
    default = f"{group}.kubernetes.io/is-default-class"
    for name in ("tidemark", "plain"):
        assert documents.one(kind, name)["metadata"]["annotations"] == {default: "false"}
        assert documents.one(kind, name)["metadata"]["labels"]["example.com/part"] == "all"
        assert documents.one(kind, name)["deletionPolicy"] == "Delete"
    made = documents.one(kind, "mine")
    assert made["apiVersion"] == f"{group}.k8s.io/v1"
    assert made["metadata"]["annotations"] == {default: "true", "example.com/note": "mine"}
    assert made["metadata"]["labels"]["example.com/part"] == "mine", "the object's own wins"
    assert (made["driver"], made["deletionPolicy"]) == ("disks.example.com", "Retain")


def test_where_the_kind_is_not_served_there_is_no_class_of_it(chart: Chart) -> None:
    values = {"snapshots": {"classes": {"mine": {}}}, "groupSnapshots": {"classes": {"mine": {}}}}
    assert not chart.render(values, serves=()).of("VolumeSnapshotClass")
    documents = chart.render(values, serves=SNAPSHOTS)
    assert documents.names("VolumeSnapshotClass") == {"tidemark", "mine"}
    assert not documents.of("VolumeGroupSnapshotClass")
    assert chart.render(values, serves=EVERYTHING).names("VolumeGroupSnapshotClass") == {"tidemark", "mine"}


def test_a_storage_class_has_labels_and_topologies_of_its_own(chart: Chart) -> None:
    terms = [{"matchLabelExpressions": [{"key": "topology.csi.tidemark.dev/node", "values": ["worker-1"]}]}]
    mine = {"labels": {"example.com/part": "mine"}, "allowedTopologies": terms}
    made = chart.render({"storageClasses": {"mine": mine}}).one("StorageClass", "mine")
    assert made["metadata"]["labels"]["example.com/part"] == "mine"
    assert made["allowedTopologies"] == terms
    assert "allowedTopologies" not in chart.render().one("StorageClass", "tidemark")

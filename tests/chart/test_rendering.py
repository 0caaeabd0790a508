"""What helm makes of sets of values: valid for every Kubernetes from 1.32 on, and, line by line, what was reviewed.

After a change that is meant: `pytest tests/chart --snapshot-update`, and read the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate.utils
import pytest
from chart_rig import CHART, EVERYTHING, VALUES, Chart, Refused
from kubernetes_validate.utils import all_versions
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

# It reads all definitions of a version again for each document: 2 MB of JSON, some thousand times.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)

OLDEST = (1, 32)
VERSIONS = [version for version in dict.fromkeys(all_versions()) if tuple(map(int, version.split(".")[:2])) >= OLDEST]
"""All that the validator knows, such as 1.37.0."""

OTHERS = {
    "VolumeSnapshotClass": {"apiVersion", "kind", "metadata", "driver", "deletionPolicy", "parameters"},
    "VolumeGroupSnapshotClass": {"apiVersion", "kind", "metadata", "driver", "deletionPolicy", "parameters"},
    "ServiceMonitor": {"apiVersion", "kind", "metadata", "spec"},
    "PrometheusRule": {"apiVersion", "kind", "metadata", "spec"},
    "Certificate": {"apiVersion", "kind", "metadata", "spec"},
    "SecurityContextConstraints": {
        *("apiVersion", "kind", "metadata", "allowedCapabilities", "allowHostDirVolumePlugin", "allowHostIPC"),
        *("allowHostNetwork", "allowHostPID", "allowHostPorts", "allowPrivilegedContainer", "allowPrivilegeEscalation"),
        *("defaultAddCapabilities", "fsGroup", "groups", "readOnlyRootFilesystem", "requiredDropCapabilities"),
        *("runAsUser", "seccompProfiles", "seLinuxContext", "supplementalGroups", "users", "volumes"),
    },
}
"""Kinds of other projects, of which no schema lies here, and the fields that they have."""

SETS = {
    "default": (None, EVERYTHING),
    "bare-cluster": (None, ()),
    "everything": (VALUES / "everything.yaml", EVERYTHING),
    "groups": (VALUES / "groups.yaml", EVERYTHING),
    "least": (VALUES / "least.yaml", EVERYTHING),
    "lvm": (VALUES / "lvm.yaml", EVERYTHING),
}


class Manifests(SingleFileSnapshotExtension):
    """One file of YAML for each set, as helm writes it."""

    file_extension = "yaml"
    _write_mode = WriteMode.TEXT

    def serialize(self, data: Any, **_: Any) -> str:
        return str(data)


def test_the_versions_begin_with_the_oldest_that_the_chart_takes(chart: Chart) -> None:
    assert VERSIONS[0].startswith("1.32")
    assert len(VERSIONS) >= 6
    with pytest.raises(Refused, match="requires kubeVersion"):
        chart.render(kubernetes="1.31.9")


def test_helm_finds_nothing_to_say(chart: Chart) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in chart.lint()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_every_manifest_is_valid(chart: Chart, name: str, version: str) -> None:
    values, serves = SETS[name]
    documents = chart.render(values, serves=serves, kubernetes=version)
    assert len(documents) > 10
    for document in documents:
        if (fields := OTHERS.get(document["kind"])) is not None:
            assert set(document) <= fields
            continue
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", ["default", "everything", "groups", "lvm"])
def test_they_are_what_was_reviewed(chart: Chart, name: str, snapshot: SnapshotAssertion) -> None:
    values, serves = SETS[name]
    text = chart.text(values, serves=serves)
    # The definitions have tests of their own, and the dashboard is a file: neither is worth a second copy.
    parts = [part for part in text.split("---\n# Source: ") if not part.startswith("tidemark/templates/crds.yaml")]
    shown = "---\n# Source: ".join(parts).replace((CHART / "files" / "dashboard.json").read_text().strip(), "")
    assert shown == snapshot(extension_class=Manifests)


@pytest.mark.parametrize("name", SETS)
def test_objects_are_named_once_and_belong_to_the_release(chart: Chart, name: str) -> None:
    values, serves = SETS[name]
    documents = chart.render(values, serves=serves)
    names = sorted((one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in documents)
    assert all(one != other for one, other in pairwise(names))
    for document in documents:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "tidemark"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_extra_labels_reach_every_object_and_pod_but_no_selector(chart: Chart) -> None:
    for document in chart.render(VALUES / "everything.yaml"):
        assert document["metadata"]["labels"]["example.com/team"] == "storage", document["metadata"]["name"]
        spec = document.get("spec") or {}
        if "template" in spec:
            assert spec["template"]["metadata"]["labels"]["example.com/team"] == "storage"
        if document["kind"] in {"DaemonSet", "Deployment"}:
            assert "example.com/team" not in spec["selector"]["matchLabels"]
            # A selector can never be changed, so that nothing in it follows from a version or a value.
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(spec["selector"]["matchLabels"])


def keys(node: Any) -> Iterator[str]:
    """All keys of a document, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from keys(value)
    elif isinstance(node, list):
        for one in node:
            yield from keys(one)


@pytest.mark.parametrize("name", SETS)
def test_no_key_is_a_piece_of_a_sentence(chart: Chart, name: str) -> None:
    """A comma in `{...}` that has no quotes around it makes one."""
    values, serves = SETS[name]
    for document in chart.render(values, serves=serves):
        assert [key for key in keys(document) if " " in key] == [], document["metadata"]["name"]


@pytest.mark.parametrize("name", SETS)
def test_annotations_for_all_reach_every_object(chart: Chart, name: str) -> None:
    values, serves = SETS[name]
    plain = chart.render(values, serves=serves)
    wanted = {"example.com/owner": "storage", "example.com/ticket": "1234567"}
    strings = ("commonAnnotations.example\\.com/owner=storage", "commonAnnotations.example\\.com/ticket=1234567")
    marked = chart.render(values, serves=serves, strings=strings)
    for before, after in zip(plain, marked, strict=True):
        own = before["metadata"].get("annotations", {})
        assert after["metadata"]["annotations"] == {**wanted, **own}, after["metadata"]["name"]


def test_the_validation_sees_a_typing_error(chart: Chart) -> None:
    (agents,) = chart.render().of("DaemonSet")
    (container,) = agents["spec"]["template"]["spec"]["containers"]
    container["imge"] = container.pop("image")
    with pytest.raises(kubernetes_validate.ValidationError, match="imge"):
        kubernetes_validate.validate(agents, VERSIONS[-1], strict=True)


def test_each_definition_of_ours_is_rendered_whole_and_kept(chart: Chart) -> None:
    files = sorted(Path(CHART / "files" / "crds").glob("*.yaml"))
    definitions = chart.render().of("CustomResourceDefinition")
    assert len(definitions) == len(files)
    for definition in definitions:
        assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert definition["spec"]["group"] == "tidemark.dev"


def test_the_driver_stays_when_the_chart_goes(chart: Chart) -> None:
    driver = chart.render().one("CSIDriver", "csi.tidemark.dev")
    assert driver["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": False,
        "volumeLifecycleModes": ["Persistent"],
        "storageCapacity": True,
        "fsGroupPolicy": "File",
        "requiresRepublish": False,
        "seLinuxMount": True,
    }


@pytest.mark.parametrize(("version", "there"), [("1.36.4", False), ("1.37.0", True)])
def test_a_field_that_older_clusters_do_not_know_is_left_out_there(chart: Chart, version: str, there: bool) -> None:
    documents = chart.render({"csiDriver": {"preventPodSchedulingIfMissing": True}}, kubernetes=version)
    assert ("preventPodSchedulingIfMissing" in documents.of("CSIDriver")[0]["spec"]) is there

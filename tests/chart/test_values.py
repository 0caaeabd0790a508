"""Values: each is documented where it stands and known to the schema; what the schema does not know is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rig import CHART, EVERYTHING, Chart, Document, Refused

from csi_driver.cli.sizes import parse

TEXT = (CHART / "values.yaml").read_text()
VALUES: Document = yaml.safe_load(TEXT)
SCHEMA: Document = json.loads((CHART / "values.schema.json").read_text())

REFUSED = [
    ({"imge": {"tag": "1"}}, "imge"),
    ({"image": {"tagg": "1"}}, "tagg"),
    ({"agent": {"overCommit": 2}}, "overCommit"),
    ({"agent": {"resources": {"request": {"cpu": "1"}}}}, "request"),
    ({"agent": {"tolerations": [{"keys": "a"}]}}, "keys"),
    ({"controller": {"podDisruptionBudget": {"maxUnavailabel": 1}}}, "maxUnavailabel"),
    ({"controller": {"affinity": {"nodeafinity": {}}}}, "nodeafinity"),
    ({"sidecars": {"provisionner": {}}}, "provisionner"),
    ({"sidecars": {"provisioner": {"args": []}}}, "args"),
    ({"pools": [{"name": "fast", "directory": "/srv"}]}, "directory"),
    ({"nodeGroups": {"nvme": {"nodes": {"label": "a", "value": "b"}}}}, "value"),
    ({"nodeGroups": {"nvme": {"pools": []}}}, "nodes"),
    ({"storageClasses": {"tidemark": {"parameters": {"pol": "fast"}}}}, "pol"),
    ({"snapshots": {"enable": True}}, "enable"),
    ({"monitoring": {"prometheusRules": {}}}, "prometheusRules"),
    ({"tls": {"certManager": {"issuer": {"names": "a"}}}}, "names"),
    ({"uninstall": {"forced": True}}, "forced"),
    ({"networkPolicy": {"metrics": []}}, "metrics"),
    ({"snapshots": {"classes": {"mine": {"create": True}}}}, "create"),
    ({"storageClasses": {"tidemark": {"allowedTopologies": [{"matchLabels": {}}]}}}, "matchLabels"),
    ({"controller": {"updateStrategy": {"rollingUpdate": {"maxSurges": 1}}}}, "maxSurges"),
]
WRONG = [
    ({"snapshots": {"enabled": "maybe"}}, "snapshots/enabled"),
    ({"image": {"digest": "latest"}}, "image/digest"),
    ({"kubeletDirectory": "var/lib/kubelet"}, "kubeletDirectory"),
    ({"pools": [{"name": "Fast", "path": "/srv"}]}, "pools/0/name"),
    ({"pools": [{"name": "fast", "path": "/srv/my disk"}]}, "pools/0/path"),
    ({"pools": [{"name": "fast", "volumeGroup": "vg/pool"}]}, "pools/0/volumeGroup"),
    ({"pools": [{"name": "fast", "volumeGroup": "vg", "thinPool": "-pool"}]}, "pools/0/thinPool"),
    ({"poolImage": {"size": "20 gigabytes"}}, "poolImage/size"),
    ({"agent": {"overcommit": 0}}, "agent/overcommit"),
    ({"controller": {"replicas": 0}}, "controller/replicas"),
    ({"storageClasses": {"tidemark": {"parameters": {"provisioning": "thik"}}}}, "storageClasses/tidemark"),
    ({"monitoring": {"prometheusRule": {"freezeBudgetSeconds": 0.3}}}, "freezeBudgetSeconds"),
    ({"nodeGroups": {"default": {"nodes": {"label": "a", "values": ["b"]}}}}, "'default'"),
    ({"extraLabels": {"app.kubernetes.io/name": "other"}}, "'app.kubernetes.io/name'"),
    ({"agent": {"overcommit": "0.0"}}, "agent/overcommit"),
    ({"agent": {"maxSnapshots": "many"}}, "agent/maxSnapshots"),
    ({"agent": {"maxSnapshots": "010"}}, "agent/maxSnapshots"),
    ({"agent": {"metricsVolumes": -1}}, "agent/metricsVolumes"),
    ({"agent": {"nodeSelector": {"example.com/disks": True}}}, "agent/nodeSelector"),
]


SIZES = ["4096", "500M", "300Mi", "20G", "20Gi", "1.5Gi", "0.5T", "2Ti", "7P", "3Pi", "1000K", "1000Ki"]
NUMBERS = [1, 4096, 1234567, 20 * 2**30, 3 * 2**50]


def test_sizes_are_read_as_the_agent_reads_them(chart: Chart, tmp_path: Path) -> None:
    """Where a pool's image may not shrink, helm has to know which of two sizes is the smaller one, numbers or texts."""
    copy = Path(shutil.copytree(CHART, tmp_path / "tidemark"))
    (copy / "values.schema.json").unlink()  # it does not know the value of this test
    read = '  {{- range .Values.sizes }}\n  - {{ include "tidemark.bytes" . | quote }}\n  {{- end }}\n'
    (copy / "templates" / "sizes.yaml").write_text(f"kind: Sizes\nread:\n{read}")
    sizes = [*SIZES, *NUMBERS]
    words = ",".join(str(size) for size in sizes)
    for documents in (
        chart.render({"sizes": sizes}, chart=copy),
        chart.render(sets=[f"sizes={{{words}}}"], chart=copy),
    ):
        (found,) = documents.of("Sizes")
        assert [int(size) for size in found["read"]] == [parse(str(size)) for size in sizes]


@pytest.mark.parametrize("way", ["file", "set", "string"])
def test_a_pool_image_that_is_there_never_shrinks(chart: Chart, tmp_path: Path, way: str) -> None:
    """`helm upgrade` asks the cluster for the size that its agents have. Here a file has the cluster's answer."""
    copy = Path(shutil.copytree(CHART, tmp_path / "tidemark"))
    (copy / "installed.yaml").write_text(yaml.safe_dump(chart.render().one("DaemonSet", "tidemark-agent")))
    guards = copy / "templates" / "_guards.tpl"
    asked, text = '(lookup "apps/v1" "DaemonSet" $root.Release.Namespace $name)', guards.read_text()
    assert asked in text
    guards.write_text(text.replace(asked, '($root.Files.Get "installed.yaml" | fromYaml)'))

    def upgrade(size: int) -> Document:
        given: dict[str, dict[str, Any]] = {
            "file": {"values": {"poolImage": {"size": size}}},
            "set": {"sets": [f"poolImage.size={size}"]},
            "string": {"strings": [f"poolImage.size={size}"]},
        }
        return chart.render(chart=copy, **given[way]).one("DaemonSet", "tidemark-agent")

    there = 20 * 2**30
    assert f"'value': '{2 * there}'" in str(upgrade(2 * there))
    upgrade(there)
    with pytest.raises(Refused, match=rf"cannot become {there - 1}: it is 20Gi"):
        upgrade(there - 1)


def properties(schema: Document) -> dict[str, Any]:
    """The properties of a schema, through a reference where it is one."""
    if reference := schema.get("$ref"):
        schema = SCHEMA["definitions"][reference.rpartition("/")[2]]
    return dict(schema.get("properties", {}))


def objects(schema: Any) -> list[Document]:
    """All schemas of objects with named properties, however deep."""
    found: list[Document] = []
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            found.append(schema)
        found += [one for value in schema.values() for one in objects(value)]
    elif isinstance(schema, list):
        found += [one for value in schema for one in objects(value)]
    return found


@pytest.mark.parametrize(("values", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_a_typing_error_is_refused_by_its_name(chart: Chart, values: Document, name: str) -> None:
    with pytest.raises(Refused) as refused:
        chart.render(values)
    assert f"'{name}'" in str(refused.value)


@pytest.mark.parametrize(("values", "where"), WRONG, ids=[where for _, where in WRONG])
def test_a_value_that_cannot_be_meant_is_refused(chart: Chart, values: Document, where: str) -> None:
    with pytest.raises(Refused) as refused:
        chart.render(values)
    assert where in str(refused.value)


def test_the_schema_is_closed_everywhere() -> None:
    found = objects(SCHEMA)
    assert len(found) > 30
    found.remove(SCHEMA["properties"]["global"])  # for the other charts of whoever hands it down
    for one in found:
        assert one.get("additionalProperties") is False, sorted(one["properties"])


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    """A value without a default would stand nowhere where a reader looks."""

    def compare(values: Document, schema: Document, path: str) -> int:
        known = properties(schema)
        if not known:  # a map whose names are the user's
            return 0
        assert set(values) == set(known), path
        count = len(values)
        for key, value in values.items():
            if isinstance(value, dict) and value:
                count += compare(value, known[key], f"{path}.{key}")
        return count

    resources = SCHEMA["definitions"]["resources"]["properties"]
    SCHEMA["definitions"]["resources"]["properties"] = {}  # a default names only what it asks for
    try:
        assert compare(VALUES, SCHEMA, "values") > 90
    finally:
        SCHEMA["definitions"]["resources"]["properties"] = resources
    one = SCHEMA["properties"]["storageClasses"]["additionalProperties"]["anyOf"][1]
    assert set(VALUES["storageClasses"]["tidemark"]) == set(one["properties"])


def test_the_page_of_values_is_what_the_comments_say() -> None:
    """Also the test that every value has a comment: the page cannot be written without."""
    from tools import values_reference

    assert values_reference.PAGE.read_text() == values_reference.page(TEXT), (
        "docs/reference/values.md is not what values.yaml says: run python tests/tools/values_reference.py"
    )


def test_a_value_without_a_comment_is_found() -> None:
    from tools import values_reference

    assert {value.name for value in values_reference.documented(TEXT)} >= set(VALUES)
    with pytest.raises(ValueError, match=r"agent\.surprise has no comment"):
        values_reference.page(TEXT.replace("\nagent:\n", "\nagent:\n  surprise: 1\n", 1))


def test_the_chart_can_be_part_of_another(chart: Chart) -> None:
    """Helm hands `global` to every chart below another one, with whatever is in it for the others."""
    assert chart.render({"global": {"storageClass": "other", "imageRegistry": None}}) == chart.render()


def test_every_way_to_say_yes_and_no_is_taken(chart: Chart) -> None:
    for word in ("true", "false", "auto"):
        chart.render(sets=[f"snapshots.enabled={word}"], serves=EVERYTHING)

"""What the pages on releases and support say is what is made, and what is tested."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes_validate.utils import all_versions
from release_trees import TREE, VERSION

pytestmark = pytest.mark.xdist_group("release")

HOW_TO = TREE / "docs" / "how-to"
SUPPORT = (TREE / "docs" / "reference" / "support.md").read_text()


def found(pattern: str, path: str) -> str:
    """The group of a pattern in a file of the tree."""
    match = re.search(pattern, (TREE / path).read_text(), re.MULTILINE)
    assert match is not None, f"{path} has no {pattern}"
    return match[1]


def rows(page: str, heading: str) -> dict[str, str]:
    """The first two columns of the first table below a heading."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", section, re.MULTILINE)[1:])


def test_every_file_is_described_and_no_other(files: Path) -> None:
    page = (HOW_TO / "releases.md").read_text()
    named = {name.strip("`").replace("VERSION", VERSION) for name in rows(page, "The files")}
    assert named == {path.name for path in files.iterdir()} | {f"tidemark-csi-{VERSION}.oci.tar"}


def test_the_sidecars_are_fetched_as_the_page_says(files: Path, tmp_path: Path) -> None:
    """Its lines, with a skopeo that only writes down what it is asked for."""
    (script,) = re.findall(r"```sh\n(tail .*?)```", (HOW_TO / "install-without-a-registry.md").read_text(), re.DOTALL)
    (tmp_path / "skopeo").write_text(f'#!/bin/sh\ncat >/dev/null\necho "$3 $4" >>{tmp_path}/words\n')
    (tmp_path / "skopeo").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-e", "-c", script], cwd=files, env={**os.environ, "PATH": path}, check=True)
    images = (files / "images.txt").read_text().splitlines()[1:]
    expected = [
        f"docker://{name} oci-archive:{name.rpartition('/')[2].partition(':')[0]}.oci.tar:{name}" for name in images
    ]
    assert (tmp_path / "words").read_text().splitlines() == expected


def test_the_tested_kubernetes_is_the_clusters() -> None:
    version = found(r"^kubernetes=(\S+)$", "tests/tools/kubernetes.sh")
    table = rows(SUPPORT, "Kubernetes")
    minor = version.rpartition(".")[0]
    assert f"runs {version} with all scenarios" in table[minor]
    minors = {minor, *(name for names in table for name in names.split(", ") if name[0].isdigit())}
    known = {".".join(name.split(".")[:2]) for name in all_versions()}
    assert minors <= known, "the chart's tests know no API of these"
    oldest = min(minors, key=lambda name: int(name.partition(".")[2]))
    assert found(r'^kubeVersion: ">=(\d+\.\d+)\.0-0"$', "charts/tidemark/Chart.yaml") == oldest


def test_helm_sidecars_and_the_version_before_are_those_of_the_tests() -> None:
    assert rows(SUPPORT, "Nodes")["helm"] == "3"
    assert f"| helm | 3 | {found(r'^helm=v(.*)$', 'tests/tools/kubernetes.sh')} |" in SUPPORT
    pinned = yaml.safe_load((TREE / "charts" / "tidemark" / "versions.yaml").read_text())
    assert {name.partition(",")[0]: version for name, version in rows(SUPPORT, "Sidecars").items()} == pinned
    before = found(r'^COMMIT = "(\w+)"$', "tests/cluster/rig/earlier.py")
    assert f"n-1 is commit {before}." in SUPPORT

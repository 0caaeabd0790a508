"""The files of a release are the same for everybody who makes it, complete, and of use without the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from release_trees import VERSION, command

from release import source

pytestmark = [pytest.mark.slow(seconds=10), pytest.mark.xdist_group("release")]

EVERYTHING_ON = {
    "snapshotController": {"install": True},
    "networkPolicy": {"enabled": True},
    "openshift": {"securityContextConstraints": True},
    "monitoring": {kind: {"enabled": True} for kind in ("serviceMonitor", "prometheusRule", "dashboard")},
}
SERVED = ("snapshot.storage.k8s.io/v1/VolumeSnapshotClass", "groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass")


def templates(helm: Path, chart: Path, values: dict[str, Any]) -> str:
    """What helm makes of a chart or its archive."""
    served = [word for api in SERVED for word in ("--api-versions", api)]
    argv = [str(helm), "template", "tidemark", str(chart), "--kube-version", "1.34.4", *served, "--values", "-"]
    run = subprocess.run(argv, input=yaml.safe_dump(values), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def images_in(document: object) -> set[str]:
    """Names of images anywhere in a document."""
    if isinstance(document, list):
        return set().union(*map(images_in, document))
    if isinstance(document, dict):
        named = {document["image"]} if isinstance(document.get("image"), str) else set()
        return named.union(*map(images_in, document.values()))
    return set()


def test_two_releases_of_one_commit_are_equal(releases: tuple[Path, Path]) -> None:
    first, second = ({path.name: path.read_bytes() for path in directory.iterdir()} for directory in releases)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_all_files_are_there_and_have_their_checksum(files: Path) -> None:
    assert {path.name for path in files.iterdir()} == {
        *(f"tidemark_csi-{VERSION}-py3-none-any.whl", f"tidemark_csi-{VERSION}.tar.gz"),
        *(f"tidemark-{VERSION}.tgz", f"tidemark-{VERSION}-chart.oci.tar", f"tidemark-{VERSION}.cdx.json"),
        *("images.txt", "digests.txt", "CHANGES.md", "SHA256SUMS"),
    }
    checked = command("sha256sum", "--check", "--strict", "SHA256SUMS", directory=files)
    assert checked.returncode == 0, checked.stdout
    assert len(checked.stdout.splitlines()) == len(list(files.iterdir())) - 1


def test_nothing_names_the_place_where_it_was_made(files: Path) -> None:
    wanted = str(files.parent.parent).encode()
    for path in files.iterdir():
        assert wanted not in path.read_bytes(), path.name
    for name in ("tidemark-7.8.9.tgz", "tidemark_csi-7.8.9.tar.gz", "tidemark-7.8.9-chart.oci.tar"):
        with tarfile.open(files / name) as archive:
            assert {(entry.uid, entry.gid, entry.uname, entry.gname, int(entry.mtime)) for entry in archive} == {
                (0, 0, "", "", 1793851628)
            }, name


def test_the_source_archive_builds_the_wheel(files: Path, tmp_path: Path) -> None:
    with tarfile.open(files / f"tidemark_csi-{VERSION}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / f"tidemark_csi-{VERSION}"
    argv = (sys.executable, "-m", "hatchling", "build", "--target", "wheel")
    built = command(*argv, directory=tree, SOURCE_DATE_EPOCH="1793851628")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tree / "dist").iterdir()
    assert wheel.read_bytes() == (files / wheel.name).read_bytes()
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        metadata = BytesParser().parsebytes(content.read(f"tidemark_csi-{VERSION}.dist-info/METADATA"))
    assert metadata["Version"] == VERSION
    assert {"csi_driver/cli/main.py", "csi_driver/_pb/csi_pb2.py", "csi_driver/_pb/tidemark_pb2_grpc.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "release/"))]


def test_the_charts_archive_is_the_chart(files: Path, helm: Path, tmp_path: Path) -> None:
    packed = files / f"tidemark-{VERSION}.tgz"
    assert templates(helm, packed, {}) == templates(helm, files.parent.parent / "charts" / "tidemark", {})
    linted = command(helm, "lint", "--strict", packed, directory=tmp_path)
    assert "0 chart(s) failed" in linted.stdout, linted.stdout + linted.stderr


def test_the_oci_archive_holds_the_same_chart(files: Path) -> None:
    """By the media types that helm's documentation has: a registry takes it as what `helm push` sends."""
    with tarfile.open(files / f"tidemark-{VERSION}-chart.oci.tar") as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

        def blob(descriptor: dict[str, Any]) -> bytes:
            data = read(f"blobs/{descriptor['digest'].replace(':', '/')}")
            assert len(data) == descriptor["size"]
            return data

        assert json.loads(read("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
        (entry,) = json.loads(read("index.json"))["manifests"]
        manifest = json.loads(blob(entry))
        assert manifest["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
        (layer,) = manifest["layers"]
        assert layer["mediaType"] == "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
        assert blob(layer) == (files / f"tidemark-{VERSION}.tgz").read_bytes()
        config = json.loads(blob(manifest["config"]))
    assert (config["name"], config["version"], config["appVersion"]) == ("tidemark", VERSION, VERSION)
    assert f"{entry['digest']}  tidemark:{VERSION} chart\n" in (files / "digests.txt").read_text()


def test_the_list_of_images_is_what_the_chart_can_use(files: Path, helm: Path) -> None:
    documents = list(yaml.safe_load_all(templates(helm, files / f"tidemark-{VERSION}.tgz", EVERYTHING_ON)))
    listed = (files / "images.txt").read_text().splitlines()
    assert len(listed) == 5
    assert set(listed) == images_in(documents)


def test_the_bill_of_materials_is_valid_and_names_the_images(files: Path) -> None:
    text = (files / f"tidemark-{VERSION}.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"type": "container"', '"type": "box"')) is not None
    document = json.loads(text)
    assert document["metadata"]["component"]["version"] == VERSION
    names = {f"{one['name']}:{one['version']}" for one in document["components"]}
    assert names == set((files / "images.txt").read_text().splitlines()[1:])


def test_the_changes_are_the_changelogs(files: Path) -> None:
    text = (files / "CHANGES.md").read_text()
    assert text.startswith("### Added\n\n- ")
    assert "\n## " not in text
    assert text.strip() in (files.parent.parent / "CHANGELOG.md").read_text()


def test_an_export_is_the_commit_and_nothing_else(files: Path, tmp_path: Path) -> None:
    tree = files.parent.parent
    source.export(tree, source.head(tree), tmp_path)
    assert (tmp_path / "Makefile").exists()
    assert not (tmp_path / "dist").exists()
    assert not (tmp_path / ".git").exists()
    assert (tmp_path / "Makefile").stat().st_mtime == 1793851628

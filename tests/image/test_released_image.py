"""The archive of a release is taken by containerd, as a node's is, and what is in it works: without a registry, and by hand."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from test_image import Image, image, output  # noqa: F401

from csi_driver import __version__
from release import sbom
from release.image import Built, add, release_labels
from release.oci import Layout
from release.source import Commit

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow(seconds=60),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("image"),
]

NAME = "registry.example.com/storage/tidemark-csi:7.8.9"
COMMIT = Commit("0123456789abcdef0123456789abcdef01234567", 1_793_851_628)
CONFIG = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/socket"
"""


@pytest.fixture(scope="module")
def built(image: Image) -> Built:  # noqa: F811
    return Built(output("dpkg", "--print-architecture"), image.root, image.config)


@pytest.fixture
def ctr() -> Iterator[list[str]]:
    """The command for a containerd of its own. Its socket's path is short."""
    missing = [
        command
        for command in ("containerd", "ctr", "runc")
        if subprocess.call(["which", command], stdout=subprocess.DEVNULL)
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: install Debian's containerd and runc")
    with tempfile.TemporaryDirectory(prefix="tidemark-containerd-") as scratch:
        config = Path(scratch, "config.toml")
        config.write_text(CONFIG.format(scratch))
        with Path(scratch, "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["containerd", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            argv = ["ctr", "--address", f"{scratch}/socket", "--namespace", "k8s.io"]
            deadline = time.monotonic() + 60
            while subprocess.run([*argv, "version"], capture_output=True, check=False).returncode:
                assert daemon.poll() is None, Path(scratch, "log").read_text()
                assert time.monotonic() < deadline, Path(scratch, "log").read_text()
                time.sleep(0.1)
            yield argv
        finally:
            daemon.terminate()
            daemon.wait(60)


def test_a_node_imports_it_and_runs_it(built: Built, ctr: list[str], tmp_path: Path) -> None:
    layout = Layout()
    manifest = add(layout, built, COMMIT, "7.8.9")
    index = layout.add_index([manifest], release_labels(COMMIT, "7.8.9"))
    layout.write(tmp_path / "image.tar", index, NAME, COMMIT.seconds)
    output(*ctr, "images", "import", "--snapshotter", "native", tmp_path / "image.tar")
    listed = output(*ctr, "images", "list", f"name=={NAME}").splitlines()[1].split()
    assert listed[:3] == [NAME, "application/vnd.oci.image.index.v1+json", index["digest"]]
    assert f"linux/{built.architecture}" in listed
    run = (*ctr, "run", "--rm", "--snapshotter", "native", NAME, "tidemark-test")
    assert output(*run, "tidemark", "--version") == f"tidemark {__version__}"


def test_python_takes_the_compiled_modules_as_they_are(built: Built) -> None:
    """The archive changes times of files: a module compiled for the time of its source would be compiled at every start."""
    modules = list((built.root / "opt/tidemark/lib").rglob("csi_driver/**/*.pyc"))
    assert len(modules) > 100
    assert {path.read_bytes()[4:8] for path in modules} == {b"\x01\0\0\0"}  # by a hash that is not compared


def test_its_bill_of_materials_names_what_is_in_it(built: Built) -> None:
    packages = sbom.in_image(built.root)
    text = sbom.document(COMMIT, "7.8.9", [NAME], [(built.architecture, f"sha256:{'ab' * 32}", packages)])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == sbom.document(COMMIT, "7.8.9", [NAME], [(built.architecture, f"sha256:{'ab' * 32}", packages[::-1])])
    version = output(
        "dpkg-query", f"--admindir={built.root}/var/lib/dpkg", "--show", "--showformat=${Version}", "xfsprogs"
    )
    assert f'"pkg:deb/debian/xfsprogs@{version}?arch={built.architecture}&distro=debian-12"' in text
    assert f'"pkg:pypi/tidemark-csi@{__version__}"' in text
    assert {"python3", "e2fsprogs", "util-linux"} <= {package.name for package in packages if package.kind == "deb"}
    assert {"grpcio", "kubernetes", "cryptography"} <= {package.name for package in packages if package.kind == "pypi"}

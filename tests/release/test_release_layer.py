"""Layers: the same bytes for the same files, nothing of the machine that built them, and what tar reads back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pytest

from release import layer, sbom

DAY = 1_790_000_000


def write(root: Path, name: str, text: str, *, mode: int = 0o644, seconds: int = DAY - 1000) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.utime(path, (seconds, seconds))


def root_files(root: Path, *, backwards: bool, late: int) -> Path:
    """The same image, made in another order and at another time."""
    files = {
        "usr/bin/tool": "program",
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
        "etc/shadow": f"root:*:{late}:0:99999:7:::\nbin:!:{late}:0::::\n",
        "etc/resolv.conf": f"nameserver 192.0.2.{late % 200}\n",
        "etc/machine-id": f"{late}\n",
        "var/log/apt/term.log": f"at {late}",
        "var/lib/apt/lists/list": f"{late}",
        "var/cache/apt/archives/partial/package.deb": f"{late}",
        "var/lib/dpkg/status": "Package: tool\n",
        "var/lib/dpkg/status-old": f"{late}",
        "etc/tidemark-build/ca.crt": "",
        "tmp/left": f"{late}",
        "opt/tidemark/bin/tidemark": "ours",
    }
    for name in sorted(files, reverse=backwards):
        write(root, name, files[name], mode=0o755 if "/bin/" in name else 0o644)
    write(root, "etc/made", "by the build", seconds=DAY + late)
    os.link(root / "usr/bin/tool", root / "usr/bin/alias")
    (root / "bin").symlink_to("usr/bin")
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            os.utime(path, (DAY + late, DAY + late))
    return root


def unpacked(archive: bytes, target: Path) -> Path:
    """By the tar of the machine, not by the library that wrote it."""
    target.mkdir()
    subprocess.run(["tar", "--extract", "--xattrs", f"--directory={target}"], input=archive, check=True)
    return target


def test_the_same_files_are_the_same_bytes(tmp_path: Path) -> None:
    first = layer.tar(root_files(tmp_path / "a", backwards=False, late=20001), DAY)
    second = layer.tar(root_files(tmp_path / "b", backwards=True, late=20002), DAY)
    assert first == second
    assert layer.compress(first) == layer.compress(second)
    (tmp_path / "b" / "etc" / "passwd").chmod(0o600)
    assert layer.tar(tmp_path / "b", DAY) != first


def test_what_is_in_it(tmp_path: Path) -> None:
    root = unpacked(layer.tar(root_files(tmp_path / "a", backwards=False, late=20001), DAY), tmp_path / "out")
    assert (root / "usr/bin/tool").read_text() == "program"
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "usr/bin/tool").stat().st_ino == (root / "usr/bin/alias").stat().st_ino
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "etc/shadow").read_text() == "root:*::0:99999:7:::\nbin:!::0::::\n"
    for name in ("etc/resolv.conf", "etc/machine-id"):
        assert (root / name).read_text() == "", name
    for name in ("var/log/apt", "var/lib/apt/lists", "var/cache/apt/archives/partial", "tmp"):
        assert list((root / name).iterdir()) == [], name
    for name in ("var/lib/dpkg/status-old", "etc/tidemark-build"):
        assert not (root / name).exists(), name
    assert (root / "usr/bin/tool").stat().st_mtime == DAY - 1000
    assert (root / "etc/made").stat().st_mtime == DAY


def test_parts_are_the_whole(tmp_path: Path) -> None:
    source = root_files(tmp_path / "a", backwards=False, late=20001)

    def names(archive: bytes) -> list[str]:
        with tarfile.open(fileobj=BytesIO(archive)) as content:
            return content.getnames()

    below = names(layer.tar(source, DAY, without=("opt/tidemark",)))
    above = names(layer.tar(source, DAY, top="opt/tidemark"))
    assert above == ["opt", "opt/tidemark", "opt/tidemark/bin", "opt/tidemark/bin/tidemark"]
    assert sorted([*below, *above[1:]]) == sorted(names(layer.tar(source, DAY)))


def test_extended_attributes_stay(tmp_path: Path) -> None:
    write(tmp_path / "a", "tool", "program")
    try:
        os.setxattr(tmp_path / "a" / "tool", "user.kept", b"\xff\x00value")
    except OSError as error:
        pytest.skip(f"this file system keeps no extended attributes: {error}")
    with tarfile.open(fileobj=BytesIO(layer.tar(tmp_path / "a", DAY))) as content:
        kept = content.getmember("tool").pax_headers["SCHILY.xattr.user.kept"]
    assert kept.encode("utf-8", "surrogateescape") == b"\xff\x00value"


def test_the_packages_are_those_that_are_installed(tmp_path: Path) -> None:
    admin = tmp_path / "var" / "lib" / "dpkg"
    (admin / "info").mkdir(parents=True)
    (admin / "updates").mkdir()
    form = "Package: {}\nStatus: {}\nMaintainer: A <a@example.com>\nArchitecture: arm64\nVersion: {}\nDescription: a thing\n\n"
    rows = [("xfsprogs", "install ok installed", "6.1.0-1"), ("gone", "deinstall ok config-files", "1")]
    (admin / "status").write_text("".join(form.format(*row) for row in rows))
    assert sbom.debian_packages(tmp_path) == [sbom.Package("deb", "xfsprogs", "6.1.0-1", "arm64")]
    site = Path(pytest.__file__).parents[1]
    found = {package.name: package for package in sbom.python_packages(site)}
    assert found["grpcio"].version == version("grpcio")
    assert found["aiohttp"].license == "Apache-2.0 AND MIT"

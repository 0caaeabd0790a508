"""The chart as an archive, as `helm package` makes it but reproducible, and as an OCI artifact for registries."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path

import yaml

from release.commands import output
from release.oci import Layout
from release.source import Commit

CONFIG = "application/vnd.cncf.helm.config.v1+json"
CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
"""Media types that helm asks for."""


def package(helm: Path, chart: Path, commit: Commit, target: Path) -> Path:
    """Package a chart into a directory and return the archive.

    Helm decides what belongs to the archive and writes the present time into it; this writes the commit's instead.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output(helm, "package", chart, "--destination", scratch)
        (packed,) = Path(scratch).iterdir()
        content = io.BytesIO()
        with tarfile.open(packed) as given, tarfile.open(fileobj=content, mode="w") as made:
            # Chart.yaml stays the first, where readers of a stream expect it.
            for entry in given:
                plain = tarfile.TarInfo(entry.name)
                plain.size, plain.mode, plain.mtime = entry.size, 0o644, commit.seconds
                made.addfile(plain, given.extractfile(entry))
        path = target / packed.name
    path.write_bytes(gzip.compress(content.getvalue(), mtime=commit.seconds))
    return path


def write_oci(packed: Path, commit: Commit, path: Path) -> str:
    """Write a packaged chart as an OCI archive and return the digest that a registry will show for it."""
    with tarfile.open(packed) as archive:
        file = archive.extractfile(archive.next() or "")
        assert file is not None
        chart = yaml.safe_load(file)
    layout = Layout()
    config = layout.add(json.dumps(chart, sort_keys=True).encode(), CONFIG)
    content = layout.add(packed.read_bytes(), CONTENT)
    annotations = {
        "org.opencontainers.image.created": commit.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "org.opencontainers.image.description": chart["description"],
        "org.opencontainers.image.revision": commit.id,
        "org.opencontainers.image.title": chart["name"],
        "org.opencontainers.image.version": chart["version"],
    }
    manifest = layout.add_manifest(config, [content], annotations)
    layout.write(path, manifest, f"{chart['name']}:{chart['version']}", commit.seconds)
    return str(manifest["digest"])

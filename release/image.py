"""The container image: built by its Dockerfile for each architecture, and written as one OCI archive."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release import layer
from release.commands import output
from release.oci import IMAGE_CONFIG, IMAGE_LAYER, Document, Layout, encode
from release.source import Commit

PROGRAM = "opt/tidemark"
"""Where the image has Tidemark and its libraries: a layer of its own above Debian's packages."""


@dataclass(frozen=True)
class Built:
    """An image that is laid out in a directory."""

    architecture: str
    root: Path
    config: dict[str, Any]


@contextmanager
def built(tree: Path, commit: Commit, architecture: str, store: Path) -> Iterator[Built]:
    """Build the image of an exported tree for an architecture, in a store of its own, and lay out its files."""
    environment = {
        **commit.environment,
        "PYTHON": sys.executable,
        "TIDEMARK_ARCH": architecture,
        "TIDEMARK_CACHE": str(store),
    }

    def run(*words: str) -> str:
        script = tree / "tests" / "image" / "build.sh"
        return output("sh", script, *words, environment=environment).decode().strip()

    name = run(f"localhost/tidemark-csi:{architecture}")
    inspected = json.loads(run("buildah", "inspect", "--type", "image", name))
    container = run("buildah", "from", "--pull-never", "--arch", architecture, name)
    try:
        root = Path(run("buildah", "mount", container))
        yield Built(architecture, root, inspected["OCIv1"]["config"])
    finally:
        run("buildah", "rm", container)


def release_labels(commit: Commit, version: str) -> dict[str, str]:
    """Return what says which release an image is."""
    return {
        "org.opencontainers.image.created": commit.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "org.opencontainers.image.revision": commit.id,
        "org.opencontainers.image.version": version,
    }


def add(layout: Layout, image: Built, commit: Commit, version: str) -> Document:
    """Add an image to a layout and return the descriptor of its manifest."""
    notes = release_labels(commit, version)
    layers, contents = [], []
    for archive in (
        layer.tar(image.root, commit.seconds, without=(PROGRAM,)),
        layer.tar(image.root, commit.seconds, top=PROGRAM),
    ):
        packed, content = layer.compress(archive)
        layers.append(layout.add(packed, IMAGE_LAYER))
        contents.append(content)
    labels = {name: text for name, text in image.config["Labels"].items() if name.startswith("org.opencontainers.")}
    kept = {name: image.config[name] for name in ("Cmd", "Entrypoint", "Env")}
    config = {
        "architecture": image.architecture,
        "os": "linux",
        "created": notes["org.opencontainers.image.created"],
        "config": {**kept, "Labels": {**labels, **notes}},
        "rootfs": {"type": "layers", "diff_ids": contents},
        "history": [
            {"created": notes["org.opencontainers.image.created"], "created_by": said}
            for said in ("packages of Debian", "Tidemark and its libraries")
        ],
    }
    platform = {"architecture": image.architecture, "os": "linux"}
    described = layout.add(encode(config), IMAGE_CONFIG)
    return layout.add_manifest(described, layers, {**labels, **notes}, platform=platform)

"""OCI image layouts as one archive: what registries exchange, in a file that containerd, skopeo and others read."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Document = dict[str, Any]


def encode(document: Document) -> bytes:
    """Return a document as JSON that depends on nothing but its content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    """Return the digest of data as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Layout:
    """Blobs by digest, which become an archive with one entry point."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str, **more: Any) -> Document:
        """Add a blob and return its descriptor."""
        name = digest(data)
        self.blobs[name] = data
        return {"mediaType": media_type, "digest": name, "size": len(data), **more}

    def add_manifest(
        self, config: Document, layers: list[Document], annotations: dict[str, str], **more: Any
    ) -> Document:
        """Add a manifest of blobs that were added, and return its descriptor."""
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return self.add(encode({**manifest, "annotations": annotations}), MANIFEST, **more)

    def add_index(self, manifests: list[Document], annotations: dict[str, str]) -> Document:
        """Add an index of manifests for several platforms, and return its descriptor."""
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": annotations}
        return self.add(encode(index), INDEX)

    def write(self, path: Path, root: Document, name: str, seconds: int) -> None:
        """Write the archive, whose one entry point has this name, e.g. registry.example.com/a/b:1.0.0.

        Containerd takes the name from one annotation, and everybody else the tag from the other one.
        """
        names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
        top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**root, "annotations": names}]}
        files = {
            "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
            "index.json": encode(top),
            **{f"blobs/{one.replace(':', '/')}": data for one, data in sorted(self.blobs.items())},
        }
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for directory in ("blobs", "blobs/sha256"):
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, seconds
                archive.addfile(entry)
            for file, data in files.items():
                entry = tarfile.TarInfo(file)
                entry.size, entry.mode, entry.mtime = len(data), 0o644, seconds
                archive.addfile(entry, io.BytesIO(data))

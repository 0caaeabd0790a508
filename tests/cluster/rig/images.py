"""Images without a registry: archives under the names that manifests ask for, which a node's containerd imports."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rig.node import PAUSE
from rig.paths import CHART, STATE, TREE, programs

BUILD = Path("tests", "image", "build.sh")
TIDEMARK = "localhost/tidemark-csi:dev"
BUSYBOX = "localhost/busybox:1"
PUBLIC_BUSYBOX = "docker.io/library/busybox:1.35"
"""What the tutorials ask for; Debian's busybox is of that version."""
POSTGRES = "docker.io/library/postgres:15"
"""As the tutorial asks for it. Debian's PostgreSQL is of that version, in the same place, and started by the tutorial's own command."""
SIDECARS = ("csi-provisioner", "csi-snapshotter", "csi-resizer", "snapshot-controller")


@dataclass(frozen=True)
class Image:
    """An image of one layer: files (path in the image -> file here) and links (path -> what it points to)."""

    name: str
    files: dict[str, Path]
    entrypoint: Sequence[str] = ()
    links: dict[str, str] = field(default_factory=dict)
    environment: Sequence[str] = ("PATH=/bin",)


def versions() -> dict[str, str]:
    """The sidecars' versions as the chart has them."""
    lines = (CHART / "versions.yaml").read_text().splitlines()
    return dict(line.split(": ") for line in lines if line and not line.startswith("#"))


def small_images() -> list[Image]:
    """The pause container, a shell for tests, and the sidecars under their public names."""
    busybox = Path("/bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"bin/{name}": "busybox" for name in names if name != "busybox"}
    pause = Image(PAUSE, {"bin/busybox": busybox}, ("/bin/busybox", "sleep", "2147483647"))
    shell = Image(BUSYBOX, {"bin/busybox": busybox}, (), links)
    sidecars = [
        Image(f"registry.k8s.io/sig-storage/{name}:{version}", {name: programs() / name}, (f"/{name}",))
        for name, version in versions().items()
        if name in SIDECARS
    ]
    return [pause, shell, replace(shell, name=PUBLIC_BUSYBOX), *sidecars]


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _layer(image: Image) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for name in sorted({str(parent) for path in image.files for parent in Path(path).parents} - {"."} | {"tmp"}):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            layer.addfile(directory)
        for name, path in image.files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, path.stat().st_size
            with path.open("rb") as file:
                layer.addfile(entry, file)
        for name, target in image.links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            layer.addfile(entry)
    return content.getvalue()


def write_archive(images: Sequence[Image], path: Path) -> Path:
    """Write the images into one archive, in the form of `docker save`."""
    manifest = []
    with tarfile.open(path, "w") as archive:
        for image in images:
            layer = _layer(image)
            digest = hashlib.sha256(layer).hexdigest()
            config = json.dumps(
                {
                    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
                    "os": "linux",
                    "config": {"Entrypoint": list(image.entrypoint), "Env": list(image.environment)},
                    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                }
            ).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, f"{digest}.tar", layer)
            _add(archive, name, config)
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": [f"{digest}.tar"]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return path


def build_sh(*words: object, tree: Path = TREE) -> str:
    """tests/image/build.sh of a tree: builds that one's image, or runs buildah where images lie."""
    return subprocess.run(
        ["sh", tree / BUILD, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
    ).stdout.strip()


def tidemark_archive(name: str = TIDEMARK) -> Path:
    """Build our image from the Dockerfile, unless this tree's is built already, and write its archive."""
    return exported(build_sh(name))


def postgres_archive() -> Path:
    """Make an image with Debian's PostgreSQL from the base image of ours, once, and write its archive."""
    _make_postgres()
    return exported(POSTGRES)


def prepare() -> None:
    """Build all images that are missing. It takes minutes from nothing, which no test's limit allows for."""
    from rig import earlier

    build_sh(TIDEMARK)
    _make_postgres()
    if not earlier.missing():
        earlier.build()


def _make_postgres() -> None:
    if not build_sh("buildah", "images", "--quiet", "--filter", f"reference={POSTGRES}"):
        build_sh(TIDEMARK)  # makes the base
        container = build_sh("buildah", "from", "--pull-never", "docker.io/library/debian:bookworm-slim")
        packages = "apt-get update && apt-get install --yes --no-install-recommends postgresql"
        run = ("buildah", "run", "--isolation", "chroot", container, "--", "sh", "-c")
        build_sh(*run, f"{packages} && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/*/main")
        build_sh("buildah", "commit", "--quiet", "--rm", container, POSTGRES)


def exported(name: str) -> Path:
    """The archive of an image that was built here."""
    # Each export is a new file, named after the image: what another run reads is never written to.
    image = build_sh("buildah", "images", "--quiet", "--no-trunc", name).splitlines()[0].rpartition(":")[2]
    directory = STATE / "images"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{image}.tar"
    if not path.exists():
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        build_sh("buildah", "push", "--quiet", "--disable-compression", name, f"oci-archive:{part}:{name}")
        part.rename(path)
    return path

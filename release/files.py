"""All files of a release, in one directory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from release import chart, checksums, image, python_packages, sbom, source, versions
from release.commands import output
from release.image_names import image_names
from release.oci import Layout
from release.source import Commit


def make(tree: Path, commit: Commit, version: str, target: Path, architectures: Sequence[str]) -> None:
    """Make a release of a commit in a new directory.

    Everything comes from an export of the commit; only programs and packages are those of the machine and the day.
    """
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="tidemark-release-") as scratch:
        exported = Path(scratch, "tree")
        exported.mkdir()
        source.export(tree, commit, exported)
        chart_tree = exported / "charts" / "tidemark"
        names = image_names(chart_tree)
        _say("wheel and source archive")
        python_packages.build(exported, commit, target)
        _say("chart")
        helm = Path(output("sh", exported / "tests/tools/kubernetes.sh", "helm").decode().strip()) / "helm"
        packed = chart.package(helm, chart_tree, commit, target)
        digests = {
            f"tidemark:{version} chart": chart.write_oci(packed, commit, target / f"tidemark-{version}-chart.oci.tar")
        }
        images = []
        if architectures:
            images = _image(exported, commit, version, names[0], target, architectures, digests, Path(scratch))
        _say("lists, and checksums")
        (target / f"tidemark-{version}.cdx.json").write_text(sbom.document(commit, version, names, images))
    (target / "images.txt").write_text("".join(f"{name}\n" for name in names))
    (target / "digests.txt").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    (target / "CHANGES.md").write_text(f"{versions.section(tree, version)}\n")
    (target / checksums.NAME).write_text(checksums.checksums(target))


def _image(
    tree: Path,
    commit: Commit,
    version: str,
    name: str,
    target: Path,
    architectures: Sequence[str],
    digests: dict[str, str],
    scratch: Path,
) -> list[tuple[str, str, list[sbom.Package]]]:
    """Write the image's archive, note the digests, and return what each architecture's image holds."""
    layout = Layout()
    manifests, found = [], []
    for architecture in architectures:
        _say(f"image for {architecture}: some minutes, more where it is emulated")
        with ExitStack() as stack:
            built = stack.enter_context(image.built(tree, commit, architecture, scratch / "store"))
            manifests.append(image.add(layout, built, commit, version))
            found.append((architecture, manifests[-1]["digest"], sbom.in_image(built.root)))
    index = layout.add_index(manifests, image.release_labels(commit, version))
    layout.write(target / f"tidemark-csi-{version}.oci.tar", index, name, commit.seconds)
    digests[name] = index["digest"]
    for architecture, digest, _ in found:
        digests[f"{name} {architecture}"] = digest
    return found


def _say(what: str) -> None:
    print(f"release: {what}", file=sys.stderr, flush=True)

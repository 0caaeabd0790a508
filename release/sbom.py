"""The software bill of materials, in CycloneDX: what is in the images, and which images the chart uses beside them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from release.commands import output
from release.source import Commit

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "csi.tidemark.dev")


@dataclass(frozen=True)
class Package:
    """A package in an image."""

    kind: str
    name: str
    version: str
    architecture: str = ""
    license: str = ""


def debian_packages(root: Path) -> list[Package]:
    """Return the packages that dpkg has installed below a directory."""
    form = r"${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    rows = output("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", f"--showformat={form}").decode()
    cells = [line.split("\t") for line in rows.splitlines()]
    return sorted(
        (
            Package("deb", name, version, architecture)
            for status, name, version, architecture in cells
            if status[1] == "i"
        ),
        key=lambda package: package.name,
    )


def python_packages(site: Path) -> list[Package]:
    """Return the distributions in a directory of Python packages."""
    found = [
        Package("pypi", one.name.lower().replace("_", "-"), one.version, license=_license(one))
        for one in distributions(path=[str(site)])
    ]
    return sorted(found, key=lambda package: package.name)


def _license(distribution: Distribution) -> str:
    """Return the SPDX expression that a distribution states; empty if it has only free text."""
    return str(distribution.metadata.json.get("license_expression", ""))


def in_image(root: Path) -> list[Package]:
    """Return all packages of an image that is laid out in a directory."""
    (site,) = (root / "opt" / "tidemark" / "lib").glob("python3*/site-packages")
    return [*debian_packages(root), *python_packages(site)]


def _component(package: Package) -> Component:
    if package.kind == "deb":
        qualifiers = {"arch": package.architecture, "distro": "debian-12"}
        url = PackageURL("deb", "debian", package.name, package.version, qualifiers)
    else:
        url = PackageURL("pypi", None, package.name, package.version)
    licenses = [LicenseFactory().make_from_string(package.license)] if package.license else []
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=url,
        bom_ref=url.to_string(),
        licenses=licenses,
    )


def _image(name: str, digest: str = "") -> Component:
    path, _, tag = name.rpartition(":")
    qualifiers = {"repository_url": path, "tag": tag}
    url = PackageURL("oci", None, path.rpartition("/")[2], digest or None, qualifiers)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest.partition(":")[2])] if digest else []
    return Component(
        name=path, version=tag, type=ComponentType.CONTAINER, purl=url, bom_ref=url.to_string(), hashes=hashes
    )


def document(commit: Commit, version: str, names: list[str], images: Iterable[tuple[str, str, list[Package]]]) -> str:
    """Return the bill of materials as JSON.

    Args:
        commit: gives the time, and with the version the serial number: the same release has the same document.
        version: of the release.
        names: images that the chart uses, the driver's first.
        images: for each architecture of the driver's image its name, the digest of its manifest, and its packages.
    """
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, f"{version} {commit.id}"))
    bom.metadata.timestamp = commit.time
    url = PackageURL("generic", None, "tidemark", version)
    tidemark = Component(
        name="tidemark", version=version, type=ComponentType.APPLICATION, purl=url, bom_ref=url.to_string()
    )
    bom.metadata.component = tidemark
    known: dict[str, Component] = {}
    direct = []
    for architecture, digest, packages in images:
        image = _image(names[0], digest)
        image.properties.add(Property(name="tidemark:architecture", value=architecture))
        inside = []
        for package in packages:
            component = _component(package)
            inside.append(known.setdefault(component.bom_ref.value or "", component))
        known[image.bom_ref.value or ""] = image
        bom.register_dependency(image, inside)
        direct.append(image)
    for name in names[1:]:
        image = _image(name)
        known[image.bom_ref.value or ""] = image
        direct.append(image)
    bom.components.update(known.values())
    bom.register_dependency(tidemark, direct)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"

"""Where `tidemark mount` stages volumes, and where a volume is mounted."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csi_driver.rpc.clients.cli_client import Node

STAGING = Path(os.environ.get("TIDEMARK_STAGING", "/run/tidemark/staging"))
"""Under /run: volumes that `tidemark mount` has staged are no longer staged after a reboot. TIDEMARK_STAGING sets another
directory for users other than root; it must be the same for mount and umount."""


def staging_of(volume_id: str) -> Path:
    """Return where this command stages a volume: a hash, since an id has characters that a path should not have."""
    return STAGING / hashlib.sha256(volume_id.encode()).hexdigest()[:32]


def is_stage(place: Sequence[str], staging: Path) -> bool:
    """Return whether a mount point is the staging directory, or the device node inside it."""
    return any(staging in (Path(path), Path(path).parent) for path in place)


def views(node: "Node") -> tuple[tuple[str, ...], ...]:
    """Return the mount points of a volume, each with every path that leads to it."""
    return node.places or tuple((path,) for path in node.used_by)


def mount_paths(node: "Node") -> list[str]:
    """Return one path of each mount point, without the staging directories of `tidemark mount`."""
    return [place[0] for place in views(node) if not any(Path(path).is_relative_to(STAGING) for path in place)]


def staged_here(node: "Node") -> bool:
    """Return whether `tidemark mount` has staged the volume."""
    return any(is_stage(place, staging_of(node.id)) for place in views(node))

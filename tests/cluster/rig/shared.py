"""What the clusters of a machine share: whoever comes first makes it, and the last one to go takes it away.

Each cluster's note, `cluster.json` in its state directory, says how many nodes it has, which of the mount points of nodes were
made for clusters, and whether the directory of network namespaces was a mount before.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rig import network
from rig.paths import STATE

OWN = ("kubelet", "tidemark", "cni")
"""What each node has a directory of its own for, below /var/lib."""
NOTE = "cluster.json"
_NOTHING = {"nodes": 0, "mount_points": [], "netns": True}


def nodes() -> int:
    """How many nodes the note of this cluster names; 0 where there is none."""
    return int(_read(STATE)["nodes"])


def note(count: int) -> None:
    """Begin the state directory of a cluster of `count` nodes, and make what nodes mount on."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone():
        missing = [point for point in (Path("/var/lib") / name for name in OWN) if not point.exists()]
        found = {"nodes": count, "mount_points": list(map(str, missing)), "netns": network.namespaces_are_mounted()}
        _write(STATE, found)
        for point in missing:
            point.mkdir()


def forget() -> None:
    """Remove the state directory. What this cluster found missing goes too, or becomes another cluster's to take away."""
    with _alone():
        found = _read(STATE)
        shutil.rmtree(STATE, ignore_errors=True)
        if others := [path.parent for path in STATE.parent.glob(f"tidemark-cluster*/{NOTE}")]:
            heir = _read(others[0])
            points = [*heir["mount_points"], *found["mount_points"]]
            _write(others[0], heir | {"mount_points": points, "netns": heir["netns"] and found["netns"]})
            return
        if not found["netns"]:
            network.unmount_namespaces()
        for point in found["mount_points"]:
            with suppress(FileNotFoundError):
                Path(point).rmdir()


@contextmanager
def _alone() -> Iterator[None]:
    """Clusters that come or go at once take turns."""
    directory = os.open(STATE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _read(state: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads((state / NOTE).read_text())
        return found
    return dict(_NOTHING)


def _write(state: Path, found: dict[str, Any]) -> None:
    (state / NOTE).write_text(json.dumps(found))

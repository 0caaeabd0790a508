"""A control group for each node, in every hierarchy that the kernel has: the kubelet wants its own root in each."""

import os
from pathlib import Path

from rig.machine import RigError
from rig.paths import NAME

TOP = Path("/sys/fs/cgroup")


def mounted(*kinds: str) -> list[Path]:
    """Where hierarchies of these kinds are mounted, each one once."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in kinds:
            point = before.split()[4]
            found.setdefault(os.path.realpath(point), Path(point))
    return list(found.values())


def hierarchies() -> list[Path]:
    """Where control groups are made: each mounted hierarchy of version 1, or the one of version 2."""
    if found := mounted("cgroup"):
        return found
    if (TOP / "cgroup.controllers").exists():
        return [TOP]
    raise RigError(f"no control groups are mounted below {TOP}")


def version_1() -> bool:
    return hierarchies() != [TOP]


def make(node: str) -> str:
    """Make the node's group, and return its name as the kubelet's cgroupRoot."""
    for top in hierarchies():
        place = top
        for part in (NAME, node):
            if not version_1():
                _enable_all(place)
            place /= part
            place.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                # In version 1 a new cpuset is empty, and nothing can run in it.
                if version_1() and (place / name).exists():
                    (place / name).write_text((place.parent / name).read_text())
    return f"/{NAME}/{node}"


def _enable_all(place: Path) -> None:
    words = (place / "cgroup.controllers").read_text().split()
    (place / "cgroup.subtree_control").write_text(" ".join(f"+{word}" for word in words))


def remove(node: str = "") -> None:
    """Remove the node's group, or all of the cluster's, in every hierarchy; nothing runs in them any more."""
    for top in mounted("cgroup", "cgroup2"):  # where version 1 rules, runc uses the new one as well
        for place, _, _ in os.walk(top / NAME / node, topdown=False):
            Path(place).rmdir()

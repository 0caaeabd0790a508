"""The classic example of copy-on-write snapshots, as pods and claims.

Disk v1 gets d1 and d2, then snapshot s1; d3 is added and d2 becomes d4, then snapshot s2. Each snapshot is what the disk
was; many disks can be made of one; and no snapshot needs its disk.
"""

import pytest
from rig.kubectl import Kubectl, is_ready
from rig.objects import claim, pod, snapshot

COPIES = [f"copy{n}" for n in range(1, 21)]


def written(piece: str, place: int) -> str:
    """A script that fills MiB number `place` of the disk's file with a piece of data, and makes it durable."""
    return f"yes {piece} | head -c 1048576 | dd of=/v1/file bs=1M seek={place} iflag=fullblock conv=notrunc,fsync 2>/dev/null"


def same(directory: str, *pieces: str) -> str:
    """A script that fails unless the file in a directory is exactly these pieces."""
    return f"for piece in {' '.join(pieces)}; do yes $piece | head -c 1048576; done | cmp - {directory}/file"


def cut(kubectl: Kubectl, name: str) -> None:
    kubectl.apply(snapshot(name, "v1"))
    kubectl.until(is_ready, "volumesnapshot", name)


@pytest.mark.slow(seconds=70)
def test_snapshots_relate_to_data_and_disks_come_from_snapshots(kubectl: Kubectl) -> None:
    kubectl.apply(claim("v1"), pod("user", ["v1"]))
    kubectl.ready("user")
    kubectl.sh("user", f"{written('d1', 0)}; {written('d2', 1)}")
    cut(kubectl, "s1")
    kubectl.sh("user", f"{written('d3', 2)}; {written('d4', 1)}")
    cut(kubectl, "s2")

    # One disk of each, and twenty of s1, all asked for at once.
    kubectl.apply(
        *(claim(name, snapshot="s1") for name in ("from-s1", *COPIES)),
        claim("from-s2", snapshot="s2"),
        pod("both", ["from-s1", "from-s2"]),
        pod("many", COPIES),
    )
    kubectl.ready("both", "many", seconds=180)
    kubectl.sh("both", same("/from-s1", "d1", "d2"))
    kubectl.sh("both", same("/from-s2", "d1", "d4", "d3"))
    kubectl.sh("user", same("/v1", "d1", "d4", "d3"))
    kubectl.sh("many", "; ".join(same(f"/{name}", "d1", "d2") for name in COPIES))
    # Each is a disk of its own.
    kubectl.sh("many", "echo changed >/copy1/file; sync")
    kubectl.sh("many", "; ".join(same(f"/{name}", "d1", "d2") for name in COPIES[1:]))
    kubectl.sh("both", same("/from-s1", "d1", "d2"))

    # The disk goes, and what was made of it; the snapshots do not need them.
    gone = [kubectl.get("pvc", name)["spec"]["volumeName"] for name in ("v1", "from-s1")]
    kubectl.delete("pod", "user", "both")
    kubectl.delete("pvc", "v1", "from-s1")
    kubectl.wait("delete", "pv", *gone)
    kubectl.apply(claim("later", snapshot="s2"), pod("reader", ["later"]))
    kubectl.ready("reader")
    kubectl.sh("reader", same("/later", "d1", "d4", "d3"))
    # One snapshot goes; the other one, and the disks of both, stay as they are.
    kubectl.delete("volumesnapshot", "s1")
    kubectl.sh("many", "; ".join(same(f"/{name}", "d1", "d2") for name in COPIES[1:]))
    kubectl.apply(claim("last", snapshot="s2"), pod("last-reader", ["last"]))
    kubectl.ready("last-reader")
    kubectl.sh("last-reader", same("/last", "d1", "d4", "d3"))

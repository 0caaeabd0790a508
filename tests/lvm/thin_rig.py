"""What tests inside a machine need of LVM: a volume group with a thin pool, thin volumes, file systems on them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GROUP, POOL = "fast", "pool"


def sh(*argv: str | Path, check: bool = True, timeout: float = 60.0) -> str:
    done = subprocess.run(argv, check=False, timeout=timeout, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


def lv(name: str) -> str:
    return f"{GROUP}/{name}"


@contextmanager
def thin_pool(disk: str = "/dev/ubda", size: str = "4g", metadata: str = "64m", queues: bool = False) -> Iterator[None]:
    """A volume group on a disk, as `tidemark pool create` makes it, with a thin pool; all of it is removed at the end.

    `queues`: the pool lets writers wait when it is full, as it does by default.
    """
    sh("pvcreate", "-q", "-y", "--metadatasize", "64m", disk)
    try:
        sh("vgcreate", "-q", GROUP, disk)
        argv = ["lvcreate", "-q", "-y", "-T", "-L", size, "--poolmetadatasize", metadata, "-c", "64k", "-Zy"]
        sh(*argv, "--errorwhenfull", "n" if queues else "y", lv(POOL))
        yield
    finally:
        sh("vgremove", "-q", "-f", "-y", GROUP, check=False)
        sh("pvremove", "-q", "-ff", "-y", disk, check=False)


def thin_volume(name: str, size: str = "512m") -> Path:
    """An active thin volume; its node."""
    sh("lvcreate", "-q", "-y", "-V", size, "-T", lv(POOL), "-n", name)
    return node_of(name)


def node_of(name: str) -> Path:
    return Path("/dev/mapper") / dm_name(name)


def dm_name(name: str) -> str:
    return f"{GROUP}-{name.replace('-', '--')}"


def field(name: str, which: str) -> str:
    """One column of lvs."""
    return sh("lvs", "--noheadings", "-o", which, lv(name))

"""A pool of logical volumes for the contract suite: only inside a machine of its own (tests/lvm/machine.py), which has LVM."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from support.fork_servers import helper_pool

from csi_driver.backends.base import Backend
from csi_driver.backends.lvm.backend import LvmBackend
from csi_driver.backends.memory.backend import Faults
from csi_driver.backends.options import PoolOptions

MACHINE = "TIDEMARK_TEST_MACHINE"
DISK, GROUP, THIN = "/dev/ubda", "contract-vg", "pool"
EXTENT = "4k"
"""The least there is, so that sizes are those of the suite; test_lvm_granule has the usual one."""


class LvmRig:
    kind = "lvm"
    owner = "node-1"
    knows_when_closed = False
    frees_at_once = False
    random_steps = 12
    faults: Faults | None = None

    def __init__(self, make: Callable[[], LvmBackend]) -> None:
        self._make = make

    async def backend(self) -> Backend:
        return self._make()


@contextmanager
def volume_group(extent: str = EXTENT) -> Iterator[None]:
    """A volume group with a thin pool of 2 GiB, and nothing else."""
    sh("pvcreate", "-q", "-y", "--metadatasize", "64m", DISK)
    sh("vgcreate", "-q", "-s", extent, GROUP, DISK)
    argv = [
        "lvcreate",
        "-q",
        "-y",
        "-T",
        "-L",
        "2g",
        "--poolmetadatasize",
        "16m",
        "--poolmetadataspare",
        "n",
        "-c",
        "64k",
    ]
    sh(*argv, "-Zy", "--errorwhenfull", "y", f"{GROUP}/{THIN}")
    try:
        yield
    finally:
        sh("vgremove", "-q", "-f", "-y", GROUP)
        sh("pvremove", "-q", "-ff", "-y", DISK)


def empty() -> None:
    """Take everything out of the volume group but the thin pool, and make it nobody's."""
    names = [name for name in sh("lvs", "--noheadings", "-o", "lv_name", GROUP).split() if name != THIN]
    if names:
        sh("lvremove", "-q", "-f", "-y", *(f"{GROUP}/{name}" for name in names))
    tags = [tag for tag in sh("vgs", "--noheadings", "-o", "vg_tags", GROUP).strip().split(",") if tag]
    if tags:
        sh("vgchange", "-q", *(word for tag in tags for word in ("--deltag", tag)), GROUP)


def sh(*argv: str) -> str:
    done = subprocess.run(argv, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@asynccontextmanager
async def lvm_rig(request: pytest.FixtureRequest) -> AsyncIterator[LvmRig]:
    request.getfixturevalue("lvm_group")
    runtime = str(request.getfixturevalue("tmp_path") / "run")
    async with helper_pool() as helpers:
        options = PoolOptions("contract", "node-1", f"{GROUP}/{THIN}", init=True, runtime_directory=runtime)
        try:
            yield LvmRig(lambda: LvmBackend(options, helpers))
        finally:
            with suppress(ProcessLookupError):
                empty()


def in_machine() -> bool:
    """Whether this process is inside such a machine."""
    return bool(os.environ.get(MACHINE))

"""A pool of its own for each test: XFS on an image on a loop device. Needs root; leaves nothing behind."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from freeze_rig import Pool
from support.machine import CAP_SYS_RESOURCE, has_capability, skip_unless_root
from support.pool_disk import clean

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.fs import mounts
from csi_driver.host.fs.filesystems import pool_mkfs_argv
from csi_driver.host.helper.client import HelperPool


@pytest.fixture(scope="session")
def may_grow_ext4() -> bool:
    return has_capability(CAP_SYS_RESOURCE)


@pytest.fixture(scope="session")
def root() -> None:
    skip_unless_root()


@pytest.fixture
def make_pool(root: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Make pools: directories on an XFS with reflink of its own, on a device with blocks of 4096 or 512 bytes."""
    made: list[Path] = []

    def make(size: int = 2 << 30, sector: int = 4096) -> Path:
        image, point = tmp_path / f"pool{len(made)}.img", tmp_path / f"pool{len(made)}"
        point.mkdir()
        made.append(point)
        with image.open("wb") as file:
            file.truncate(size)
        if sector == 4096:
            node = loop.attach(image).path
        else:
            node = run(
                ("losetup", "--find", "--show", "--direct-io=on", f"--sector-size={sector}", str(image)), 10
            ).strip()
        run(
            [word.replace("size=4096", f"size={sector}") if before == "-s" else word for before, word in pairs(node)],
            30,
        )
        mounts.mount(node, point, "xfs")
        return point

    def pairs(node: str) -> list[tuple[str, str]]:
        argv = pool_mkfs_argv(node)
        return list(zip(("", *argv), argv, strict=False))

    with ExitStack() as stack:
        stack.callback(clean, tmp_path)
        yield make


@pytest.fixture
def xfs_dir(make_pool: Callable[..., Path]) -> Path:
    return make_pool()


@pytest.fixture
def image(xfs_dir: Path) -> Callable[..., Path]:
    """Make sparse images `<pool>/<name>/disk.img`."""

    def make(name: str = "a", size: int = 512 << 20) -> Path:
        path = xfs_dir / name / IMAGE
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(size)
        return path

    return make


@pytest.fixture
def opened() -> Iterator[Callable[..., int]]:
    """Open files, for the length of the test: an open one would keep its pool from being unmounted."""
    with ExitStack() as stack:

        def open_(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            return fd

        yield open_


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "point"
    path.mkdir()
    return path


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start processes that print a line once they are ready; each is killed at the end of the test."""
    with ExitStack() as stack:

        def start(*argv: str, **options: object) -> "subprocess.Popen[str]":
            process: subprocess.Popen[str]
            process = subprocess.Popen(argv, stdout=-1, text=True, **options)  # type: ignore[call-overload]
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            assert process.stdout.readline().strip() == "ready"
            return process

        yield start


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    pool = Pool.__new__(Pool)
    try:
        pool.__init__(tmp_path)  # type: ignore[misc]
        yield pool
    finally:
        pool.close()


@pytest.fixture
async def children(request: pytest.FixtureRequest) -> AsyncIterator[HelperPool]:
    """Patient: what is killed may die slowly on a busy machine. By indirect parametrization the grace is another one."""
    children = HelperPool(grace=getattr(request, "param", 20.0))
    await children.start()
    yield children
    await asyncio.wait_for(children.stop(), 20)

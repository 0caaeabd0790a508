"""Fixtures of the upgrade suite: pools that earlier versions made, each on a disk of its own. Needs root for those."""

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from make_pool import FIRST, POOLS
from support.fork_servers import helper_pool
from support.machine import skip_unless_root
from support.node_rig import Rig
from support.pool_disk import Disk, clean, devices_below, mounts_below, share

from csi_driver.host.block import loop
from csi_driver.host.fs import mounts


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "old" in metafunc.fixturenames:
        made = sorted(path.name.removesuffix(".tar.xz") for path in POOLS.glob("*.tar.xz"))
        metafunc.parametrize("old", made or [FIRST], indirect=True)


@pytest_asyncio.fixture
async def old(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """The pool that a version made, not opened yet. What that left on its disk is to be found by this one."""
    archive = POOLS / f"{request.param}.tar.xz"
    if not archive.exists():
        pytest.fail(f"{archive} is missing: `python tests/upgrade/make_pool.py {request.param}` makes it, as root")
    skip_unless_root()
    share(tmp_path)
    try:
        subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={tmp_path}"], check=True, timeout=60)
        image, point = tmp_path / "disk.img", tmp_path / "disk"
        point.mkdir()
        device = loop.attach(image)
        # Several processes of tests may have the same one mounted.
        mounts.mount(device.path, point, "xfs", ["noatime", "nouuid"])
        async with helper_pool() as agents:
            rig = Rig(tmp_path, Disk(image, point, device), agents)
            yield rig
            await rig.put_away()
            assert rig.devices() == []
            await rig.close()
    finally:
        clean(tmp_path)
    assert not mounts_below(tmp_path)
    assert not devices_below(tmp_path)

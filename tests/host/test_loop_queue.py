"""The queue of a loop device: tuned for direct I/O, and without discard for thick images."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from loop_rig import MIB, format_and_mount, sysfs, use_all

from csi_driver.host.block import loop, loop_ioctl, sources
from csi_driver.host.commands import run
from csi_driver.host.fs import allocation, extents, mounts
from csi_driver.host.fs.filesystems import mount_options
from csi_driver.host.helper import device_jobs

pytestmark = pytest.mark.root
Image = Callable[..., Path]
Opened = Callable[..., int]


def test_tune(image: Image) -> None:
    device = loop.attach(image())
    loop.tune(device)
    assert "[none]" in (sysfs(device, "queue/scheduler") or "")
    assert sysfs(device, "queue/wbt_lat_usec") in ("0", None)


def test_a_device_in_use_is_adopted_without_a_write_to_its_queue(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write would hold its user's I/O up, and a volume is attached again at each of its growths."""
    path = str(image())
    first = device_jobs.attach(sources.image(path, True))
    written: list[str] = []
    monkeypatch.setattr(loop_ioctl, "write_sysfs", lambda _number, name, _value: written.append(name))
    assert device_jobs.attach(sources.image(path, True)) == first
    assert written == []


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_thick_image_keeps_its_space(image: Image, opened: Opened, point: Path, fs_type: str) -> None:
    size = 300 * MIB
    path = image(size=size)
    allocation.fill(opened(path), size)
    device = loop.attach(path)
    loop.refuse_discard(device)
    format_and_mount(device, fs_type, point)
    with (point / "big").open("wb") as file:
        for _ in range(150):
            file.write(b"x" * MIB)
    (point / "big").unlink()
    run(("sync", "--file-system", str(point)), 30)
    trim = subprocess.run(["fstrim", point], check=False, capture_output=True, text=True)
    assert "not supported" in trim.stderr
    mounts.umount(point)
    mounts.mount(device.path, point, fs_type, (*mount_options(fs_type), "discard"))
    with (point / "big").open("wb") as file:
        file.write(b"x" * 100 * MIB)
        os.fsync(file.fileno())
    (point / "big").unlink()
    mounts.umount(point)
    assert extents.usage(opened(path)).exclusive_bytes >= size


def test_zeroing_a_thick_device_keeps_its_space(image: Image, opened: Opened) -> None:
    size = 64 * MIB
    path = image(size=size)
    device = loop.attach(path)
    loop.refuse_discard(device)
    use_all(device, size)
    assert subprocess.run(["blkdiscard", "--force", device.path], check=False, capture_output=True).returncode
    run(("blkdiscard", "--force", "--zeroout", device.path), 30)
    assert extents.usage(opened(path)).exclusive_bytes == size
    with path.open("rb") as file:
        assert not any(file.read(MIB))


@pytest.mark.alone  # the next one to attach must be this test
def test_the_next_owner_of_a_thick_number_can_discard(image: Image, opened: Opened) -> None:
    device = loop.attach(image("thick"))
    loop.refuse_discard(device)
    loop.detach(device)
    # A crash would leave such a number behind as well, so it is looked for at attach too.
    spoilt = loop.attach(image("crashed"))
    loop_ioctl.write_sysfs(spoilt.number, "queue/discard_max_bytes", "0")
    run(("losetup", "--detach", spoilt.path), 10)
    thin = image("thin")
    device = loop.attach(thin)
    assert sysfs(device, "queue/discard_max_bytes") != "0"
    use_all(device, 64 * MIB)
    assert extents.usage(opened(thin)).exclusive_bytes == 64 * MIB
    run(("blkdiscard", "--force", device.path), 30)
    assert extents.usage(opened(thin)).exclusive_bytes == 0

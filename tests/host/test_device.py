"""Block devices of any kind, as a volume group or a distributed pool would supply them: nothing of a loop device is known."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.host.block import device, loop, sources
from csi_driver.host.block.device import BlockDevice
from csi_driver.host.commands import run
from csi_driver.host.errors import Mismatch
from csi_driver.host.fs import filesystems, mounts
from csi_driver.host.helper import device_jobs

pytestmark = pytest.mark.root
MIB = 1 << 20
Image = Callable[..., Path]


def bound(path: str) -> BlockDevice:
    name = os.path.basename(path)
    number = os.stat(path).st_rdev
    return BlockDevice(path, name, os.major(number), os.minor(number), device.identity(name))


@pytest.fixture
def somebodys(image: Image) -> Iterator[BlockDevice]:
    """A device that is there without our doing, with blocks of 512 bytes, as no volume of an image has."""
    path = run(("losetup", "--find", "--show", str(image(size=300 * MIB))), 10).strip()
    try:
        yield bound(path)
    finally:
        run(("losetup", "--detach", path), 10)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_device_that_is_there_is_formatted_mounted_and_grown(
    somebodys: BlockDevice, point: Path, fs_type: str
) -> None:
    source = sources.present(somebodys)
    assert device_jobs.attach(source)["identity"] == somebodys.identity
    identity = device_jobs.make_file_system(source, fs_type)
    assert (identity["path"], identity["major"], identity["minor"]) == (
        somebodys.path,
        somebodys.major,
        somebodys.minor,
    )
    mounted = device_jobs.mount(source, str(point), fs_type, (), False)
    try:
        assert not mounted["shut_down"]
        assert not mounted["room"]
        (point / "data").write_bytes(b"1")
        device_jobs.grow(source, str(point), fs_type)
    finally:
        mounts.umount(point)
    assert filesystems.probe(somebodys.path) == fs_type


def test_size_and_read_only_are_the_kernels(somebodys: BlockDevice) -> None:
    source = sources.present(somebodys)
    device_jobs.set_read_only(source, True)
    with sources.attached(source) as opened:
        assert (opened.size(), opened.is_read_only()) == (300 * MIB, True)
    device_jobs.set_read_only(source, False)
    with sources.attached(source) as opened:
        assert not opened.is_read_only()


def test_another_owner_of_the_number_is_never_touched(image: Image, point: Path) -> None:
    first = loop.attach(image("first"))
    old = bound(first.path)
    loop.detach(first)
    second = loop.attach(image("second"))
    source = sources.present(BlockDevice(second.path, second.name, second.major, second.minor, old.identity))
    if not old.identity:
        pytest.skip("this kernel numbers no attachments: it is older than 5.15")
    for job in (
        lambda: device_jobs.attach(source),
        lambda: device_jobs.make_file_system(source, "ext4"),
        lambda: device_jobs.mount(source, str(point), "ext4", (), False),
        lambda: device_jobs.set_read_only(source, True),
    ):
        with pytest.raises(Mismatch):
            job()
    with loop.opened(second) as opened:
        assert not opened.is_read_only()
    assert filesystems.probe(second.path) == ""


def test_a_device_without_a_known_identity_is_no_source(somebodys: BlockDevice) -> None:
    with pytest.raises(Mismatch):
        device_jobs.attach({"kind": "device", "name": somebodys.name, "identity": ""})


def test_names_and_numbers(somebodys: BlockDevice) -> None:
    assert device.name_of(somebodys.major, somebodys.minor) == somebodys.name
    assert device.name_of(somebodys.major, 1 << 19) == ""
    assert device.identity("no-such-device") == ""

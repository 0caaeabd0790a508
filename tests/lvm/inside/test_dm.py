"""The device mapper's ioctls against a kernel: what they tell, and what they do."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from thin_rig import POOL, dm_name, field, sh, thin_pool, thin_volume

from csi_driver.host.dm import control, ioctl, status
from csi_driver.host.errors import Mismatch


@pytest.fixture(autouse=True, scope="module")
def pool() -> Iterator[None]:
    with thin_pool(size="256m"):
        yield


@pytest.fixture
def volume() -> Iterator[ioctl.DeviceInfo]:
    thin_volume("a-b", "64m")
    device = ioctl.info(name=dm_name("a-b"))
    yield device
    with suppress(OSError):
        ioctl.resume(device.uuid)
    sh("lvremove", "-q", "-y", "fast/a-b")


def pool_uuid() -> str:
    return ioctl.info(name=dm_name(POOL) + "-tpool").uuid


def test_info_tells_number_uuid_and_use(volume: ioctl.DeviceInfo) -> None:
    number = os.stat(f"/dev/mapper/{volume.name}").st_rdev
    uuids = (field("a-b", "vg_uuid") + field("a-b", "lv_uuid")).replace("-", "")
    assert volume == ioctl.DeviceInfo("fast-a--b", f"LVM-{uuids}", os.major(number), os.minor(number), 0, False, False)
    assert ioctl.info(uuid=volume.uuid) == volume
    with Path(f"/dev/mapper/{volume.name}").open("rb"):
        assert ioctl.info(uuid=volume.uuid).opened == 1


def test_each_device_is_listed_with_its_number(volume: ioctl.DeviceInfo) -> None:
    listed = {line.split("\t")[0] for line in sh("dmsetup", "ls").splitlines()}
    assert {name for name, _, _ in ioctl.names()} == listed
    assert (volume.name, volume.major, volume.minor) in ioctl.names()


def test_a_list_longer_than_the_buffer_is_complete(volume: ioctl.DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ioctl.names()
    monkeypatch.setattr(control, "_FIRST_BUFFER", 340)
    assert ioctl.names() == everything
    assert len(everything) > 3


def test_status_of_pool_and_volume_follow_what_is_written(volume: ioctl.DeviceInfo) -> None:
    before = status.thin_pool(ioctl.status(uuid=pool_uuid(), commit=True))
    with Path(f"/dev/mapper/{volume.name}").open("r+b") as file:
        file.write(b"x" * (3 * 65536))
        file.flush()
        os.fsync(file.fileno())
    after = status.thin_pool(ioctl.status(uuid=pool_uuid(), commit=True))
    assert after.data_used - before.data_used == 3
    assert (after.data_total, status.chunk_size(ioctl.table(uuid=pool_uuid()))) == (4096, 65536)
    assert (after.metadata_total, after.mode, after.needs_check) == (64 << 8, "rw", False)
    assert after.error_if_no_space
    assert status.thin(ioctl.status(uuid=volume.uuid)) == status.ThinStatus(3 * 65536 // 512)


def test_a_message_is_done_and_a_wrong_one_refused(volume: ioctl.DeviceInfo) -> None:
    ioctl.message(pool_uuid(), "create_thin 4000")
    with pytest.raises(FileExistsError, match="create_thin 4000"):
        ioctl.message(pool_uuid(), "create_thin 4000")
    ioctl.message(pool_uuid(), "delete 4000")
    assert status.thin_pool(ioctl.status(uuid=pool_uuid())).held_root is None
    ioctl.message(pool_uuid(), "reserve_metadata_snap")
    assert status.thin_pool(ioctl.status(uuid=pool_uuid())).held_root
    ioctl.message(pool_uuid(), "release_metadata_snap")


def test_a_suspended_device_takes_no_write_until_it_is_resumed(volume: ioctl.DeviceInfo) -> None:
    ioctl.suspend(volume.uuid, lockfs=False)
    assert ioctl.info(uuid=volume.uuid).suspended
    ioctl.suspend(volume.uuid, lockfs=True)  # nothing: why `info` comes before
    ioctl.resume(volume.uuid)
    assert not ioctl.info(uuid=volume.uuid).suspended
    ioctl.resume(volume.uuid)


def test_suspend_freezes_the_file_system_only_if_it_is_to(volume: ioctl.DeviceInfo, tmp_path: Path) -> None:
    sh("mkfs.ext4", "-q", f"/dev/mapper/{volume.name}")
    sh("mount", f"/dev/mapper/{volume.name}", tmp_path)
    try:
        sh("fsfreeze", "-f", tmp_path)
        with pytest.raises(OSError, match="suspending") as refused:
            ioctl.suspend(volume.uuid, lockfs=True)
        assert refused.value.errno == errno.EBUSY
        assert not ioctl.info(uuid=volume.uuid).suspended
        ioctl.suspend(volume.uuid, lockfs=False)
        ioctl.resume(volume.uuid)
    finally:
        sh("fsfreeze", "-u", tmp_path, check=False)
        sh("umount", tmp_path)


def test_a_device_that_is_not_there(volume: ioctl.DeviceInfo) -> None:
    for call in (
        lambda: ioctl.info(uuid="LVM-gone"),
        lambda: ioctl.resume("LVM-gone"),
        lambda: ioctl.status(name="gone"),
    ):
        with pytest.raises(OSError, match="gone") as missing:
            call()
        assert missing.value.errno == errno.ENXIO
    with pytest.raises(OSError, match="named by its uuid"):
        ioctl.resume("")
    with pytest.raises(Mismatch, match=f"not {volume.major}:{volume.minor + 1}"):
        ioctl.verify(volume.uuid, volume.major, volume.minor + 1)


def test_the_control_node_is_made_where_it_is_missing(volume: ioctl.DeviceInfo) -> None:
    Path("/dev/mapper/control").unlink()
    assert ioctl.info(uuid=volume.uuid) == volume
    assert Path("/dev/mapper/control").is_char_device()

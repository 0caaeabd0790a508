"""Pools of LVM: which disks may be taken, which sizes a pool gets, and where its disks are looked for."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.backends.lvm import pool_plan
from csi_driver.domain.capacity import GIB, MIB
from csi_driver.domain.errors import DriverError, InvalidRequest, OutOfRange, Precondition
from csi_driver.host.lvm import discovery, tags
from csi_driver.host.lvm.configuration import configuration, is_group_name
from csi_driver.host.lvm.disks import Disk

EXTENT = 4 * MIB
TIB = 1 << 40


def disk(name: str = "vdb", **changes: object) -> Disk:
    values = {
        "path": f"/dev/{name}", "stable": f"/dev/disk/by-id/{name}", "name": name, "size": 10 * GIB, "content": (), "users": (),
    }  # fmt: skip
    return Disk(**(values | changes))  # type: ignore[arg-type]


def test_empty_disks_are_taken() -> None:
    pool_plan.check_disks([disk("vdb"), disk("vdc")])


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (disk(users=("mounted at /srv",)), Precondition, ["mounted at /srv", "end that first"]),
        (disk(content=("ext4 'old'",)), Precondition, ["ext4 'old'", "wipefs --all /dev/vdb"]),
        (disk(content=("gpt", "partition vdb1")), Precondition, ["partition vdb1", "wipefs --all /dev/vdb"]),
        (disk(content=("LVM2_member",)), Precondition, ["disk of LVM already", "pvs /dev/vdb"]),
        (disk(size=100 * MIB), OutOfRange, ["100 MiB", "512 MiB"]),
        (disk(searched=False), InvalidRequest, ["tenants"]),
        (disk("vda", path="/dev/disk/by-id/other"), InvalidRequest, ["/dev/disk/by-id/other", "the same disk"]),
    ],
)
def test_any_other_is_refused_with_what_it_is_and_what_to_do(
    bad: Disk, kind: type[DriverError], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        pool_plan.check_disks([disk("vda"), bad])
    for word in [bad.path, *words]:
        assert word in str(caught.value)


@given(st.integers(256 * MIB, 60 * TIB).map(lambda n: n // EXTENT * EXTENT))
def test_data_metadata_and_its_spare_fit_and_are_whole_extents(free: int) -> None:
    sizes = pool_plan.pool_sizes(free, EXTENT)
    assert sizes.data + 2 * sizes.metadata <= free
    assert sizes.data >= 0.9 * free
    assert sizes.data % EXTENT == sizes.metadata % EXTENT == 0
    # 31 bytes a chunk (measured), five times: by the data itself, and by snapshots that have become different.
    assert sizes.metadata >= min(5 * 31 * sizes.data // sizes.chunk, 15 * GIB)
    assert sizes.metadata <= 15.8 * GIB
    assert sizes.data <= 15.8 * TIB * (sizes.chunk // (64 << 10))


def test_sizes_of_common_disks() -> None:
    assert pool_plan.pool_sizes(100 * GIB, EXTENT).metadata == 1 * GIB
    assert pool_plan.pool_sizes(30 * GIB, EXTENT).metadata == 512 * MIB
    assert pool_plan.pool_sizes(2 * GIB, EXTENT).metadata == 44 * MIB
    assert pool_plan.pool_sizes(TIB, EXTENT).chunk == 64 << 10
    assert pool_plan.pool_sizes(20 * TIB, EXTENT).chunk == 128 << 10


def test_a_size_that_is_asked_for_leaves_the_rest_for_thick_volumes() -> None:
    sizes = pool_plan.pool_sizes(100 * GIB, EXTENT, 10 * GIB + 1)
    assert sizes.data == 10 * GIB + EXTENT
    with pytest.raises(OutOfRange, match=r"200 GiB does not fit.*100 GiB.*at most"):
        pool_plan.pool_sizes(100 * GIB, EXTENT, 200 * GIB)
    with pytest.raises(OutOfRange):
        pool_plan.pool_sizes(0, EXTENT)


@given(st.integers(GIB, 20 * TIB), st.integers(512 * MIB, 20 * TIB))
def test_growth_takes_what_the_new_disks_have_and_no_more(before: int, added: int) -> None:
    before, added = before // EXTENT * EXTENT, added // EXTENT * EXTENT
    metadata = pool_plan.metadata_size(before, EXTENT)
    commands = pool_plan.growth("fast", "pool", before, metadata, added, EXTENT)
    sizes = {option: int(command[command.index(option) + 1].strip("+b")) for command in commands for option in command
             if option in ("--size", "--poolmetadatasize")}  # fmt: skip
    more, data = sizes.get("--poolmetadatasize", 0), sizes["--size"]
    assert added - EXTENT < data + 2 * more <= added
    assert metadata + more >= min(5 * 31 * (before + data) // (64 << 10), 15 * GIB)
    assert commands[-1][2] == "--size"  # there is metadata for the data before there is the data


def test_the_commands_name_the_given_disks_and_the_pool_s_identity() -> None:
    tag = pool_plan.pool_identity("fast", "1-2")
    assert tags.pool_of([tag]) == {"format": 1, "uuid": "1-2", "name": "fast", "owner": ""}
    command = pool_plan.volume_group("vg", [disk("vdb"), disk("vdc")], tag, (2, 3, 16))
    assert command[-3:] == ["vg", "/dev/disk/by-id/vdb", "/dev/disk/by-id/vdc"]
    assert command[1:3] == ["--setautoactivation", "n"]
    assert "--setautoactivation" not in pool_plan.volume_group("vg", [disk()], tag, (2, 3, 11))  # that one has it not
    assert pool_plan.physical_volume(disk())[1:] == ["--metadatasize", f"{64 << 20}b", "/dev/disk/by-id/vdb"]
    assert "--yes" not in pool_plan.physical_volume(disk())  # it would wipe what came since the disk was looked at
    options = pool_plan.thin_pool("vg", pool_plan.PoolSizes(GIB, 64 * MIB, 64 << 10))
    for option, value in (("--zero", "y"), ("--errorwhenfull", "y"), ("--chunksize", "65536b")):
        assert options[options.index(option) + 1] == value


@given(st.text(max_size=8))
def test_a_group_s_name_cannot_break_out_of_the_configuration(text: str) -> None:
    if is_group_name(text):
        assert not set(text) & set('"\\{}[] \n')
    elif text:
        with pytest.raises(ValueError, match="volume group"):
            configuration(["/dev/vdb"], (2, 3, 16), udev=False, vg=text)


def device(system: Path, name: str, size: int = 8, uuid: str = "", holders: tuple[str, ...] = ()) -> None:
    (system / name / "holders").mkdir(parents=True)
    (system / name / "size").write_text(f"{size}\n")
    for holder in holders:
        (system / name / "holders" / holder).touch()
    if uuid:
        (system / name / "dm").mkdir()
        (system / name / "dm" / "uuid").write_text(f"{uuid}\n")


def test_pools_are_looked_for_where_no_tenant_writes(tmp_path: Path) -> None:
    for name in ("sda", "sda1", "nvme0n1", "vdb", "md127"):
        device(tmp_path, name)
    for name in ("loop0", "nbd3", "rbd0", "zram0", "ram1", "sr0"):
        device(tmp_path, name)
    device(tmp_path, "sdz", size=0)
    device(tmp_path, "sdc", holders=("md127",))  # a half of an array has the label of the whole
    device(tmp_path, "sdd", holders=("dm-1",))
    device(tmp_path, "dm-1", uuid="mpath-3600")
    device(tmp_path, "dm-2", uuid="CRYPT-LUKS2-abc")
    device(tmp_path, "dm-3", uuid="part1-mpath-3600")
    device(tmp_path, "dm-4", uuid="LVM-abcdef")  # what a guest has made in a volume of ours
    device(tmp_path, "dm-5", holders=())
    device(tmp_path, "sde", holders=("dm-4",))  # a disk that has volumes
    assert discovery.candidates(str(tmp_path)) == [
        "dm-1",
        "dm-2",
        "dm-3",
        "md127",
        "nvme0n1",
        "sda",
        "sda1",
        "sde",
        "vdb",
    ]


def test_a_disk_is_called_by_what_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "dev/disk/by-id").mkdir(parents=True)
    (tmp_path / "dev/disk/by-path").mkdir()
    for name in ("sda", "sdb", "sdc"):
        (tmp_path / "dev" / name).touch()
    for link, target in {
        "by-id/scsi-0VENDOR": "sda", "by-id/wwn-0x5000": "sda", "by-id/lvm-pv-uuid-x": "sda", "by-id/ata-a\\x20b": "sdb",
        "by-path/pci-0000:00-ata-1": "sdb", "by-id/wwn-gone": "sdz",
    }.items():  # fmt: skip
        (tmp_path / "dev/disk" / link).symlink_to(f"../../{target}")
    stable = {name: discovery.stable_path(f"/dev/{name}", str(tmp_path)) for name in ("sda", "sdb", "sdc")}
    assert stable == {
        "sda": "/dev/disk/by-id/wwn-0x5000",
        "sdb": "/dev/disk/by-path/pci-0000:00-ata-1",  # the other cannot stand in a filter
        "sdc": "/dev/sdc",
    }

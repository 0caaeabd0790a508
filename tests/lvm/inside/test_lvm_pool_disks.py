"""Pools of LVM made of real disks: what is refused is untouched, what fails is undone, what grows is in use meanwhile."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli_schema import validate
from thin_rig import sh, thin_pool
from typer.testing import CliRunner

from csi_driver.backends.lvm.pool_making import PoolMaker
from csi_driver.cli.main import app
from csi_driver.domain.errors import AlreadyExists, DriverError, NotFound, OutOfRange, Precondition
from csi_driver.host.lvm import tags

FIRST, SECOND, THIRD = Path("/dev/ubda"), Path("/dev/ubdb"), Path("/dev/ubdc")
MIB = 1 << 20


@pytest.fixture
def clean() -> Iterator[None]:
    """No volume group, and empty disks, before and after."""
    wipe()
    yield
    wipe()


def wipe() -> None:
    everywhere = f'devices {{ filter=["a|^{FIRST}|","a|^{SECOND}|","a|^{THIRD}|","r|.*|"] }}'
    for group in sh("vgs", "--config", everywhere, "--noheadings", "-o", "vg_name").split():
        sh("vgremove", "--config", everywhere, "-q", "-ff", "-y", group)
    sh("swapoff", "-a", check=False)
    sh("dmsetup", "remove", "--retry", "somebody", check=False)
    for disk in (FIRST, SECOND, THIRD):
        sh("umount", str(disk), check=False)
        with disk.open("r+b") as file:
            file.write(bytes(MIB))
            file.seek(-MIB, os.SEEK_END)
            file.write(bytes(MIB))
        sh("blockdev", "--rereadpt", str(disk))


def beginning(disk: Path) -> bytes:
    with disk.open("rb") as file:
        return file.read(MIB)


def all_disks(command: str, *arguments: str) -> str:
    """A report of lvm that sees every disk, as that of a machine does."""
    config = 'devices { filter=["a|.*|"] global_filter=["a|.*|"] }'
    return sh(command, "--config", config, *(["--noheadings"] if command.endswith("s") else []), *arguments)


@pytest.mark.usefixtures("clean")
def test_a_pool_is_made_and_grows_while_its_volumes_are_written(tmp_path: Path) -> None:
    maker = PoolMaker(in_container=False)
    pool = maker.create("fast", "fast", [str(FIRST)], None)
    assert pool.devices == (str(FIRST),)
    assert pool.total > 0.9 * int(sh("blockdev", "--getsize64", str(FIRST)))
    found = all_disks(
        "lvs", "-o", "zero,lv_when_full,chunk_size,lv_metadata_size", "--units", "b", "--nosuffix", "fast/pool"
    )
    assert found.split() == ["zero", "error", "65536", str(pool.metadata)]
    area, group_tags, automatic = all_disks(
        "vgs", "-o", "vg_mda_size,vg_tags,vg_autoactivation", "--units", "m", "--nosuffix", "--separator", ";", "fast"
    ).split(";")  # fmt: skip
    assert float(area) >= 64
    assert tags.pool_of(group_tags.split(",")) == {"format": 1, "uuid": pool.uuid, "name": "fast", "owner": ""}
    assert automatic == ""

    all_disks("lvcreate", "-q", "-y", "-V", "10g", "-T", "fast/pool", "-n", "volume")
    point = tmp_path / "mounted"
    point.mkdir()
    sh("mkfs.xfs", "-q", "/dev/fast/volume")
    sh("mount", "/dev/fast/volume", point)
    try:
        with subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={point}/data", "bs=64k", "count=120000", "oflag=dsync"]
        ) as writer:
            before, larger = maker.grow("fast", [str(SECOND), str(THIRD)])
            assert writer.poll() is None, "the writer had ended before the pool grew"
            writer.terminate()
        (point / "after").write_bytes(b"written")
        sh("sync", "-f", point)
    finally:
        sh("umount", point)
    assert before == pool.total
    sizes = [int(sh("blockdev", "--getsize64", str(disk))) for disk in (SECOND, THIRD)]
    assert larger.total - before > 0.85 * sum(sizes)
    assert set(larger.devices) == {str(FIRST), str(SECOND), str(THIRD)}
    assert larger.metadata >= pool.metadata
    status = sh("dmsetup", "status", "fast-pool-tpool")
    assert int(status.split()[1]) * 512 == larger.total
    assert " rw " in status
    assert "error_if_no_space" in status


@pytest.mark.usefixtures("clean")
def test_the_nodes_own_lvm_sees_new_disks_at_once() -> None:
    """It keeps hints of which devices have volume groups, and took a disk that joined behind its back for missing."""
    maker = PoolMaker(in_container=False)
    both = f'devices {{ filter=["a|^{FIRST}$|","a|^{SECOND}$|","r|.*|"] hints="all" }}'

    def missing() -> list[str]:
        return sh("vgs", "--config", both, "--noheadings", "-o", "pv_count,vg_missing_pv_count").split()

    assert missing() == []
    maker.create("fast", "fast", [str(FIRST)], None)
    assert missing() == ["1", "0"]
    maker.grow("fast", [str(SECOND)])
    assert missing() == ["2", "0"]


@pytest.mark.usefixtures("clean")
def test_what_is_taken_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    maker = PoolMaker(in_container=False)
    refusals: dict[str, str] = {}

    def refused(what: str, disk: Path, kind: type[DriverError] = Precondition) -> None:
        before = beginning(disk)
        with pytest.raises(kind) as caught:
            maker.create("fast", "fast", [str(THIRD), str(disk)], None)
        assert beginning(disk) == before
        assert beginning(THIRD) == bytes(MIB), "the disk that was good has changed"
        refusals[what] = str(caught.value)

    with SECOND.open("r+b") as file:
        file.write(b"a database without a file system")
    refused("data", SECOND)
    wipe()
    sh("mkfs.ext4", "-q", "-L", "accounts", str(SECOND))
    refused("file system", SECOND)
    point = tmp_path / "mounted"
    point.mkdir()
    sh("mount", "-o", "ro,noload", str(SECOND), point)
    refused("mounted", SECOND)
    sh("umount", point)
    wipe()
    table = bytearray(512)
    table[446:462] = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (20480).to_bytes(4, "little")
    table[510:] = b"\x55\xaa"
    with SECOND.open("r+b") as file:
        file.write(table)
    sh("blockdev", "--rereadpt", str(SECOND))
    refused("partition", SECOND)
    wipe()
    sh("mkswap", str(SECOND))
    sh("swapon", str(SECOND))
    refused("swap", SECOND)
    sh("swapoff", str(SECOND))
    wipe()
    size = int(sh("blockdev", "--getsz", str(SECOND)))
    sh("dmsetup", "create", "somebody", "--table", f"0 {size} linear {SECOND} 0")
    refused("holder", SECOND)
    sh("dmsetup", "remove", "--retry", "somebody")
    all_disks("pvcreate", "-q", str(SECOND))
    all_disks("vgcreate", "-q", "theirs", str(SECOND))
    refused("volume group", SECOND)
    for what, words in {
        "data": "data that no tool knows", "file system": "ext4 'accounts'", "mounted": f"mounted at {point}",
        "partition": "partition ubdb1", "swap": "in use", "holder": "somebody", "volume group": "LVM2_member",
    }.items():  # fmt: skip
        assert words in refusals[what], refusals[what]
        assert str(SECOND) in refusals[what]
        assert "nothing was changed" in refusals[what]


@pytest.mark.usefixtures("clean")
def test_a_pool_that_cannot_be_made_leaves_its_disks_empty() -> None:
    maker = PoolMaker(in_container=False)
    for _ in range(2):  # so that the same can be tried again
        with pytest.raises(OutOfRange, match="does not fit"):
            maker.create("fast", "fast", [str(SECOND), str(THIRD)], 1 << 50)
        assert beginning(SECOND) == beginning(THIRD) == bytes(MIB)
        assert all_disks("pvs", "-o", "pv_name") == ""


@pytest.mark.usefixtures("clean")
def test_a_name_that_is_taken_and_one_that_is_unknown_are_refused() -> None:
    maker = PoolMaker(in_container=False)
    with pytest.raises(NotFound, match="no disk of this node has a pool fast"):
        maker.grow("fast", [str(THIRD)])
    maker.create("fast", "some-vg", [str(SECOND)], 2 << 30)
    with pytest.raises(AlreadyExists, match="pool fast exists, in volume group some-vg"):
        maker.create("fast", "other", [str(THIRD)], None)
    with pytest.raises(AlreadyExists, match="a volume group some-vg exists"):
        maker.create("slow", "some-vg", [str(THIRD)], None)
    with pytest.raises(NotFound, match="there is fast"):
        maker.grow("slow", [str(THIRD)])
    free = int(all_disks("vgs", "-o", "vg_free", "--units", "b", "--nosuffix", "some-vg"))
    assert free > 1 << 30
    before, grown = maker.grow("fast", [str(THIRD)])
    assert grown.total > before
    assert abs(grown.free - free) < 8 * MIB, "what was left for thick volumes was taken"


@pytest.mark.usefixtures("clean")
def test_the_command_line_makes_a_pool() -> None:
    runner = CliRunner()
    answer = runner.invoke(app, ["pool", "create", "fast", "--lvm", str(THIRD)])
    assert answer.exit_code == 0, answer.output
    assert "Made pool fast of 1" in answer.output
    assert "tidemark agent --pool fast=lvm:fast" in answer.output
    document = json.loads(runner.invoke(app, ["pool", "grow", "fast", str(SECOND), "-o", "json"]).output)
    validate(document, "lvm_pool")
    assert document["devices"] == [str(SECOND), str(THIRD)]
    again = runner.invoke(app, ["pool", "create", "fast", "--lvm", str(THIRD)])
    assert again.exit_code == 1
    assert "pool fast exists" in str(again.exception)


def test_a_pool_made_by_hand_is_seen_as_no_pool() -> None:
    wipe()
    with thin_pool():
        with pytest.raises(NotFound):
            PoolMaker(in_container=False).grow("fast", [str(THIRD)])
        with pytest.raises(AlreadyExists, match="is not this pool"):
            PoolMaker(in_container=False).create("fast", "fast", [str(THIRD)], None)

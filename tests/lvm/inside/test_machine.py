"""The machine is what the other tests here take it for."""

from pathlib import Path

import pytest
from thin_rig import POOL, field, node_of, sh, thin_pool, thin_volume


def test_lvm_makes_thin_volumes_and_sees_the_machine_s_disks_alone() -> None:
    with thin_pool():
        node = thin_volume("a-b")
        node.write_bytes(b"content")
        with node.open("rb") as file:
            assert file.read(7) == b"content"
        assert field("a-b", "pool_lv") == POOL
        assert sh("pvs", "--noheadings", "-o", "pv_name").split() == ["/dev/ubda"]
    assert not node_of("a-b").exists()


def test_the_host_s_files_cannot_be_changed() -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        Path(__file__).with_name("changed").touch()

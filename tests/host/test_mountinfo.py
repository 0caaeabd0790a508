import os
from pathlib import Path

import pytest

from csi_driver.host import mountinfo

TEXT = rb"""24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334460k,mode=755
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
60 27 7:3 / /var/lib/kubelet/a\040b\134c\011d\012e rw,noatime shared:1 master:2 - xfs /dev/loop3 rw,nouuid
61 27 0:6 /loop3 /staging/dev rw,relatime - devtmpfs devtmpfs rw
62 27 0:6 /loop3//deleted /staging/gone rw - devtmpfs devtmpfs rw
63 27 0:50 /loop30 /staging/other rw - tmpfs none rw
64 27 0:51 /loop3 /private ro - tmpfs none rw
65 27 0:60 /volume /btrfs rw - btrfs /dev/loop3 rw
66 60 7:4 / /var/lib/kubelet/a\040b\134c\011d\012e ro unbindable - ext4 /dev/loop4 rw
67 27 254:0 /loop3 /home ro - ext4 /dev/vda rw,discard
68 27 0:70 / /n\303\244me/\377 rw - fuse.sshfs host:\040dir rw,user_id=0
"""


def test_parse() -> None:
    mounts = mountinfo.parse(TEXT)
    assert mounts[2] == mountinfo.Mount(
        id=60,
        parent=27,
        major=7,
        minor=3,
        root="/",
        point="/var/lib/kubelet/a b\\c\td\ne",
        options=("rw", "noatime"),
        fs_type="xfs",
        source="/dev/loop3",
        super_options=("rw", "nouuid"),
        shared=True,
    )
    assert os.fsencode(mounts[-1].point) == b"/n\xc3\xa4me/\xff"
    assert mounts[-1].source == "host: dir"
    assert not mounts[2].read_only
    assert mounts[8].read_only


def test_everything_that_a_device_is_behind() -> None:
    found = mountinfo.mounts_of(7, 3, "loop3", mountinfo.parse(TEXT))
    assert [mount.id for mount in found] == [60, 61, 62, 64, 65]
    assert mountinfo.mounts_of(7, 9, "loop9", mountinfo.parse(TEXT)) == []


def test_the_topmost_mount_at_a_point() -> None:
    mounts = mountinfo.parse(TEXT)
    for order in (mounts, mounts[::-1]):
        top = mountinfo.at("/var/lib/kubelet/a b\\c\td\ne/", order)
        assert top
        assert top.id == 66
    assert mountinfo.at("/staging", mounts) is None


@pytest.mark.parametrize("line", [b"1 2 3", b"1 2 0:1 / / rw", b"x 2 0:1 / / rw - a b c", b"1 2 0 / / rw - a b c"])
def test_a_line_that_does_not_parse_is_not_skipped(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        mountinfo.parse(TEXT + line + b"\n")


def test_the_present_mounts() -> None:
    root = mountinfo.at("/")
    assert root
    assert root.point == "/"
    assert mountinfo.at(Path("/proc")) in mountinfo.read()
    with pytest.raises(FileNotFoundError):
        mountinfo.read("/proc/0/mountinfo")

import os
from pathlib import Path

import pytest

from csi_driver.host.fs import mountinfo

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
        group=1,
        master=2,
    )
    assert [mount.id for mount in mounts if mount.shared] == [60]
    assert os.fsencode(mounts[-1].point) == b"/n\xc3\xa4me/\xff"
    assert mounts[-1].source == "host: dir"
    assert not mounts[2].read_only
    assert mounts[8].read_only


def test_everything_that_a_device_is_behind() -> None:
    found = mountinfo.mounts_of(7, 3, "loop3", mountinfo.parse(TEXT))
    assert [mount.id for mount in found] == [60, 61, 62, 64, 65]
    assert mountinfo.mounts_of(7, 9, "loop9", mountinfo.parse(TEXT)) == []


PEERS = b"""20 1 0:30 / /d rw shared:5 - tmpfs t rw
21 1 0:30 /k /k rw shared:5 - tmpfs t rw
22 20 0:30 /k /d/k rw shared:5 - tmpfs t rw
23 1 0:30 / /slave rw master:5 - tmpfs t rw
24 1 0:30 /k /other rw shared:6 - tmpfs t rw
25 1 0:30 /k /private rw - tmpfs t rw
30 21 7:3 / /k/stage rw shared:9 - xfs /dev/loop3 rw
31 20 7:3 / /d/k/stage rw shared:9 - xfs /dev/loop3 rw
32 22 7:3 / /d/k/stage rw shared:9 - xfs /dev/loop3 rw
33 23 7:3 / /slave/k/stage rw master:9 - xfs /dev/loop3 rw
34 24 7:3 / /other/stage rw shared:9 - xfs /dev/loop3 rw
35 25 7:3 / /private/stage rw shared:9 - xfs /dev/loop3 rw
40 21 7:3 / /k/pod rw shared:9 - xfs /dev/loop3 rw
41 20 7:3 / /d/k/pod rw shared:9 - xfs /dev/loop3 rw
42 21 7:3 /sub /k/pod rw shared:9 - xfs /dev/loop3 rw
50 99 7:3 / /beyond rw shared:9 - xfs /dev/loop3 rw
51 99 7:3 / /beyond rw shared:9 - xfs /dev/loop3 rw
"""
"""A directory of a shared tmpfs that is bind-mounted elsewhere and on itself, with a stage and a pod below it."""


@pytest.mark.parametrize("turned", [False, True])
def test_lines_that_are_views_of_one_mount_are_one_place(turned: bool) -> None:
    mounts = mountinfo.parse(PEERS)
    found = mountinfo.mounts_of(7, 3, "loop3", mounts[::-1] if turned else mounts)
    places = [{mount.id for mount in place} for place in mountinfo.places(found, mounts)]
    assert sorted(map(sorted, places)) == [[30, 31, 32, 33], [34], [35], [40, 41], [42], [50], [51]]
    assert mountinfo.places(found, mounts)[0][0] == found[0]


def test_one_that_is_in_two_groups_joins_what_looked_like_two() -> None:
    """A parent that is a slave of one group and a member of another: through it the two are one."""
    text = b"""20 1 0:30 / /a rw shared:5 - tmpfs t rw
21 1 0:30 / /b rw shared:6 - tmpfs t rw
22 1 0:30 / /c rw shared:6 master:5 - tmpfs t rw
30 20 7:3 / /a/s rw - xfs /dev/loop3 rw
31 21 7:3 / /b/s rw - xfs /dev/loop3 rw
"""
    joined = text + b"32 22 7:3 / /c/s rw - xfs /dev/loop3 rw\n"
    for lines, expected in ((text, [[30], [31]]), (joined, [[30, 31, 32]])):
        mounts = mountinfo.parse(lines)
        found = mountinfo.mounts_of(7, 3, "loop3", mounts)
        assert [sorted(m.id for m in place) for place in mountinfo.places(found, mounts)] == expected


def test_the_lines_with_a_word() -> None:
    read = mountinfo.read_with(b" /proc ")
    assert read
    assert read == [mount for mount in mountinfo.read() if mount.point == "/proc"]


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

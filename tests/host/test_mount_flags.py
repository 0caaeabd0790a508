"""Each mount flag of the list is mounted, by each file system that may have it; one that a mount refuses is named."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.domain.mount_flags import check_mount_flags, examples, plain_flags
from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.fs.filesystems import FS_TYPES, mkfs_argv, mount_options

Image = Callable[..., Path]
LABELS = {"context", "fscontext", "defcontext", "rootcontext"}
"""Words of SELinux, which a kernel without it does not know: the kubelet gives them on nodes that have it only."""
COMPANIONS = {"journal_async_commit": ["data=writeback"]}
BOUNDS = {
    "ext4": [
        [
            *("data=journal", "errors=continue", "auto_da_alloc=0", "barrier=0", "commit=0", "init_itable=0"),
            *("inode_readahead_blks=0", "max_batch_time=0", "min_batch_time=0", "stripe=0"),
        ],
        [
            *("data=writeback", "commit=999999", "init_itable=999999999", "inode_readahead_blks=1073741824"),
            *("max_batch_time=999999999", "min_batch_time=999999999", "stripe=999999999"),
        ],
        ["inode_readahead_blks=1", "commit=017", "stripe=017"],
        ["errors=panic", "ro"],  # without a write that could fail: this machine is not to panic
    ],
    "xfs": [
        ["allocsize=4096", "logbsize=16384", "logbufs=2"],
        ["allocsize=4k", "logbsize=16k"],
        ["allocsize=1M", "logbsize=32k"],
        ["allocsize=1024m", "logbsize=64k"],
        ["allocsize=1048576k", "logbsize=128k"],
        ["allocsize=1073741824", "logbsize=262144", "logbufs=8"],
        ["allocsize=1g", "logbsize=256K"],
    ],
}
"""Every other word of an enumeration, and the lowest and the highest of each value, several in one mount."""
REMOVED = {
    "ext4": ["norelatime", "nostrictatime", "iversion", "noacl", "nouser_xattr", "prjquota"],
    "xfs": ["norelatime", "nostrictatime", "iversion", "sunit=8", "swidth=16"],
}


def flags_of(fs_type: str) -> list[str]:
    """All that may be asked for, each with a value where it needs one, and once without where it may do without."""
    found: list[str] = []
    for kind in ("", fs_type):
        labelled = os.path.exists("/sys/fs/selinux/enforce")
        found += sorted(plain_flags(kind))
        found += [text for name, text in sorted(examples(kind).items()) if labelled or name not in LABELS]
    return found


@pytest.mark.root
@pytest.mark.parametrize("fs_type", FS_TYPES)
def test_each_flag_is_mounted(image: Image, point: Path, fs_type: str) -> None:
    device = loop.attach(image())
    run(mkfs_argv(fs_type, device.path), 30)
    refused: dict[str, str] = {}
    for words in (*([flag, *COMPANIONS.get(flag, ())] for flag in flags_of(fs_type)), *BOUNDS[fs_type]):
        check_mount_flags(words, fs_type)
        try:
            mounts.mount(device.path, point, fs_type, [*words, *mount_options(fs_type)])
        except OSError as error:
            refused[",".join(words)] = str(error)
        else:
            mounts.umount(point)
    assert refused == {}


@pytest.mark.root
@pytest.mark.parametrize("fs_type", FS_TYPES)
def test_a_flag_that_a_mount_refuses_is_named(image: Image, point: Path, fs_type: str) -> None:
    """Of several, and those that a volume from before may have: a kernel that takes one mounts it."""
    device = loop.attach(image())
    run(mkfs_argv(fs_type, device.path), 30)
    fine = ["noatime", *(["commit=30"] if fs_type == "ext4" else ["logbufs=4"]), *mount_options(fs_type)]
    for flag in REMOVED[fs_type]:
        name = flag.partition("=")[0]
        refused: OSError | None = None
        try:
            mounts.mount(device.path, point, fs_type, [flag, *fine])
        except OSError as error:
            refused = error
        if refused is None:
            mounts.umount(point)
            assert name not in {"norelatime", "nostrictatime", "iversion"}, "no kernel knows these"
            continue
        assert refused.errno == errno.EINVAL
        assert f"refuses the mount option '{name}': take it out" in str(refused)
        assert mountinfo.at(point) is None
    mounts.mount(device.path, point, fs_type, fine)


@pytest.mark.root
def test_what_one_word_does_not_explain_lists_them_all(image: Image, point: Path) -> None:
    device = loop.attach(image())
    run(mkfs_argv("ext4", device.path), 30)
    with pytest.raises(OSError, match=r"refuses one of its options \(data, delalloc\) or two together: "):
        mounts.mount(device.path, point, "ext4", ["data=journal", "delalloc", "noatime"])
    assert mountinfo.at(point) is None


@pytest.mark.root
@pytest.mark.parametrize("fs_type", FS_TYPES)
@pytest.mark.parametrize("flags", [[], ["noatime", "nodev"]], ids=["no flags", "flags"])
def test_what_cannot_be_opened_is_no_matter_of_flags(image: Image, point: Path, fs_type: str, flags: list[str]) -> None:
    """The kernel says EINVAL of a superblock that is gone, as it does of a flag."""
    device = loop.attach(path := image())
    run(mkfs_argv(fs_type, device.path), 30)
    with path.open("r+b") as file:
        file.write(bytes(4096))
        os.fsync(file.fileno())
    run(("blockdev", "--flushbufs", device.path), 10)
    with pytest.raises(OSError, match="without any option it is refused too") as refused:
        mounts.mount(device.path, point, fs_type, [*flags, *mount_options(fs_type)])
    assert refused.value.errno == errno.EUCLEAN
    assert mountinfo.at(point) is None

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts
from csi_driver.host.fs.filesystems import mkfs_argv, mount_options

Image = Callable[..., Path]
root_only = pytest.mark.root


def test_options_are_parted() -> None:
    assert mounts.split_options(["noatime,commit=30", "ro", "discard"]) == (1 << 10 | 1, "commit=30,discard")
    assert mounts.split_options(["ro", "rw", "defaults", ""]) == (0, "")
    assert mounts.split_options(["loop", "X-mount.owner=0"]) == (0, "loop,X-mount.owner=0")  # mere words for the kernel


@pytest.mark.parametrize("word", ["remount", "bind", "rw,move", "a\0b"])
def test_other_operations_are_no_options(word: str) -> None:
    with pytest.raises(ValueError, match="not an option"):
        mounts.split_options([word])


@root_only
@pytest.mark.parametrize(("fs_type", "option"), [("ext4", "commit=30"), ("xfs", "logbsize=64k")])
def test_mount_with_options(image: Image, point: Path, fs_type: str, option: str) -> None:
    device = loop.attach(image())
    run(mkfs_argv(fs_type, device.path), 30)
    mounts.mount(device.path, point, fs_type, (*mount_options(fs_type), f"noatime,{option}"))
    mount = mountinfo.at(point)
    assert mount
    assert (mount.fs_type, mount.source, mount.minor) == (fs_type, device.path, device.minor)
    assert "noatime" in mount.options
    assert option in mount.super_options
    assert [found.point for found in mountinfo.mounts_of(device.major, device.minor, device.name)] == [str(point)]
    mounts.umount(point)
    with pytest.raises(OSError, match="umount") as caught:
        mounts.umount(point)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="loop,no-such-word") as caught:
        mounts.mount(device.path, point, fs_type, ["loop", "no-such-word"])
    assert caught.value.errno == errno.EINVAL
    assert mountinfo.at(point) is None


@root_only
def test_a_busy_mount_stays(image: Image, point: Path) -> None:
    device = loop.attach(image())
    run(mkfs_argv("ext4", device.path), 30)
    mounts.mount(device.path, point, "ext4")
    with (point / "file").open("w"), pytest.raises(OSError, match="busy") as caught:
        mounts.umount(point)
    assert caught.value.errno == errno.EBUSY
    assert mountinfo.at(point)


@root_only
def test_links_are_not_followed(xfs_dir: Path, tmp_path: Path) -> None:
    (xfs_dir / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(xfs_dir)
    with pytest.raises(NotADirectoryError):
        mounts.mount("none", link, "tmpfs")
    for source, target in ((xfs_dir / "real", link), (link, xfs_dir / "real")):
        with pytest.raises(OSError, match="bind"):
            mounts.bind(source, target, read_only=False)
    with pytest.raises(OSError, match="umount"):
        mounts.umount(link)
    assert mountinfo.at(xfs_dir)


@root_only
@pytest.mark.parametrize("read_only", [False, True])
def test_bind(xfs_dir: Path, point: Path, read_only: bool) -> None:
    (xfs_dir / "file").write_text("here")
    mounts.bind(xfs_dir, point, read_only)
    mount = mountinfo.at(point)
    assert mount
    assert mount.read_only == read_only
    assert (point / "file").read_text() == "here"
    if read_only:
        with pytest.raises(OSError, match="Read-only"):
            (point / "file").write_text("there")
    (xfs_dir / "other").touch()  # the origin stays writable
    mounts.umount(point)
    with pytest.raises(OSError, match="bind"):
        mounts.bind(xfs_dir / "file", point, read_only)  # a file at a directory
    assert mountinfo.at(point) is None


@root_only
def test_read_only_reaches_the_copy_that_propagates(xfs_dir: Path) -> None:
    """An agent's bind is seen by the kubelet as a copy in the host's namespace: a remount would leave that writable."""
    source, target = xfs_dir / "source", xfs_dir / "target"
    source.mkdir()
    target.mkdir()
    run(("mount", "--make-shared", str(xfs_dir)), 10)
    script = f"from csi_driver.host.fs import mounts; mounts.bind({str(source)!r}, {str(target)!r}, True)"
    subprocess.run(
        ["unshare", "--mount", "--propagation=unchanged", sys.executable, "-c", script],
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
    )
    mount = mountinfo.at(target)
    assert mount
    assert mount.read_only
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").touch()

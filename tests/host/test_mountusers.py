"""Who keeps a mount busy is named: what the kernel only says is that somebody does."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.host.commands import run
from csi_driver.host.fs import mount_points, mount_users, mounts

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("root")]

Spawn = Callable[..., "subprocess.Popen[str]"]
OPEN = ("sh", "-c", 'exec 3<"$1"; echo ready; exec sleep 600', "sh")
MAP = (
    "import mmap, sys, time; file = open(sys.argv[1]); "
    "held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); file.close(); print('ready', flush=True); time.sleep(600)"
)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A shared tmpfs with a file."""
    point = tmp_path / "mounted"
    point.mkdir()
    mounts.mount("test", point, "tmpfs")
    run(("mount", "--make-shared", str(point)), 10)
    (point / "file").write_text("content")
    yield point
    run(("umount", "--recursive", "--lazy", str(point)), 10)


@pytest.mark.parametrize("kind", ["file", "deleted file", "directory", "program", "mapping"])
def test_a_process_is_named(mounted: Path, spawn: Spawn, kind: str) -> None:
    if kind == "directory":
        process = spawn("sh", "-c", "echo ready; exec sleep 600", cwd=mounted)
    elif kind == "program":
        shutil.copy("/bin/sh", mounted / "program")
        process = spawn(str(mounted / "program"), "-c", "echo ready; read line", stdin=subprocess.PIPE)
    elif kind == "mapping":
        process = spawn(sys.executable, "-c", MAP, str(mounted / "file"))
    else:
        process = spawn(*OPEN, str(mounted / "file"))
        if kind == "deleted file":
            (mounted / "file").unlink()
    (found,) = mount_users.users(str(mounted))
    assert found.startswith(f"pid {process.pid} (")
    assert not found.endswith("()")


def test_a_process_in_a_namespace_of_its_own_is_named(mounted: Path, spawn: Spawn) -> None:
    """A copy of the mount that goes when this one goes: the kernel asks about it too."""
    process = spawn("unshare", "--mount", "--propagation=unchanged", *OPEN, str(mounted / "file"))
    (found,) = mount_users.users(str(mounted))
    assert found.startswith(f"pid {process.pid} (")


def test_who_uses_the_same_files_elsewhere_is_not_named(mounted: Path, spawn: Spawn, tmp_path: Path) -> None:
    """A volume that is staged and published is mounted twice, and each place has users of its own."""
    elsewhere = tmp_path / "mounted-elsewhere"
    elsewhere.mkdir()
    mounts.bind(mounted, elsewhere, False)
    try:
        process = spawn(*OPEN, str(elsewhere / "file"))
        assert mount_users.users(str(mounted)) == []
        (found,) = mount_users.users(str(elsewhere))
        assert found.startswith(f"pid {process.pid} (")
    finally:
        run(("umount", "--lazy", str(elsewhere)), 10)


def test_mounts_below_and_loop_devices_are_named_and_no_endless_list(mounted: Path) -> None:
    (mounted / "image").write_bytes(b"\0" * 4096)
    node = run(("losetup", "--find", "--show", str(mounted / "image")), 10).strip()
    try:
        assert mount_users.users(str(mounted)) == [f"{node}, which holds {mounted}/image"]
    finally:
        run(("losetup", "--detach", node), 10)
    for number in range(mount_users.MOST + 2):
        below = mounted / f"below-{number}"
        below.mkdir()
        mounts.mount("test", below, "tmpfs")
    found = mount_users.users(str(mounted))
    assert found[0] == f"a mount at {mounted}/below-0"
    assert (len(found), found[-1]) == (mount_users.MOST + 1, "2 more")


def test_nobody(mounted: Path, tmp_path: Path) -> None:
    assert mount_users.users(str(mounted)) == []
    assert mount_users.users(str(tmp_path)) == []


# ---- what is written on mount points


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_mount_point_says_whose_it_is_under_what_covers_it(mounted: Path, kind: str) -> None:
    point, cover = mounted / "point", mounted / "cover"
    for path in (point, cover):
        path.mkdir() if kind == "directory" else path.touch()
    assert mount_points.marked(point) == ""
    mount_points.mark(point, "volume 1")
    mounts.bind(cover, point, False)
    assert mount_points.marked(point) == "", "that is what covers it"
    assert mount_points.marked(point, covered=True) == "volume 1"
    mount_points.mark(point, "volume 2", covered=True)
    assert mount_points.marked(cover) == ""
    mounts.umount(point)
    assert mount_points.marked(point) == "volume 2"
    mount_points.unmark(point)
    assert mount_points.marked(point) == ""


def test_what_was_there_before_stays_for_good(mounted: Path) -> None:
    point = mounted / "point"
    assert not mount_points.keep(point)
    assert not mount_points.is_kept(point)
    point.mkdir()
    assert not mount_points.is_kept(point)
    assert mount_points.keep(point)
    for _ in range(2):
        mount_points.unmark(point)
        assert mount_points.is_kept(point)


def test_where_nothing_can_be_written_nothing_is_known(tmp_path: Path) -> None:
    for nowhere in ("/proc/self", str(tmp_path / "missing"), str(tmp_path / "missing" / "below")):
        mount_points.mark(nowhere, "volume")
        mount_points.mark(nowhere, "volume", covered=True)
        assert mount_points.marked(nowhere) == mount_points.marked(nowhere, covered=True) == ""
        assert not mount_points.keep(nowhere)

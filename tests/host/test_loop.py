"""The traps of loop devices, each as it was measured: see the design's section on what hangs and who waits."""

import ctypes
import dataclasses
import errno
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from loop_rig import MIB, format_and_mount, sysfs, use_all
from support.waiting import wait_until

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.host.block import device as block_device
from csi_driver.host.block import device_users, loop, loop_ioctl, sources
from csi_driver.host.block.loop import LoopDevice
from csi_driver.host.commands import run
from csi_driver.host.errors import Busy, CommandError, HostError, Mismatch
from csi_driver.host.fs import files, filesystems, mountinfo, mounts
from csi_driver.host.fs.filesystems import mkfs_argv, mount_options
from csi_driver.host.helper import device_jobs

pytestmark = pytest.mark.root
Image = Callable[..., Path]
Spawn = Callable[..., "subprocess.Popen[str]"]
Opened = Callable[..., int]


def flush(device: LoopDevice) -> None:
    with loop.opened(device) as opened:
        opened.flush()


def set_read_only(device: LoopDevice, read_only: bool) -> None:
    with loop.opened(device) as opened:
        opened.set_read_only(read_only)


def is_read_only(device: LoopDevice) -> bool:
    with loop.opened(device) as opened:
        return opened.is_read_only()


def direct_io_alignment(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.statx(-100, os.fsencode(path), 0, 0x2000, buffer) == 0  # STATX_DIOALIGN
    return int.from_bytes(buffer.raw[0x9C:0xA0], "little")


def clone(path: Path, name: str) -> Path:
    target = path.parent.parent / name / path.name
    target.parent.mkdir()
    with path.open("rb") as source, target.open("wb") as file:
        files.reflink(source.fileno(), file.fileno())
    return target


def test_attach_gives_direct_io_in_4096_byte_blocks(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    status = path.stat()
    assert device.backing == (status.st_dev, status.st_ino)
    assert (sysfs(device, "loop/dio"), sysfs(device, "queue/logical_block_size")) == ("1", "4096")
    assert (sysfs(device, "loop/autoclear"), sysfs(device, "loop/partscan")) == ("0", "0")
    assert loop.size(device) == status.st_size
    assert loop.find(path) == loop.find(status) == device
    assert device in loop.scan()
    assert device in loop.scan(IMAGE)
    assert device not in loop.scan("other.img")
    loop.detach(device)
    assert loop.find(path) is None
    loop.detach(device)  # nothing left to do


@pytest.mark.parametrize("size", [0, 4095, 4096 * 3 + 512])
def test_an_image_of_no_whole_blocks_is_refused(image: Image, size: int) -> None:
    path = image(size=size)
    with pytest.raises(HostError, match="multiple of 4096"):
        loop.attach(path)
    assert loop.find(path) is None


def test_neither_links_nor_devices_are_attached(image: Image, tmp_path: Path) -> None:
    path = image()
    link = tmp_path / "link.img"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic") as caught:
        loop.attach(link)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(HostError, match="multiple of 4096"):
        loop.attach("/dev/zero")


def test_a_file_is_never_attached_twice(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    with pytest.raises(Busy, match=f"already, as {device.path}"):
        loop.attach(path)
    other = run(("losetup", "--find", "--show", str(path)), 10).strip()
    with pytest.raises(HostError, match="attached more than once") as caught:
        loop.find(path)
    assert caught.value.errno == errno.EUCLEAN
    run(("losetup", "--detach", other), 10)

    def alone() -> bool:
        with suppress(HostError):  # the other one goes when the last who looks at all devices has closed it
            return loop.find(path) == device
        return False

    wait_until(alone)


def test_512_byte_blocks_become_buffered_after_a_reflink_and_ours_do_not(make_pool: Callable[..., Path]) -> None:
    path = make_pool(sector=512) / "a" / IMAGE
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(512 * MIB)
    if direct_io_alignment(path) != 512:
        pytest.skip("the disk below the pool takes no direct I/O of 512 bytes: the trap needs one that does")

    def attached(*options: str) -> tuple[str | None, str | None]:
        node = run(("losetup", "--find", "--show", "--direct-io=on", *options, str(path)), 10).strip()
        number = int(node.removeprefix("/dev/loop"))
        found = loop_ioctl.sysfs(number, "queue/logical_block_size"), loop_ioctl.sysfs(number, "loop/dio")
        run(("losetup", "--detach", node), 10)
        while loop.find(path):
            time.sleep(0.01)
        return found

    assert attached("--sector-size=512") == ("512", "1")
    device = loop.attach(path)
    use_all(device, MIB)
    loop.detach(device)
    clone(path, "b")
    assert direct_io_alignment(path) == 4096
    assert attached("--sector-size=512") == ("512", "0")  # silently
    device = loop.attach(path)
    assert (sysfs(device, "loop/dio"), sysfs(device, "queue/logical_block_size")) == ("1", "4096")


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_attached_again_after_a_reflink_it_mounts(image: Image, point: Path, fs_type: str) -> None:
    path = image()
    device = loop.attach(path)
    format_and_mount(device, fs_type, point)
    (point / "file").write_text("here")
    clone(path, "snapshot")
    mounts.umount(point)
    loop.detach(device)
    device = loop.attach(path)
    assert (sysfs(device, "loop/dio"), sysfs(device, "queue/logical_block_size")) == ("1", "4096")
    mounts.mount(device.path, point, fs_type, mount_options(fs_type))
    assert (point / "file").read_text() == "here"


def test_an_xfs_clone_mounts_beside_its_origin_only_with_nouuid(image: Image, point: Path, tmp_path: Path) -> None:
    path = image()
    device = loop.attach(path)
    run(mkfs_argv("xfs", device.path), 30)
    mounts.mount(device.path, point, "xfs")  # as nobody here mounts: the UUID is taken now
    (point / "file").write_text("here")
    run(("sync", "--file-system", str(point)), 30)
    second = loop.attach(clone(path, "b"))
    beside = tmp_path / "beside"
    beside.mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        mounts.mount(second.path, beside, "xfs")
    mounts.mount(second.path, beside, "xfs", mount_options("xfs"))
    assert (beside / "file").read_text() == "here"


def test_the_device_is_found_by_its_file_whatever_it_is_called(image: Image) -> None:
    a, b = image("a"), image("b")
    first, second = loop.attach(a), loop.attach(b)
    assert (loop.find(a), loop.find(b)) == (first, second)
    files.rename_exchange(a.parent, b.parent)
    assert (loop.find(a), loop.find(b)) == (second, first)
    status = a.stat()
    a.unlink()
    assert loop.find(status) == second  # its path ends in " (deleted)" now


def test_the_devices_of_other_volumes_are_not_asked(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs in the kernel does not answer, and must not keep the others from their own."""
    path = image()
    pool = path.parent.parent / "volumes"
    places = [pool / (digit * 32) / IMAGE for digit in "ab"]
    for place in places:
        place.parent.mkdir(parents=True)
        run(("cp", "--sparse=always", str(path), str(place)), 10)
    ours, others = (loop.attach(place) for place in places)
    asked: list[int] = []
    real = loop_ioctl.opened

    def opened(number: int, flags: int) -> object:
        asked.append(number)
        return real(number, flags)

    monkeypatch.setattr(loop_ioctl, "opened", opened)
    assert loop.find(places[0], names=r"/volumes/([0-9a-f]{32})/disk\.img$") == ours
    assert ours.number in asked
    assert others.number not in asked


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_only_the_file_that_is_meant_is_formatted(image: Image, fs_type: str) -> None:
    """The number may be another volume's by now, and that one full of data."""
    meant, other = image("meant"), image("other")

    def beginning() -> bytes:
        with other.open("rb") as file:
            return file.read(MIB)

    device = loop.attach(other)
    use_all(device, MIB)
    before = other.stat().st_blocks, beginning()
    identity = device_jobs.make_file_system(sources.image(str(meant), False), fs_type)
    assert identity["path"] != device.path
    assert filesystems.probe(meant) == fs_type
    assert (other.stat().st_blocks, beginning()) == before


def test_a_number_that_holds_another_file_by_now_is_left_alone(image: Image) -> None:
    gone = image("gone")
    earlier = loop.attach(gone)
    loop.detach(earlier)
    device = loop.attach(image("present"))
    # As it would be with the same number, which it mostly, not always, is:
    stale = dataclasses.replace(device, backing=earlier.backing)
    for attempt in (
        lambda: loop.detach(stale),
        lambda: loop.resize(stale),
        lambda: flush(stale),
        lambda: loop.tune(stale),
        lambda: loop.refuse_discard(stale),
        lambda: set_read_only(stale, True),
    ):
        with pytest.raises(Mismatch):
            attempt()
    assert loop.find(gone) is None
    assert loop.find(gone.parent.parent / "present" / IMAGE) == device
    assert not is_read_only(device)


def test_an_open_device_is_not_pulled_away_later(image: Image, spawn: Spawn) -> None:
    path = image()
    device = loop.attach(path)
    with open(device.path, "rb") as file:
        holder = spawn("sh", "-c", "echo ready; exec sleep 60", stdin=file)
    with pytest.raises(Busy, match=rf"in use by .*\bpid {holder.pid} \(sleep\)"):
        loop.detach(device)
    assert sysfs(device, "loop/autoclear") == "0"
    holder.kill()
    holder.wait()
    time.sleep(0.1)
    assert loop.find(path) == device  # without the flag cleared it would be gone by now
    loop.detach(device)
    assert loop.find(path) is None


def test_the_kernel_alone_would_pull_it_away_later(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    fd = os.open(device.path, os.O_RDONLY)
    run(("losetup", "--detach", device.path), 10)
    assert (sysfs(device, "loop/autoclear"), loop.find(path)) == ("1", device)
    os.close(fd)
    wait_until(lambda: loop.find(path) is None)  # somebody who looks at all devices may be the last one to close it


def test_a_short_look_by_others_does_not_stop_a_detach(image: Image, spawn: Spawn) -> None:
    path = image()
    device = loop.attach(path)
    with open(device.path, "rb") as file:
        spawn("sh", "-c", "echo ready; exec sleep 0.2", stdin=file)
    loop.detach(device)
    assert loop.find(path) is None


def test_a_mounted_device_is_not_detached(image: Image, point: Path) -> None:
    device = loop.attach(image())
    format_and_mount(device, "ext4", point)
    with pytest.raises(Busy, match=str(point)):
        loop.detach(device)
    assert sysfs(device, "loop/autoclear") == "0"
    mounts.umount(point)
    loop.detach(device)


def test_a_mount_in_another_namespace_counts(image: Image, point: Path, spawn: Spawn) -> None:
    path = image()
    device = loop.attach(path)
    run(mkfs_argv("ext4", device.path), 30)
    script = f"mount {device.path} {point} && echo ready && exec sleep 60"
    other = spawn("unshare", "--mount", "--propagation=private", "sh", "-c", script)
    assert mountinfo.at(point) is None
    with pytest.raises(Busy, match="another namespace"):
        loop.detach(device)
    other.kill()
    other.wait()

    def gone() -> bool:
        with suppress(Busy):  # the namespace goes a little later than its last process
            loop.detach(device)
        return loop.find(path) is None

    wait_until(gone)


@pytest.mark.parametrize(
    "unlinked", [pytest.param(False, id="linked"), pytest.param(True, id="unlinked", marks=pytest.mark.alone)]
)
def test_a_bind_mounted_node_keeps_its_device(image: Image, tmp_path: Path, unlinked: bool) -> None:
    device = loop.attach(image())
    target = tmp_path / "published"
    target.touch()
    mounts.bind(device.path, target, read_only=False)
    if unlinked:
        os.unlink(device.path)  # made again by the next search
        assert next(mount.root for mount in mountinfo.read() if mount.point == str(target)).endswith("//deleted")
    with pytest.raises(Busy, match=str(target)):
        loop.detach(device)
    loop.detach(device, mounted=lambda _: [])  # the caller knows better: the kernel does not mind
    mounts.umount(target)


@pytest.mark.alone  # the node is the whole machine's
def test_a_missing_node_is_made(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    os.unlink(device.path)
    assert loop.find(path) == device
    assert os.stat(device.path).st_rdev == os.makedev(device.major, device.minor)


def test_a_wrong_node_is_not_taken(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    device = loop.attach(image())
    real = block_device.sysfs

    def sysfs_(name: str, attribute: str) -> str | None:
        """The kernel's word is changed, not the node: that one is everybody's."""
        wrong = f"{device.major}:{device.minor + 1}"
        return wrong if (name, attribute) == (device.name, "dev") else real(name, attribute)

    with monkeypatch.context() as patch:
        patch.setattr(block_device, "sysfs", sysfs_)
        with pytest.raises(Mismatch, match="is not the node"):
            flush(device)
    flush(device)


def test_it_grows_while_in_use(image: Image, point: Path) -> None:
    path = image()
    device = loop.attach(path)
    format_and_mount(device, "xfs", point)
    os.truncate(path, 1 << 30)
    assert loop.resize(device) == 1 << 30 == loop.size(device)


def test_read_only(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    fd = os.open(device.path, os.O_RDWR)
    set_read_only(device, True)
    assert is_read_only(device)
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(fd, bytes(4096), 0)
    os.close(fd)
    loop.detach(device)
    device = loop.attach(path)  # the flag belongs to the number, and outlived the detach
    assert not is_read_only(device)
    loop.detach(device)
    path.chmod(0o400)
    device = loop.attach(path, read_only=True)
    assert is_read_only(device)
    assert sysfs(device, "loop/dio") == "1"


@pytest.mark.parametrize("let_go", ["detach", "abandon"])
@pytest.mark.parametrize("how", ["attached read-only", "set read-only"])
def test_a_number_that_was_read_only_is_writable_for_the_next(image: Image, how: str, let_go: str) -> None:
    """Also for a stranger, who does not reset what the last owner left: losetup does not, and mkfs fails then."""
    path = image()
    for _ in range(50):
        device = loop.attach(path, read_only=how == "attached read-only")
        set_read_only(device, True)
        if let_go == "detach":
            loop.detach(device)
        else:
            loop.detach_unverified(device.number, str(path))
        with suppress(CommandError):  # another test may have got the number meanwhile
            run(("losetup", device.path, str(path)), 10)
            break
    else:
        pytest.fail("others got the number each time")
    try:
        assert run(("blockdev", "--getro", device.path), 10).strip() == "0"
        run(("mkfs.ext4", "-q", device.path), 60)
    finally:
        run(("losetup", "--detach", device.path), 10)


def test_what_is_synced_is_in_the_file(image: Image) -> None:
    path = image()
    device = loop.attach(path)
    fd = os.open(device.path, os.O_RDWR)
    os.pwrite(fd, b"here", 0)
    flush(device)
    with path.open("rb") as file:
        assert file.read(4) == b"here"
    os.close(fd)


def test_a_number_that_is_shown_after_all_is_given_back(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image()
    elsewhere = mountinfo.Mount(1, 1, 0, 5, "/loop0", "/elsewhere", (), "devtmpfs", "udev", ())
    shows = SimpleNamespace(mounts_of=lambda *_: [elsewhere])
    monkeypatch.setattr(sources, "mountinfo", shows)
    with pytest.raises(Busy, match="still shown at /elsewhere"):
        device_jobs.attach(sources.image(str(path), False))
    assert loop.find(path) is None


def test_openers_are_named(image: Image) -> None:
    device = loop.attach(image())

    def are_we_named(*ours: int) -> bool:
        """Others may be there too: whoever looks at all devices opens each."""
        return str(os.getpid()) in {who.split(" ")[1] for who in device_users.processes_with_open(device, *ours)}

    assert not are_we_named()
    fd = os.open(device.path, os.O_RDONLY)
    assert are_we_named()
    assert not are_we_named(fd)
    os.close(fd)
    assert device_users.holders(device) == []


def test_many_at_once(image: Image) -> None:
    paths = [image(f"v{index}", 4 * MIB) for index in range(24)]
    with ThreadPoolExecutor(12) as pool:
        devices = list(pool.map(loop.attach, paths))
        assert len({device.number for device in devices}) == 24
        assert list(pool.map(loop.find, paths)) == devices
        list(pool.map(loop.detach, devices))
    assert not any(loop.find(path) for path in paths)

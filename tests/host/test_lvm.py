"""Whether LVM looks into loop devices: by its configuration as it is found on hosts, and by what it has done."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.backends.reflink.layout import IMAGE
from csi_driver.host import commands
from csi_driver.host.block import device_users, loop, loop_ioctl, lvm
from csi_driver.host.commands import run
from csi_driver.host.errors import Busy

DEBIAN = """# This is an example configuration file for the LVM2 system.
devices {
\t# global_filter = [ "a|.*|" ]
\t# Example: reject everything but
\t# filter = [ "a|^/dev/sda|", "r|.*|" ]
\t# use_devicesfile = 0
\tscan = [ "/dev" ]
}
"""
RHEL = DEBIAN.replace("use_devicesfile = 0", "use_devicesfile = 1")


def with_lines(*lines: str) -> str:
    return DEBIAN.replace("devices {\n", "devices {\n" + "".join(f"\t{line}\n" for line in lines))


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of LVM's, on a machine that has no LVM otherwise."""
    monkeypatch.setattr(commands, "resolve", lambda _: None)
    monkeypatch.setattr(loop_ioctl, "numbers", list)
    return tmp_path


def looks(etc: Path) -> str:
    return lvm.why_looks_into_volumes(IMAGE, str(etc), str(etc / "udev"))


@pytest.mark.parametrize(
    "text",
    [
        DEBIAN,
        RHEL,
        "",
        with_lines('global_filter = [ "a|/dev/loop.*|", "r|.*|" ]'),
        with_lines('global_filter = [ "r|/dev/loop[0-9]$|" ]'),
        with_lines('global_filter = [ "r|/dev/sd.*|" ] # "r|/dev/loop.*|"'),
        with_lines('filter = [ "r|/dev/drbd.*|", "r|loop(|", "r|loop" ]'),
        with_lines("use_devicesfile = 1"),
        with_lines('devicesfile = "other.devices"', "use_devicesfile=1"),
    ],
)
def test_what_lets_it_look(etc: Path, text: str) -> None:
    (etc / "lvm.conf").write_text(text)
    assert "no global_filter in" in looks(etc)


@pytest.mark.parametrize(
    "text",
    [
        with_lines('global_filter = [ "r|/dev/loop.*|" ]'),
        with_lines('global_filter=["r|^/dev/loop|","a|.*|"]'),
        with_lines("global_filter = [", '"r/\\\\/dev\\\\/loop[0-9]+/",', '"r(^/dev/rbd)"', "]"),
        with_lines('filter = [ "a|^/dev/sda3$|", "r|.*|" ]'),
        'devices/global_filter = [ "r|loop|" ]',
    ],
)
def test_what_keeps_it_from_that(etc: Path, text: str) -> None:
    (etc / "lvm.conf").write_text(text)
    assert looks(etc) == ""


def test_a_list_of_devices_keeps_it_from_that_where_it_is_used(etc: Path) -> None:
    """RHEL 9 has one from its installation on, and goes by it unless it is told not to; Debian's goes by it only if told."""
    (etc / "devices").mkdir()
    (etc / "devices" / "system.devices").touch()
    for text, expected in ((RHEL, False), (DEBIAN, True), (with_lines("use_devicesfile = 1"), False)):
        (etc / "lvm.conf").write_text(text)
        assert bool(looks(etc)) == expected
    (etc / "lvm.conf").write_text(RHEL)
    (etc / "lvmlocal.conf").write_text("devices { use_devicesfile = 0 }")
    assert looks(etc)
    (etc / "lvmlocal.conf").write_text('devices { use_devicesfile = 0\nglobal_filter = [ "r|/dev/loop.*|" ] }')
    assert not looks(etc)


def test_without_lvm_nothing_is_said_and_without_a_file_it_looks(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks(etc) == ""
    monkeypatch.setattr(commands, "resolve", lambda tool: f"/sbin/{tool}")
    assert "has no configuration" in looks(etc)


def test_what_it_has_done_is_seen_where_its_configuration_is_not(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod has udev's records of the host, and nothing of its /etc."""
    files = {3: f"/pool/volumes/{'a' * 32}/{IMAGE}", 4: "/home/admin/own.img"}
    monkeypatch.setattr(loop_ioctl, "numbers", lambda: [3, 4, 5])
    monkeypatch.setattr(loop_ioctl, "sysfs", lambda n, name: f"7:{n}" if name == "dev" else files.get(n))
    (etc / "udev").mkdir()
    (etc / "udev" / "b7:4").write_text("E:LVM_VG_NAME_COMPLETE=admins\n")
    assert looks(etc) == ""
    (etc / "udev" / "b7:3").write_text("I:12\nE:ID_FS_TYPE=LVM2_member\nE:LVM_VG_NAME_INCOMPLETE=guest\n")
    assert "the volume group guest on /dev/loop3" in looks(etc)


def test_a_holder_is_known_by_what_its_owner_calls_it(tmp_path: Path) -> None:
    device = loop_ioctl.LoopDevice(7, "/dev/loop7", 7, 7, (1, 2))
    assert device_users.holders(device, str(tmp_path)) == []
    for name in ("dm-3", "dm-4", "md0"):
        (tmp_path / "loop7" / "holders" / name).mkdir(parents=True)
    for name, called, uuid in (("dm-3", "guest-root", "LVM-abc"), ("dm-4", "hand made", "")):
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm" / "name").write_text(f"{called}\n")
        (tmp_path / name / "dm" / "uuid").write_text(f"{uuid}\n")
    assert device_users.holders(device, str(tmp_path)) == ["dm-3 (guest-root, made by LVM)", "dm-4 (hand made)", "md0"]


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_a_device_that_the_host_has_stacked_another_on_is_refused_with_the_page(image: Callable[..., Path]) -> None:
    if shutil.which("dmsetup") is None:
        pytest.skip("needs dmsetup: install Debian's dmsetup")
    device = loop.attach(image())
    name = f"tidemark-test-{device.number}"
    try:
        run(("dmsetup", "create", name, "--noudevsync", "--table", f"0 8192 linear {device.path} 0"), 10)
    except commands.CommandError as error:
        loop.detach(device)
        pytest.skip(f"the device mapper does not work here: {error}")
    try:
        with pytest.raises(Busy, match=rf"in use by dm-\d+ \({name}\); docs/how-to/tenants-data.md says how"):
            loop.detach(device)
    finally:
        run(("dmsetup", "remove", "--retry", "--noudevsync", name), 10)
    loop.detach(device)

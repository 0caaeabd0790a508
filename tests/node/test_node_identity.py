"""A device is known by the file behind it: numbers are reused, and what somebody else attached or uses is left alone."""

import os
from pathlib import Path

import pytest
from support.files import read_at, write_at, write_file
from support.machine import held_open
from support.node_rig import Rig, block, mounted
from support.sizes import MIB
from support.waiting import until

from csi_driver.backends.block_access import BlockDeviceAccess
from csi_driver.domain.errors import InUse, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.block import loop, loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts


def mark(path: Path | str, text: bytes) -> None:
    write_at(path, 0, text.ljust(4096, b"\0"))


async def stale_bind(rig: Rig, volume: Volume) -> tuple[str, int]:
    """A published block volume whose device went away under the bind, as a forced detach or another tool leaves it."""
    target = await rig.show(volume)
    device = rig.device(volume)
    assert device is not None
    loop.detach(device, mounted=lambda _: [])
    return target, device.number


async def attach_at(rig: Rig, volume: Volume, number: int) -> None:
    """Another volume's image at exactly this number, by hand."""
    run(("losetup", "--direct-io=on", "--sector-size=4096", f"/dev/loop{number}", str(rig.image(volume))), 10)


@pytest.mark.alone  # fills the machine's free loop numbers
async def test_a_stale_bind_is_not_shown_as_another_volumes_data(rig: Rig) -> None:
    """The kernel gives out the lowest free number: one that is still shown for its last owner is passed over."""
    old, new = await rig.volume("old", "block"), await rig.volume("new", "block")
    mark(rig.image(new), b"new's secret")
    target, number = await stale_bind(rig, old)
    # Fill the free numbers below, so that the stale one is next.
    fillers = [n for n in loop_ioctl.numbers() if n < number and loop_ioctl.sysfs(n, "loop/backing_file") is None]
    for filler in fillers:
        image = rig.place / f"filler-{filler}"
        image.write_bytes(b"\0" * 4096)
        run(("losetup", f"/dev/loop{filler}", str(image)), 10)
    assert read_at(await rig.show(new), 0, 12) == b"new's secret"
    device = rig.device(new)
    assert device is not None
    assert device.number != number
    assert loop_ioctl.sysfs(number, "loop/backing_file") is None
    await rig.unpublish(old)
    await rig.unstage(old)
    assert not os.path.lexists(target)


@pytest.mark.alone  # takes a loop number of its choice
async def test_the_old_owner_does_not_see_the_numbers_next_volume(rig: Rig) -> None:
    """Attached by hand under the stale bind, the other volume is there to be seen; the driver answers for neither, and cleans."""
    old, new = await rig.volume("old", "block"), await rig.volume("new", "block")
    mark(rig.image(new), b"new's secret")
    target, number = await stale_bind(rig, old)
    await attach_at(rig, new, number)
    assert target in (await rig.access.use(new)).paths
    assert target in (await rig.access.use(old)).paths, "it is shown where that one was published"
    with pytest.raises(Precondition, match=r"has no device: stage it first"):
        await rig.publish(old, "b")
    with pytest.raises((InUse, Precondition), match=r"use at|shown at"):
        await rig.delete(new)
    await rig.unpublish(old)
    await rig.unstage(old)
    assert not os.path.lexists(target)
    await rig.stage(new)
    assert read_at(await rig.publish(new), 0, 12) == b"new's secret"


@pytest.mark.alone  # nobody else may take the number that came free
async def test_stale_binds_are_replaced_where_they_are_ours_and_left_alone_elsewhere(rig: Rig) -> None:
    """What shows nothing may be another driver's: only where this volume is to be shown is it known to be ours."""
    old = await rig.volume("old", "block")
    target, number = await stale_bind(rig, old)
    foreign = rig.place / "foreign"
    foreign.touch()
    mounts.bind(f"/dev/loop{number}", foreign, False)
    await rig.reopen()
    assert mountinfo.at(str(foreign)) is not None
    await rig.stage(old)
    mark(await rig.publish(old), b"works")
    assert read_at(target, 0, 5) == b"works"
    mounts.umount(foreign)


async def test_devices_that_a_crash_left_go_when_the_pool_is_opened(rig: Rig) -> None:
    """Attached and shown nowhere: nobody would ever detach them. One that somebody has open stays."""
    left, used, staged = await rig.volume("left"), await rig.volume("used"), await rig.volume("staged")
    for volume in (left, used):
        await rig.access.attach(volume)
    await rig.stage(staged)
    device = rig.device(used)
    assert device is not None
    foreign = rig.place / "foreign.img"
    foreign.write_bytes(b"\0" * MIB)
    foreign_device = loop.attach(foreign)
    with held_open(device.path):
        await rig.reopen()
        assert rig.device(left) is None
        assert rig.device(used) == device
    assert rig.device(staged) is not None
    assert loop.find(foreign, None) == foreign_device
    await rig.reopen()
    assert rig.device(used) is None
    loop.detach(foreign_device)


@pytest.mark.parametrize("kind", ["ext4", pytest.param("block", marks=pytest.mark.alone)])  # takes a loop number
async def test_publish_looks_again_after_the_bind(rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The device goes and its number comes back as another's between the check and the bind: the bind is undone."""
    volume, other = await rig.volume("v", kind), await rig.volume("w", "block")
    mark(rig.image(other), b"other's secret")
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    jobs = rig.backend._devices.jobs
    real = jobs.run

    async def run_(owner: Volume, job: str, timeout: float, **args: object) -> object:
        if job == "bind":
            # Of a mounted file system the number cannot be taken away, but the mount can be replaced.
            if kind == "block":
                loop.detach(device, mounted=lambda _: [])
                await attach_at(rig, other, device.number)
            else:
                mounts.umount(rig.staging(volume))
                mounts.mount("tmpfs", rig.staging(volume), "tmpfs")
        return await real(owner, job, timeout, **args)

    monkeypatch.setattr(jobs, "run", run_)
    with pytest.raises(Precondition, match=r"lost its device|is no longer the volume's device"):
        await rig.publish(volume)
    monkeypatch.undo()
    assert mountinfo.at(rig.target(volume)) is None
    if kind == "ext4":
        mounts.umount(rig.staging(volume))
    else:
        left = rig.device(other)
        assert left is not None
        loop.detach(left, mounted=lambda _: [])
        mounts.umount(f"{rig.staging(volume)}/device")


@pytest.mark.parametrize("options", [["--sector-size=512"], ["--sector-size=4096", "--direct-io=off"]])
async def test_a_device_attached_by_hand_otherwise_is_refused(rig: Rig, options: list[str]) -> None:
    volume = await rig.volume("v")
    await rig.stage(volume)
    await rig.unstage(volume)
    image = rig.image(volume)
    node = run(("losetup", "--find", "--show", *options, str(image)), 10).strip()
    before = image.read_bytes()
    with pytest.raises(Precondition, match=r"attached by another program with (512|4096)-byte blocks.*: detach it"):
        await rig.stage(volume)
    with pytest.raises(Precondition, match=r"attached by another program"):
        await rig.expand(volume, 2 * volume.size)
    assert mountinfo.at(rig.staging(volume)) is None
    assert image.read_bytes()[: len(before)] == before
    if rig.device(volume):
        run(("losetup", "--detach", node), 10)
        await until(lambda: loop.find(image) is None)  # it goes when the last who looks at all devices has closed it
    await rig.stage(volume)


async def test_a_device_attached_by_hand_as_ours_are_is_taken_over(rig: Rig) -> None:
    volume = await rig.volume("v")
    node = run(
        ("losetup", "--find", "--show", "--sector-size=4096", "--direct-io=on", str(rig.image(volume))), 10
    ).strip()
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    assert device.path == node
    assert len(rig.devices()) == 1


async def test_an_image_attached_twice_is_not_touched(rig: Rig) -> None:
    volume = await rig.volume("v")
    for _ in range(2):
        run(("losetup", "--find", "--sector-size=4096", "--direct-io=on", str(rig.image(volume))), 10)
    for call in (rig.stage(volume), rig.delete(volume), rig.snapshot("s", volume)):
        with pytest.raises(Precondition, match=r"attached more than once"):
            await call
    for device in rig.devices():
        loop.detach(device)


@pytest.mark.parametrize("kind", ["ext4", "block"])
async def test_a_device_that_a_process_holds_open_is_not_detached(rig: Rig, kind: str) -> None:
    """The kernel would answer 0, and take it away at the last close: under whoever has the number by then."""
    volume = await rig.volume("v", kind)
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    with held_open(device.path):
        for _ in range(2):
            with pytest.raises(InUse, match=r"pid \d+ \(python"):
                await rig.unstage(volume)
            assert rig.device(volume) == device
            assert loop_ioctl.sysfs(device.number, "loop/autoclear") == "0"
        with pytest.raises(InUse, match=r"pid \d+"):
            await rig.delete(volume)
    assert rig.device(volume) == device
    await rig.unstage(volume)
    assert rig.device(volume) is None


async def test_a_volume_in_use_is_not_deleted_and_the_answer_says_where(rig: Rig) -> None:
    volume, raw = await rig.volume("v"), await rig.volume("raw", "block")
    for item in (volume, raw):
        target = await rig.show(item)
        with pytest.raises(InUse, match=r"is in use at") as refused:
            await rig.delete(item)
        assert target in str(refused.value)
        await rig.unpublish(item)
        with pytest.raises(InUse, match=r"staging"):
            await rig.delete(item)
        await rig.unstage(item)
        await rig.delete(item)
    assert rig.devices() == []
    assert os.listdir(rig.layout.volumes) == []


async def test_the_device_of_a_volume_is_never_a_second_one(rig: Rig) -> None:
    volume = await rig.volume("v", capabilities=(mounted(), block()))
    await rig.access.attach(volume)
    first = rig.device(volume)
    for _ in range(3):
        await rig.access.attach(volume)
    os.rename(rig.image(volume), rig.image(volume).with_name("moved.img"))
    os.rename(rig.image(volume).with_name("moved.img"), rig.image(volume))
    await rig.access.attach(volume)
    assert rig.devices() == [first]
    await rig.access.detach(volume)


async def test_what_is_shown_is_asked_of_the_kernel_each_time(rig: Rig) -> None:
    """Unmounted by hand: the driver says so at once, and stages and publishes again."""
    volume = await rig.volume("v")
    target = await rig.show(volume)
    write_file(f"{target}/data", b"1")
    mounts.umount(target)
    assert (await rig.access.use(volume)).paths == (rig.staging(volume),)
    await rig.publish(volume)
    assert Path(target, "data").read_bytes() == b"1"
    mounts.umount(target)
    mounts.umount(rig.staging(volume))
    with pytest.raises(Precondition, match=r"not staged"):
        await rig.publish(volume)
    await rig.show(volume)


def test_the_access_port_is_the_kernels() -> None:
    """These tests reach into `_devices`: a change of that name must fail here, not silently test nothing."""
    assert "_devices" in BlockDeviceAccess.__init__.__code__.co_names


@pytest.mark.alone  # takes a loop number of its choice
async def test_a_number_that_comes_free_and_is_given_on_is_not_taken_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the unmount of a stale bind and the inspection of what was behind it, the number goes to a volume that is staged now."""
    old, new = await rig.volume("old", "block"), await rig.volume("new", "block")
    _, number = await stale_bind(rig, old)
    await rig.unpublish(old)  # the last bind is the one below the staging directory
    real = rig.children.run

    async def run_(job: str, timeout: float, **args: object) -> object:
        answer = await real(job, timeout, **args)
        if job == "umount" and rig.device(new) is None:
            await attach_at(rig, new, number)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(rig.children, "run", run_)
        await rig.unstage(old)
    device = rig.device(new)
    assert device is not None
    assert device.number == number
    await rig.stage(new)
    assert rig.device(new) == device

"""A published raw block volume whose loop device went away: what is left is known to be the volume's, and is taken away.

Alone, all of them: whoever takes the number that came free is seen at the place.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.files import read_at, write_at
from support.node_rig import Rig
from support.pool_disk import mounts_below
from support.waiting import until

from csi_driver.backends import block_access
from csi_driver.domain.errors import InUse, Precondition
from csi_driver.domain.model import Volume
from csi_driver.host.block import loop
from csi_driver.host.commands import run
from csi_driver.host.fs import mount_points, mountinfo, mounts

pytestmark = pytest.mark.alone


async def gone(rig: Rig, name: str = "v") -> tuple[Volume, str, int]:
    """A volume that is staged and published, and whose device is no more; where, and the device's number."""
    volume = await rig.volume(name, "block")
    target = await rig.show(volume)
    device = rig.device(volume)
    assert device is not None
    run(("losetup", "--detach", device.path), 10)
    await until(lambda: rig.device(volume) is None)  # it goes when the last who looks at all devices has closed it
    return volume, target, device.number


def places(rig: Rig) -> list[str]:
    return [mount.point for mount in mounts_below(rig.place / "staging") + mounts_below(rig.place / "pods")]


@contextmanager
def taken_by_another(rig: Rig, number: int) -> Iterator[None]:
    """Within, another program has the device with this number."""
    foreign = rig.place / "foreign.img"
    foreign.write_bytes(b"foreign" * 8192)
    run(("losetup", f"/dev/loop{number}", str(foreign)), 10)
    try:
        yield
    finally:
        run(("losetup", "--detach", f"/dev/loop{number}"), 10)


async def test_what_is_left_counts_as_use_and_goes_by_the_usual_calls(rig: Rig) -> None:
    rig.pools.locks.patience = 0.0
    volume, target, _ = await gone(rig)
    staged = f"{rig.staging(volume)}/device"
    use = await rig.access.use(volume)
    assert (use.device, use.paths) == ("", (staged, target))
    (node,) = [node for node in await rig.trees.tree() if node.item.id == volume.id]
    assert node.use == use
    with pytest.raises(InUse, match=rf"in use at {staged}, {target}: unpublish"):
        await rig.delete(volume)
    with pytest.raises(InUse, match=r"is in use at"):
        await rig.rollbacks.hold(str(volume.id), "me")
    with pytest.raises(Precondition, match=r"has no device: stage it first"):
        await rig.publish(volume, "b")
    with pytest.raises(Precondition, match=rf"still published at {target}"):
        await rig.unstage(volume)
    assert await rig.snapshot("s", volume), "nothing can write to it"
    for _ in range(2):
        await rig.unpublish(volume)
        assert not os.path.lexists(target)
    with pytest.raises(InUse, match=rf"in use at {staged}: unpublish"):
        await rig.delete(volume)
    for _ in range(2):
        await rig.unstage(volume)
    assert os.listdir(rig.staging(volume)) == []
    await rig.delete(volume)
    assert places(rig) == []


async def test_what_is_left_is_known_and_goes_though_its_number_is_somebody_elses(rig: Rig) -> None:
    """Another program asked for the first free device: the pod must end all the same, and that program keeps its device."""
    volume, target, number = await gone(rig)
    with taken_by_another(rig, number):
        staged = f"{rig.staging(volume)}/device"
        assert (await rig.access.use(volume)).paths == (staged, target)
        with pytest.raises(InUse, match=rf"in use at {staged}, {target}: unpublish"):
            await rig.delete(volume)
        await rig.unpublish(volume)
        await rig.unstage(volume)
        assert places(rig) == []
        assert read_at(f"/dev/loop{number}", 0, 7) == b"foreign"
        await rig.show(volume)
        assert rig.device(volume) is not None


async def test_a_start_takes_away_what_is_left_though_its_number_is_somebody_elses(rig: Rig) -> None:
    volume, target, number = await gone(rig)
    with taken_by_another(rig, number):
        await rig.reopen()
        assert places(rig) == []
        assert not os.path.lexists(target)
        assert read_at(f"/dev/loop{number}", 0, 7) == b"foreign"
        await rig.delete(volume)


async def test_what_is_left_is_swept_at_start_and_only_that(rig: Rig) -> None:
    """The next owner of the number would be seen there. What is not marked may be anybody's, and stays."""
    volume, target, number = await gone(rig)
    shown = await rig.volume("shown", "block")
    seen = await rig.show(shown)
    foreign, again = rig.place / "foreign", rig.place / "again"
    for path in (foreign, again):
        path.touch()
    mount_points.mark(again, f"{volume.id} of another life")
    for path in (foreign, again):
        mounts.bind(f"/dev/loop{number}", path, False)
    await rig.reopen()
    assert places(rig) == [f"{rig.staging(shown)}/device", seen]
    assert not os.path.lexists(target)
    assert os.listdir(rig.staging(volume)) == []
    assert (await rig.access.use(volume)).paths == ()
    write_at(seen, 0, b"x" * 4096)
    for path in (foreign, again):
        assert mountinfo.at(path) is not None
        mounts.umount(path)
    await rig.delete(volume)


async def test_staged_again_it_has_what_is_left_replaced(rig: Rig) -> None:
    volume, target, number = await gone(rig)
    await rig.stage(volume)
    device = rig.device(volume)
    assert device is not None
    assert device.number != number
    assert (await rig.access.use(volume)).paths == (f"{rig.staging(volume)}/device", target)
    with pytest.raises(Precondition, match=rf"still published at {target}"):
        await rig.unstage(volume)
    await rig.publish(volume)
    write_at(target, 0, b"works")
    assert read_at(rig.image(volume), 0, 5) == b"works"


async def test_a_stage_over_what_is_left_that_fails_leaves_no_device(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, target, _ = await gone(rig)

    async def refuse(*_: object) -> None:
        raise Precondition("cut short")

    with monkeypatch.context() as patch:
        patch.setattr(rig.backend.access, "stage_block", refuse)
        with pytest.raises(Precondition, match="cut short"):
            await rig.stage(volume)
    assert rig.device(volume) is None
    assert target in (await rig.access.use(volume)).paths


async def test_what_an_earlier_version_published_is_marked_by_the_next_call(rig: Rig) -> None:
    volume = await rig.volume("v", "block")
    target = await rig.show(volume)
    device = rig.device(volume)
    assert device is not None
    mounts.umount(target)
    mount_points.unmark(target)
    mounts.bind(device.path, target, False)
    assert mount_points.marked(target, covered=True) == ""
    await rig.publish(volume)
    assert mount_points.marked(target, covered=True) == f"{volume.id} {volume.uid}"
    loop.detach(device, mounted=lambda _: [])
    assert target in (await rig.access.use(volume)).paths
    assert Path(target).exists()


async def test_a_sweep_that_is_broken_off_is_finished_by_what_comes_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the unmount and the removal of the file that was the mount point, at either of two places."""
    volume, target, _ = await gone(rig)

    def die(_: str) -> None:
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(block_access, "_remove_file", die)
            with pytest.raises(Killed):
                await rig.reopen()
    await rig.open()
    assert places(rig) == []
    await rig.unpublish(volume)
    await rig.unstage(volume)
    assert not os.path.lexists(target)
    assert os.listdir(rig.staging(volume)) == []
    await rig.delete(volume)


class Killed(Exception):
    """Stands for the end of the process."""

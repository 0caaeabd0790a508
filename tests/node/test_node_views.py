"""A directory that is bind-mounted within one peer group shows every mount below it twice, and a volume's uses are as many as before."""

import os
from pathlib import Path

import pytest
from support.node_rig import Rig, block, mounted

from csi_driver.domain.errors import InUse, Precondition
from csi_driver.domain.model import AccessMode
from csi_driver.host.block import loop_ioctl
from csi_driver.host.commands import run
from csi_driver.host.fs import mountinfo, mounts


def seen_twice(rig: Rig, where: str) -> tuple[Path, Path]:
    """A directory, and a second path of it: what is mounted below the one is seen below the other."""
    origin, own = rig.place / "origin", rig.place / "kubelet"
    origin.mkdir()
    mounts.mount("origin", origin, "tmpfs")
    run(("mount", "--make-shared", str(origin)), 10)
    (origin / "kubelet").mkdir()
    if where == "on itself":
        own = origin / "kubelet"
    else:
        own.mkdir()
    run(("mount", "--bind", str(origin / "kubelet"), str(own)), 10)
    return own, origin / "kubelet"


@pytest.mark.parametrize("where", ["elsewhere", "on itself"])
@pytest.mark.parametrize("access", ["mount", "block"])
async def test_one_mount_that_is_seen_twice_is_one_use(rig: Rig, where: str, access: str) -> None:
    how = mounted(mode=AccessMode.SINGLE_WRITER) if access == "mount" else block(AccessMode.SINGLE_WRITER)
    volume = await rig.volume("v", capabilities=(how,))
    name = str(volume.id)
    own, other = seen_twice(rig, where)
    staging, target = str(own / "staging"), str(own / "pod")

    async def publish(path: str) -> None:
        await rig.nodes.publish(name, staging, path, how, access == "block")

    for _ in range(2):
        await rig.nodes.stage(name, staging, how)
    for _ in range(2):
        await publish(target)
    staged = f"{staging}/device" if access == "block" else staging
    use = await rig.access.use(volume)
    assert use.paths == (staged, target)
    assert [len(place) for place in use.places] == [2, 2]
    assert {path for place in use.places for path in place} >= {staged, target, str(other / "pod")}
    with pytest.raises(Precondition, match=r"is published at \S+pod and access mode .* allows one path only"):
        await publish(str(own / "another"))
    with pytest.raises(Precondition, match=r"still published at \S+pod: unpublish"):
        await rig.nodes.unstage(name, staging)
    with pytest.raises(InUse, match=r"in use at \S+staging\S*, \S+pod: unpublish"):
        await rig.delete(volume)
    assert (await rig.nodes.stats(name, str(other / "pod")))[1].total

    await rig.nodes.unpublish(name, str(other / "pod"))
    assert not os.path.lexists(target)
    assert (await rig.access.use(volume)).paths == (staged,)
    await rig.nodes.unstage(name, staging)
    assert rig.device(volume) is None
    await rig.delete(volume)


@pytest.mark.alone  # no scan of all loop devices works as long as one's file lies on a dead file system
async def test_pods_of_a_dead_pool_can_end_where_they_are_seen_twice(rig: Rig) -> None:
    volume = await rig.volume("v")
    own, _ = seen_twice(rig, "elsewhere")
    staging, target = str(own / "staging"), str(own / "pod")
    await rig.nodes.stage(str(volume.id), staging, mounted())
    await rig.nodes.publish(str(volume.id), staging, target, mounted())
    device = rig.device(volume)
    assert device is not None
    rig.leftovers_expected = True
    run(("xfs_io", "-x", "-c", "shutdown", str(rig.disk.point)), 10)
    with pytest.raises(Precondition, match=r"still published at \S+pod: unpublish"):
        await rig.nodes.unstage(str(volume.id), staging)
    await rig.nodes.unpublish(str(volume.id), target)
    await rig.nodes.unstage(str(volume.id), staging)
    assert mountinfo.at(staging) is None
    assert str(rig.disk.point) not in (loop_ioctl.sysfs(device.number, "loop/backing_file") or "")

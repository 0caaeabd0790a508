"""Makes a pool as one version of the driver does, for test_pools.py: once for each version, and it is kept.

    python tests/upgrade/make_pool.py COMMIT

As root, with the environment of the tests. The code of that commit makes it, and its own rig of the tests, both from a
worktree of git; it is written to tests/upgrade/pools/COMMIT.tar.xz: the image of the disk that the pool lies on.
"""

import argparse
import asyncio
import errno
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

TREE = Path(__file__).resolve().parent.parent.parent
POOLS = Path(__file__).with_name("pools")
FIRST = "4414c43"
"""The version with which the contract begins."""
MIB = 1 << 20

HOLDER = "VolumeRollback shop/back 0b1c2d3e-0000-4000-8000-000000000001"
ROLLBACK = "6a1f7c52-0000-4000-8000-000000000002"
"""Name of the rollback that was made."""

FILES = {
    "thin": "thin",
    "thick": "thick",
    "xfs": "xfs",
    "rolled": "rolled then",
    "copy": "thin at the cut",
}
"""Mounted volumes, and what their file `data` holds."""

CUTS = {
    "thin-cut": "thin at the cut",
    "xfs-cut": "xfs",
    "rolled-then": "rolled then",
    "gone-cut": "gone",
}
"""Snapshots of such, and the same of those."""

SAFETY = "rolled now"
"""What the safety snapshot of the rollback holds."""

GROUP = {"thin": "thin", "raw": "raw"}
"""The group's members by their sources."""

VOLUMES = {*FILES, "raw", "held", "half"}


def content(words: str) -> bytes:
    """Bytes that say what they are, not a multiple of any block."""
    return b"".join(b"%s, line %d\n" % (words.encode(), number) for number in range(1000))


async def tell(rig: Any) -> None:
    """Everything that a version may have left in a pool when it ended, the last of it in the middle of a call."""
    files = its_own("support.files", "node_host")

    async def write(volume: Any, words: str) -> None:
        async with rig.shown(volume) as path:
            files.write_file(f"{path}/data", content(words))

    thin = await rig.volume("thin", "ext4", 32 * MIB)
    await write(thin, "thin at the cut")
    cut = await rig.snapshot("thin-cut", thin)
    await write(thin, "thin")
    await write(await rig.volume("thick", "ext4", 16 * MIB, thick=True), "thick")
    await rig.volume("copy", "ext4", 32 * MIB, source=cut)

    xfs = await rig.volume("xfs", "xfs", 300 * MIB)
    await write(xfs, "xfs")
    await rig.snapshot("xfs-cut", xfs)

    raw = await rig.volume("raw", "block", 4 * MIB)
    async with rig.shown(raw) as path:
        files.write_at(path, 0, padded("raw"))
    await rig.group("group", thin, raw)

    rolled = await rig.volume("rolled", "ext4", 16 * MIB)
    await write(rolled, "rolled then")
    then = await rig.snapshot("rolled-then", rolled)
    await write(rolled, "rolled now")
    await rig.roll_back(rolled, then, ROLLBACK, safety=True)

    gone = await rig.volume("gone", "ext4", 16 * MIB)
    await write(gone, "gone")
    await rig.snapshot("gone-cut", gone)

    held = await rig.volume("held", "block", 1 * MIB)
    await rig.rollbacks.hold(str(held.id), HOLDER)

    await leave_half_done(rig, thin, gone)


def padded(words: str) -> bytes:
    """The same content as whole blocks, for a device."""
    data = content(words)
    return data + bytes(-len(data) % 4096)


def its_own(*names: str) -> ModuleType:
    """A module of the commit's own tree, under the name that it has there: today's, or an earlier one."""
    for name in names[:-1]:
        with suppress(ModuleNotFoundError):
            return import_module(name)
    return import_module(names[-1])


class Ended(Exception):
    """Where the process is taken to have ended."""


async def leave_half_done(rig: Any, thin: Any, gone: Any) -> None:
    """A half-made file system, an announced freeze, drafts of a snapshot and of a volume, a deletion without its end."""
    files = its_own("support.files", "node_host")
    errors = its_own("csi_driver.domain.errors")
    client = its_own("csi_driver.host.helper.client", "csi_driver.host.children")
    run = rig.children.run

    async def run_without_mkfs(job: str, timeout: float, **args: Any) -> Any:
        if job == "make_file_system":
            raise client.JobFailed(job, errno.EIO, "it was killed", "OSError")
        return await run(job, timeout, **args)

    half = await rig.volume("half", "ext4", 16 * MIB)
    rig.children.run = run_without_mkfs
    with suppress(errors.DriverError):
        await rig.stage(half)
    rig.children.run = run
    files.write_at(rig.image(half), 1024, b"half a superblock")

    layout = rig.layout
    layout.abandon = lambda draft: None
    await rig.stage(thin)
    await _ended_at(layout, "freeze announced", rig.snapshot("interrupted", thin))
    await rig.unstage(thin)
    await _ended_at(layout, "record written", rig.volume("draft", "block", 1 * MIB))
    rig.backend._empty_trash = lambda: None
    await rig.delete(gone)
    for name, there in ((".new", 2), (".trash", 1), (".freeze", 1)):
        assert len(os.listdir(rig.disk.point / name)) == there, name
    assert rig.now(half).format == "formatting(ext4)"


async def _ended_at(layout: Any, point: str, call: Any) -> None:
    def crash_point(name: str) -> None:
        if name == point:
            raise Ended

    before, layout.crash_point = layout.crash_point, crash_point
    try:
        await call
    except Ended:
        return
    finally:
        layout.crash_point = before
    raise AssertionError(f"the call never came to {point}")


async def make(place: Path) -> None:
    """Run by the commit's own code: the disk's image is `place`/disk.img."""
    disks = its_own("support.pool_disk", "node_host")
    node = its_own("support.node_rig", "node_rig")
    loop = its_own("csi_driver.host.block.loop", "csi_driver.host.loop")
    mounts = its_own("csi_driver.host.fs.mounts", "csi_driver.host.mounts")
    commands = its_own("csi_driver.host.commands")
    disks.share(place)
    try:
        disk = disks.make_disk(place, 1 << 30)
        helpers = node.helper_pool if hasattr(node, "helper_pool") else node.children
        async with helpers() as agents:
            rig = node.Rig(place, disk, agents)
            await rig.open()
            await tell(rig)
            await rig.close()
        commands.run(("fstrim", str(disk.point)), 60)
        mounts.umount(disk.point)
        loop.detach(disk.device)
    finally:
        disks.clean(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        import csi_driver

        assert Path(csi_driver.__file__).is_relative_to(os.environ["PYTHONPATH"].split(os.pathsep)[0])
        asyncio.run(make(Path(arguments.inside)))
        return
    archive = POOLS / f"{arguments.commit}.tar.xz"
    POOLS.mkdir(exist_ok=True)
    git = ["git", "-C", str(TREE), "worktree"]
    with tempfile.TemporaryDirectory(prefix="pool-") as directory:
        tree, place = Path(directory, "tree"), Path(directory, "place")
        place.mkdir()
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), arguments.commit], check=True)
        try:
            paths = os.pathsep.join(str(tree / where) for where in (".", "tests", "tests/node"))
            inside = [sys.executable, __file__, arguments.commit, "--inside", str(place)]
            subprocess.run(inside, check=True, cwd=directory, env=os.environ | {"PYTHONPATH": paths})
            sparse = ["--sparse", "--hole-detection=raw", "--owner=0", "--group=0", "--numeric-owner"]
            written = archive.with_suffix(".part")
            subprocess.run(
                ["tar", "--create", "--xz", *sparse, f"--file={written}", f"--directory={place}", "disk.img"],
                check=True,
                env=os.environ | {"XZ_OPT": "-9e"},
            )
            written.rename(archive)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    print(f"{archive}: {archive.stat().st_size} bytes")


if __name__ == "__main__":
    main()

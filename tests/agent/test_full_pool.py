"""A thin pool that runs full under its disks: what is told, what a write meets, and what is there once there is room again."""

import errno
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from outside_rig import free, until_done, use
from support.agent_process import AgentRig

from csi_driver.domain.model import AccessMode, Capability, SizeRange, Source
from csi_driver.rpc.clients.cli_client import Client

pytestmark = [pytest.mark.root, pytest.mark.slow(seconds=30)]

MIB = 1 << 20
EXT4, BLOCK = Capability("mount", AccessMode.WRITER, "ext4"), Capability("block", AccessMode.MULTI_WRITER)
DATA = os.urandom(4 * MIB)
NO_ROOM = {errno.ENOSPC, errno.EIO, errno.EROFS}
"""EROFS: ext4 has met it in its journal."""


@contextmanager
def filled(pool: Path) -> Iterator[None]:
    """Within, the pool has some MiB left."""
    filler = pool / "filler"
    with filler.open("wb") as file:
        step = 1 << 30
        while step >= MIB:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
    try:
        yield
    finally:
        filler.unlink()


def until_told(rig: AgentRig, words: str) -> None:
    """The agent looks every ten seconds."""
    until = time.monotonic() + 60
    while words not in rig.log.read_text():
        assert time.monotonic() < until, rig.log.read_text()[-2000:]
        time.sleep(0.1)


def overwrite(path: Path, flags: int, size: int) -> None:
    """Write durably until there is no room. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        with mmap.mmap(-1, MIB) as buffer:  # aligned, as direct I/O wants it
            buffer.write(os.urandom(MIB))
            for at in range(0, size, MIB):
                os.pwrite(fd, buffer, at)
                os.fsync(fd)
    finally:
        os.close(fd)


def test_it_is_told_and_nothing_that_was_there_is_lost(rig: AgentRig) -> None:
    with rig.start() as client:
        volume = client.create_volume("v", SizeRange(256 * MIB), [EXT4]).id
        raw = client.create_volume("raw", SizeRange(64 * MIB), [BLOCK]).id
        target, device = use(rig, client, volume, "v", EXT4), use(rig, client, raw, "raw", BLOCK)
        (target / "kept").write_bytes(DATA)
        os.sync()
        snapshot = client.create_snapshot(volume, "s")
        with filled(rig.pool):
            until_told(rig, "the pool has run full")
            assert [pool.full for pool in client.pools()] == [True]
            with pytest.raises(OSError) as refused:  # noqa: PT011  what it says is looked at below
                overwrite(target / "new", os.O_CREAT, 128 * MIB)
            assert refused.value.errno in NO_ROOM
            with pytest.raises(OSError) as refused:  # noqa: PT011
                overwrite(device, os.O_DIRECT, 64 * MIB)
            assert refused.value.errno in NO_ROOM
            assert (target / "kept").read_bytes() == DATA
        until_told(rig, "the pool has room again")
        assert [pool.full for pool in client.pools()] == [False]
        overwrite(device, os.O_DIRECT, 64 * MIB)

        free(rig, client, volume, "v")
        target = until_done(lambda: use(rig, client, volume, "v", EXT4))
        assert (target / "kept").read_bytes() == DATA
        overwrite(target / "new", os.O_CREAT, 128 * MIB)
        copy = restored(client, snapshot.id)
        assert (use(rig, client, copy, "copy", EXT4) / "kept").read_bytes() == DATA
        for each, name in ((volume, "v"), (copy, "copy"), (raw, "raw")):
            free(rig, client, each, name)
        assert rig.stop() == 0


def restored(client: Client, snapshot: str) -> str:
    """A new disk from a snapshot."""
    return client.create_volume("copy", SizeRange(), [EXT4], source=Source("snapshot", snapshot)).id

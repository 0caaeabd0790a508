"""Reads the content of a thin volume that has no device, by a device of our own: two commands of lvm fewer, and read-only.

lvm knows nothing of it, and nothing of it stays in the volume group. While it is there the thin volume cannot be deleted; one that
is left by a killed process is removed before the next is made, and at the start of an agent.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver.host import commands
from csi_driver.host.block.device import open_node, sysfs
from csi_driver.host.dm import ioctl
from csi_driver.host.fs import filesystems

PREFIX = "TIDEMARK-READ-"
"""Begins the uuid of such a device; that of its pool follows, then the thin id."""
_SECONDS = 10.0
_SECTOR = 512


def probe_thin(pool: str, thin_id: int, size: int) -> str:
    """Name the format of what a thin volume holds: see filesystems.probe. Raises OSError, CommandError."""
    with _opened(pool, thin_id, size) as path:
        return filesystems.probe(path)


@contextmanager
def _opened(pool: str, thin_id: int, size: int) -> Iterator[str]:
    """Yield the node of a read-only device of the thin volume `thin_id`. `pool`: the dm uuid of its pool. `size`: in bytes."""
    remove_left(pool, thin_id)
    place = ioctl.info(uuid=pool)
    uuid = f"{PREFIX}{pool}-{thin_id}"
    name = f"tidemark-read-{place.minor}-{thin_id}"
    table = f"0 {size // _SECTOR} thin {place.major}:{place.minor} {thin_id}"
    commands.run(
        ("dmsetup", "create", name, "--uuid", uuid, "--readonly", "--noudevsync", "--noudevrules", "--table", table),
        _SECONDS,
    )
    try:
        fd = open_node(f"dm-{ioctl.info(uuid=uuid).minor}", os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    finally:
        _remove(uuid)


def remove_left(pool: str, thin_id: int | None = None) -> None:
    """Remove the devices that killed processes have left of a pool, or of one thin volume of it. Raises OSError, CommandError."""
    start = f"{PREFIX}{pool}-"
    for _, _, minor in ioctl.names():
        uuid = sysfs(f"dm-{minor}", "dm/uuid") or ""
        if uuid.startswith(start) and thin_id in (None, int(uuid.removeprefix(start))):
            _remove(uuid)


def _remove(uuid: str) -> None:
    commands.run(("dmsetup", "remove", "--retry", "--noudevsync", "--uuid", uuid), _SECONDS)
